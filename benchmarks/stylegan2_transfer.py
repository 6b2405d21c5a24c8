"""StyleGAN2 from a trained network against StyleGAN2 from noise, at equal lengths.

The target is small: slices of the MR phantom in another contrast (bright fluid, dark fat), of
other heads than the sources. The sources are the phantom in its own contrast, and photographs of
stained tissue, which are in colour; both are trained here first. Every seed trains each way in
turn, on the same images and for as many images; what differs is where the weights begin. Numbers
are kernel distances ×1000 to held-out slices by efficientnet_lite2@64, which no training uses.
Run: OMP_NUM_THREADS=1 python benchmarks/stylegan2_transfer.py [--seeds 3] [--kimg 4] …
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from common import machine
from PIL import Image

from synth_nb.core.seeding import seed_everything
from synth_nb.data import Views, open_dataset, to_uint8
from synth_nb.embedders import embed_images, load_embedder
from synth_nb.metrics import kernel_distance
from synth_nb.stylegan2 import (
    StyleToImage,
    choose_settings,
    extra_modules,
    new_networks,
    new_phases,
)
from synth_nb.stylegan2.config import ema_decay
from synth_nb.stylegan2.transfer import pretrained_settings, read_pretrained, start_from
from synth_nb.training.loop import Trainer, TrainingConfig

SIZE, BATCH, SAMPLES = 32, 8, 256
WIDTHS = dict(channel_base=512, channel_max=32, z_dim=64, w_dim=64)


def other_contrast(folder: Path, count: int):
    "Slices of the phantom whose tissue is dark where it was bright; the air stays black."
    source = open_dataset("mr_phantom", image_size=64, channels=1, seed=77, n=count)
    for i, image in enumerate(np.array(source.images)[:, 0].astype(np.float32)):
        tissue = np.clip(image / 255 - 0.06, 0, 1)
        inverted = np.where(tissue > 0, 1.05 - 1.1 * tissue, image / 255).clip(0, 1)
        Image.fromarray((255 * inverted).astype(np.uint8)).save(folder / f"{i:03}.png")


def train(images, channels, kimg, seed, every, score=None, pretrained=None, freeze_d=0):
    "Folder of a finished training, and its scores after every `every` thousand images."
    source = read_pretrained(pretrained) if pretrained else None
    widths = pretrained_settings(source, {}) if source else WIDTHS
    settings = choose_settings("auto", SIZE, BATCH, lr=0.005, gamma=0.5, clamp=None, path_weight=0,
                               ada_kimg=30, freeze_d=freeze_d, **widths)
    seed_everything(seed)
    G, D = new_networks(settings, channels)
    modules = dict(generator=G, discriminator=D, **extra_modules(settings))
    draws = round(1000 * every)
    plan = TrainingConfig(round(kimg / every), BATCH, draws, seed=seed, device="cpu")
    scores = []

    def evaluate(epoch):
        if score is None:
            return {}
        generator = StyleToImage(trainer.model("generator"))
        scores.append(score(to_uint8(generator.sample(SAMPLES, 1).images)))
        return {}

    folder = Path(tempfile.mkdtemp())
    trainer = Trainer(folder, Views(images, "flip"), modules,
                      new_phases(settings, G.parameters(), D.parameters()), plan,
                      dict(generator=lambda count: ema_decay(settings, count * BATCH)), evaluate)
    if source:
        start_from(source, G, D, trainer.averages["generator"])
    trainer.fit()
    return folder, scores


def ways(sources: dict) -> dict:
    "Name → where the weights begin, and how many layers are frozen."
    found = {"from noise": (None, 0)}
    for name, folder in sources.items():
        found |= {f"from {name}": (folder, 0)}
    return found | {"from phantom, Freeze-D 4": (sources["phantom"], 4)}


def main():
    words = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words.add_argument("--seeds", type=int, default=3)
    words.add_argument("--source-kimg", type=float, default=8)
    words.add_argument("--kimg", type=float, default=2)
    words.add_argument("--every", type=float, default=1)
    words.add_argument("--images", type=int, default=100, help="of the target, to learn from")
    args = words.parse_args()
    began = time.process_time()
    embedder = load_embedder("efficientnet_lite2@64", "cpu")
    sources = {}
    for name, word, channels in (("phantom", "mr_phantom", 1), ("tissue in colour", "demo", 3)):
        images = open_dataset(word, image_size=SIZE, channels=channels).train
        sources[name], _ = train(images, channels, args.source_kimg, 0, args.source_kimg)
    with tempfile.TemporaryDirectory() as home:
        other_contrast(Path(home), args.images + 250)
        target = open_dataset(home, image_size=SIZE, channels=1, val_fraction=0.5)
        train_on = target.train.select(range(args.images))
        real = embed_images(embedder, target.held_out.images)
        halves = embed_images(embedder, train_on.images)

    def score(samples):
        return 1000 * kernel_distance(real, embed_images(embedder, samples, cache=False))

    found = {name: [] for name in ways(sources)}
    for seed in range(args.seeds):
        order = list(ways(sources).items())
        for name, (folder, frozen) in order if seed % 2 else reversed(order):
            found[name].append(train(train_on, 1, args.kimg, seed, args.every, score, folder,
                                     frozen)[1])
    steps = [args.every * (i + 1) for i in range(len(found["from noise"][0]))]
    print(f"{machine()}, {time.process_time() - began:.0f} s of CPU time\n")
    print(f"{SIZE} px, {args.images} slices to learn from, {args.seeds} seeds, sources of "
          f"{args.source_kimg:g} kimg; {len(real)} held out, {SAMPLES} samples; training slices "
          f"themselves {1000 * kernel_distance(real, halves):.0f}\n")
    print(f"| kernel ×1000 after | {' | '.join(f'{k:g} kimg' for k in steps)} |")
    print("| --- |" + " --- |" * len(steps))
    for name, runs in found.items():
        cells = [f"{statistics.mean(c):.0f} ({min(c):.0f} to {max(c):.0f})"
                 for c in zip(*runs, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\n| last evaluation, over that from noise with the same seed | mean | all seeds |")
    print("| --- | --- | --- |")
    for name in [*found][1:]:
        shares = [a[-1] / b[-1] for a, b in zip(found[name], found["from noise"], strict=True)]
        print(f"| {name} | {statistics.mean(shares):.2f} | "
              f"{', '.join(f'{s:.2f}' for s in shares)} |")


if __name__ == "__main__":
    main()
