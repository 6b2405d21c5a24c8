"""Stacks of electron micrographs: do neighbouring sections agree, and how deep are their objects?

    OMP_NUM_THREADS=1 python benchmarks/stacks.py [FOLDER [STEPS]]

Learns volumes of the phantom (64 pixels, 16 sections 5 pixels apart), four sections at a time, and
makes stacks of 16 sections in three ways. The truth is other volumes of the phantom.
"""

import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import label

from synth_nb.data.phantoms.em import em_phantom
from synth_nb.diffusion.latents import LatentSet
from synth_nb.diffusion.objective import DiffusionLoss, new_scheduler
from synth_nb.em.autoencoder import SectionImages, decoded, encoded, fit_vae
from synth_nb.em.pairs import PairUNet, unconditional_tokens
from synth_nb.em.stacks import neighbouring, sample_stack
from synth_nb.figures.plots import sheet
from synth_nb.training.loop import Phase, Trainer, TrainingConfig
from synth_nb.training.schedules import warmup

SIDE, SECTIONS, DEPTH, TRAINING, TRUTH = 64, 16, 4, 16, 8
VAE_STEPS, STEPS, BATCH = 300, int(sys.argv[2]) if len(sys.argv) > 2 else 10_000, 16


def volume(seed: int) -> tuple[np.ndarray, np.ndarray]:
    "Sections (16, 1, 64, 64) uint8 and masks, 0 or 1."
    drawn = [em_phantom(SIDE, SIDE, seed, z) for z in range(SECTIONS)]
    images, masks = (np.stack(each)[:, None] for each in zip(*drawn, strict=True))
    return images, (masks > 0).astype(np.uint8)


def learn(folder: Path):
    "Autoencoder, network, and mean and standard deviation of the latents."
    volumes = [volume(seed) for seed in range(TRAINING)]
    images, masks = (np.concatenate(each) for each in zip(*volumes, strict=True))
    sections = SectionImages(images, masks)
    vae = fit_vae(folder / "vae", sections, VAE_STEPS)
    views = torch.stack([encoded(vae, sections.all(k)) for k in range(8)])
    mean = views.mean((0, 1, 3, 4)).view(-1, 1, 1)
    std = (views - mean).square().mean().sqrt()
    runs = torch.stack([torch.cat([neighbouring(part, DEPTH) for part in one.split(SECTIONS)])
                        for one in (views - mean) / std])
    data = LatentSet(runs, unconditional_tokens(runs.shape[1])[None],
                     [str(i) for i in range(runs.shape[1])])
    torch.manual_seed(0)
    unet = PairUNet(runs.shape[2])
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    phase = Phase(DiffusionLoss(new_scheduler(), p_uncond=0, timesteps="logit_normal"), optimizer,
                  scheduler=warmup(optimizer, 60, STEPS))
    plan = TrainingConfig(2, BATCH, STEPS * BATCH // 2)
    trainer = Trainer(folder / "unet", data, dict(unet=unet), [phase], plan, dict(unet=0.99))
    trainer.fit()
    return vae, trainer.model("unet").eval(), mean, std


def agreement(stacks: list[np.ndarray]) -> str:  # images (Z, H, W)
    "Mean correlation of sections 1, 2 and 4 apart."
    found = []
    for lag in (1, 2, 4):
        pairs = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for s in stacks
                 for a, b in zip(s[:-lag].astype(float), s[lag:].astype(float), strict=True)]
        found.append(f"{np.mean(pairs):.2f}")
    return " | ".join(found)


def objects(stacks: list[np.ndarray]) -> str:  # masks (Z, H, W)
    "Objects in three dimensions: how many a stack, sections of each, its voxels, area in all."
    depths, sizes = [], []
    for masks in stacks:
        named, n = label(masks)
        for i in range(1, n + 1):
            where = np.argwhere(named == i)
            if len(where) >= 30:  # voxels; less are specks
                depths.append(np.ptp(where[:, 0]) + 1)
                sizes.append(len(where))
    touching = [(a & b).sum() / max((a | b).sum(), 1) for m in stacks
                for a, b in pairwise(m) if a.any() or b.any()]
    area = np.mean([m.mean() for m in stacks])
    return (f"{len(depths) / len(stacks):.1f} | {np.mean(depths or [0]):.1f} | "
            f"{np.median(sizes or [0]):.0f} | {np.mean(touching):.2f} | {area:.3f}")


def row(name: str, images: list[np.ndarray], masks: list[np.ndarray]):
    print(f"| {name} | {agreement(images)} | {objects(masks)} |", flush=True)


def main(folder: Path):
    vae, unet, mean, std = learn(folder)
    shape = SECTIONS, len(mean), SIDE // 4, SIDE // 4

    def stacks(**options):
        "Decoded stacks of several seeds: images and masks, (Z, H, W) each."
        found = []
        for seed in range(TRUTH):
            z = sample_stack(unet, shape, DEPTH, new_scheduler(), seed=seed, **options)
            found.append(decoded(vae, z * std + mean))
        return [f[:, 0].numpy() for f in found], [f[:, 1].numpy() > 0 for f in found]

    print("| sections | r, 1 apart | 2 | 4 | objects a stack | sections of one | voxels, median "
          "| IoU of neighbours | area |\n" + "|---" * 9 + "|")
    truth = [volume(1000 + seed) for seed in range(TRUTH)]
    row("phantom", [i[:, 0] for i, _ in truth], [m[:, 0] > 0 for _, m in truth])
    both = [decoded(vae, encoded(vae, SectionImages(*t).all())) for t in truth]
    row("phantom, through the autoencoder", [b[:, 0].numpy() for b in both],
        [b[:, 1].numpy() > 0 for b in both])
    start = time.process_time()
    ours = stacks(overlap_steps=1)
    seconds = time.process_time() - start
    row("windows shifted, last step overlaps", *ours)
    row("windows overlap by half at every step", *stacks(overlap_steps=1000))
    start = time.process_time()
    tiled = stacks(shifted=False, overlap_steps=0)
    print(f"time of shifted windows: {seconds / (time.process_time() - start):.2f} of tiled ones")
    row(f"windows of {DEPTH} on top of each other", *tiled)
    mixed = [[np.stack([part[(i + z) % TRUTH][z] for z in range(SECTIONS)])
              for i in range(TRUTH)] for part in ours]
    row("sections of different stacks", *mixed)
    lines = [(truth[0][0][:, 0] / 127.5 - 1), ours[0][0], tiled[0][0]]
    picture = torch.from_numpy(np.concatenate(lines)[:, None]).float().clamp(-1, 1)
    sheet(picture, SECTIONS, 2).save(folder / "stacks.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    home = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    main(home)
