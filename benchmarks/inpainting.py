"""Regions of held-out images restored by `fill`, against copies, colours and the true content.

The model is a run of 05_e2i or 05_i2i (`make run`). Its condition is the embedding of the image
with its hole smoothed, so nothing of what was there is known. `--half choose` takes the held-out
images of the conditioning half, `--half measure` those of the reference half: recipes are tried on
the first. Two classifiers look for the border, trained on half of the images, tested on the rest:
a small CNN, and a logistic regression on statistics of both sides. Run:
python benchmarks/inpainting.py --model outputs/05_e2i/demo --half measure
python benchmarks/inpainting.py --model … --half choose --steps 8 20 --resampling 1 5 --quick
"""

import argparse
import time
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from common import machine
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import nn

from synth_nb.core.files import project_root
from synth_nb.core.runs import load_model
from synth_nb.data import open_dataset, to_float, to_uint8
from synth_nb.diffusion.autoencoder import decode_all, encode
from synth_nb.diffusion.experiment import split_halves
from synth_nb.diffusion.inpainting import blend, harmonic_fill
from synth_nb.embedders import embed_images, load_embedder
from synth_nb.figures.plots import strips
from synth_nb.metrics import confidence_interval, kernel_distance, ssim


def boxes(n: int, size: int, seed: int = 0) -> np.ndarray:  # (n, 4): top, left, height, width
    "Holes of a quarter to a third of a side, with room for crops around them."
    rng, room = np.random.default_rng(seed), size // 5
    sides = rng.integers(3 * size // 10, 2 * size // 5, (n, 2))
    return np.concatenate([rng.integers(room, size - room - sides + 1), sides], 1)


def masks_of(found: np.ndarray, size: int) -> torch.Tensor:  # (n, 1, size, size)
    holes = torch.zeros(len(found), 1, size, size)
    for hole, (top, left, height, width) in zip(holes, found, strict=True):
        hole[:, top : top + height, left : left + width] = 1
    return holes


def border_crops(images: torch.Tensor, found: np.ndarray) -> torch.Tensor:  # (n, 12, C, s, s)
    "Crops around three points of each side of a hole, turned so that the hole is on the right."
    half, crops = images.shape[-1] // 5, []
    for image, (top, left, height, width) in zip(images, found, strict=True):
        at = []
        for along in (-3, 0, 3):
            y, x = top + height // 2 + along, left + width // 2 + along
            at += [(y, left, 0), (top, x, 1), (y, left + width, 2), (top + height, x, 3)]
        crops += [torch.rot90(image[:, a - half : a + half, b - half : b + half], k, (1, 2))
                  for a, b, k in at]  # fmt: skip
    return torch.stack(crops).unflatten(0, (len(images), -1))


def statistics(crops: torch.Tensor) -> np.ndarray:  # (n, C, s, s) → (n, features)
    "Roughness of both sides and of their ratio, steps across the border and beside it."
    middle = crops.shape[-1] // 2
    rough = (crops - F.avg_pool2d(crops, 3, 1, 1))[..., 1:-1, 1:-1].abs()
    left, right = (x.mean((2, 3)) + 1e-3 for x in (rough[..., : middle - 2], rough[..., middle:]))
    steps = crops.diff(dim=3).abs().mean(2)  # (n, C, s - 1)
    near = steps[..., middle - 4 : middle + 4]
    parts = [left.log(), right.log(), (right / left).log(), (near + 1e-3).log().flatten(1),
             (near[..., 3] / steps.mean(2).clamp_min(1e-3))]  # fmt: skip
    return torch.cat(parts, 1).numpy()


def cnn_scores(x: torch.Tensor, y: torch.Tensor, test: torch.Tensor, steps: int) -> np.ndarray:
    "What three small CNNs that were trained on crops give for others, on average."
    return np.mean([_one_cnn(x, y, test, steps, seed) for seed in range(3)], 0)


def _one_cnn(x, y, test, steps: int, seed: int) -> np.ndarray:
    torch.manual_seed(seed)
    widths = (x.shape[1], 16, 32, 32)
    layers = [layer for a, b in pairwise(widths)
              for layer in (nn.Conv2d(a, b, 3, 2 - (a == x.shape[1]), 1), nn.GELU())]  # fmt: skip
    net = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.LazyLinear(1))
    net(x[:2])
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        batch = x[rows].flip(2) if torch.rand(()) < 0.5 else x[rows]  # the border stays
        loss = F.binary_cross_entropy_with_logits(net(batch)[:, 0], y[rows])
        optimizer.zero_grad(), loss.backward(), optimizer.step(), schedule.step()
    with torch.no_grad():
        return net.eval()(test)[:, 0].numpy()


def border_auc(real: torch.Tensor, fake: torch.Tensor, steps: int) -> str:
    "AUC of both classifiers, crops (n, 12, …) of the same places; intervals over test images."
    train, test = split_halves_by_row(len(real))
    x = torch.cat([real[train], fake[train]]).flatten(0, 1)
    y = torch.cat([torch.zeros(len(x) // 2), torch.ones(len(x) // 2)])
    held = torch.cat([real[test], fake[test]]).flatten(0, 1)
    truth = np.r_[np.zeros(len(held) // 2), np.ones(len(held) // 2)]
    scale = StandardScaler().fit(statistics(x))
    probe = LogisticRegression(C=0.1, max_iter=1000).fit(scale.transform(statistics(x)), y)
    both = [cnn_scores(x, y, held, steps),
            probe.decision_function(scale.transform(statistics(held)))]  # fmt: skip
    rng, texts = np.random.default_rng(0), []
    for scores in both:
        scores, labels = scores.reshape(2, len(test), -1), truth.reshape(2, len(test), -1)
        draws = [rng.integers(len(test), size=len(test)) for _ in range(500)]
        drawn = [roc_auc_score(labels[:, d].ravel(), scores[:, d].ravel()) for d in draws]
        low, high = np.quantile(drawn, [0.025, 0.975])
        value = roc_auc_score(labels.ravel(), scores.ravel())
        texts.append(f"{value:.2f} ({low:.2f}–{high:.2f})")
    return " | ".join(texts)


def split_halves_by_row(n: int) -> tuple[range, range]:
    "The first and the last half: rows are in the order of their places, so few share pixels."
    return range(n // 2), range(n // 2, n)


def mean_interval(values: np.ndarray) -> str:
    rng = np.random.default_rng(0)
    drawn = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(1000)]
    return f"{values.mean():.3f} ({np.quantile(drawn, 0.025):.3f}–{np.quantile(drawn, 0.975):.3f})"


def regions(images: torch.Tensor, found: np.ndarray, margin: int = 0) -> torch.Tensor:
    "The holes and a margin, all resized to one size."
    cut = [F.interpolate(x[None, :, max(t - margin, 0) : t + h + margin,
                           max(s - margin, 0) : s + w + margin], (32, 32), mode="bilinear")
           for x, (t, s, h, w) in zip(images, found, strict=True)]  # fmt: skip
    return torch.cat(cut)


def region_ssim(images: torch.Tensor, real: torch.Tensor, found: np.ndarray) -> np.ndarray:
    pairs = zip(images, real, found, strict=True)
    return np.array([float(ssim(a[None, :, t : t + h, s : s + w], b[None, :, t : t + h, s : s + w],
                                data_range=2.0)) for a, b, (t, s, h, w) in pairs])  # fmt: skip


def nearest_training(images: torch.Tensor, holes: torch.Tensor, train: torch.Tensor):
    "For each image the training image that is nearest in a frame of 8 pixels around the hole."
    frame = F.max_pool2d(holes, 17, 1, 8) - holes
    errors = [((train - x) ** 2 * f).sum((1, 2, 3)) for x, f in zip(images, frame, strict=True)]
    return train[torch.stack(errors).argmin(1)]


def sides(model, images, holes, train, args) -> dict[str, torch.Tensor]:
    "Title → images whose holes are filled in some way."
    smooth = harmonic_fill(images, holes)
    condition = embed_images(model.embedder(), to_uint8(smooth))
    results = {}
    for steps in args.steps:
        for times in args.resampling:
            began = time.process_time()
            results[f"fill, {steps} steps, U = {times}"] = model.fill(
                images, holes, condition, 0, times, sampling_steps=steps).images  # fmt: skip
            print(f"{steps} steps, U {times}: {time.process_time() - began:.0f} CPU s", flush=True)
    near = nearest_training(images, holes, train)
    other = train[np.random.default_rng(0).permutation(len(train))[: len(images)]]
    mean = (images * (1 - holes)).sum((2, 3), keepdim=True) / (1 - holes).sum((2, 3), keepdim=True)
    vae = model.pipeline.vae
    back = decode_all(vae, torch.cat([encode(vae, x) for x in images.split(64)]))
    paste = {"copy of the nearest training image": near, "copy of another training image": other,
             "mean colour": mean.expand_as(images)}  # fmt: skip
    results |= {k: torch.where(holes > 0, v, images) for k, v in paste.items()}
    rest = harmonic_fill(torch.where(holes > 0, 0.0, images - near), holes)
    blended = torch.where(holes > 0, (near + rest).clamp(-1, 1), images)
    results["copy of the nearest, blended"] = blended
    results["smooth"] = smooth
    results["true content, autoencoder, blended"] = blend(images, back, holes)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a run folder of 05_e2i or 05_i2i")
    parser.add_argument("--dataset", default="demo", help="that it was trained on")
    parser.add_argument("--half", choices=("choose", "measure"), default="choose")
    parser.add_argument("--steps", type=int, nargs="*", default=[20])
    parser.add_argument("--resampling", type=int, nargs="*", default=[5])
    parser.add_argument("--count", type=int, default=1000, help="images at most")
    parser.add_argument("--picture", default="", help="file for a sheet of twelve images")
    parser.add_argument("--quick", action="store_true", help="no kernel distance, a short training")
    args = parser.parse_args()
    print(machine(), flush=True)
    model = load_model(project_root() / args.model)
    size = model.settings["image_size"][0]
    data = open_dataset(args.dataset, size, model.pipeline.vae.config.out_channels)
    held_out = data.held_out.select(
        [i for i, key in enumerate(data.held_out.keys) if key in set(model.settings["keys"])])
    halves = split_halves(held_out)
    rows, others = halves if args.half == "choose" else halves[::-1]
    rows = rows[np.linspace(0, len(rows) - 1, min(args.count, len(rows))).astype(int)]
    images, found = to_float(held_out[rows]["image"]), boxes(len(rows), size)
    holes, crops = masks_of(found, size), border_crops(images, found)
    train = to_float(torch.from_numpy(np.array(data.train.images)))
    results = sides(model, images, holes, train, args)
    outside = holes.expand_as(images) == 0
    print(f"{len(images)} images, holes of {holes.mean():.1%}; pixels outside equal bit for bit:",
          all(torch.equal(x[outside], images[outside]) for x in results.values()))  # fmt: skip
    if not args.quick:
        encoder = load_embedder("efficientnet_lite2")
        real = embed_images(encoder, to_uint8(regions(
            to_float(held_out[others]["image"]), boxes(len(others), size, 1), 8)))  # fmt: skip
    print("| holes hold | SSIM | better than the copy | border, CNN | border, statistics | kernel |"
          "\n| --- | --- | --- | --- | --- | --- |")  # fmt: skip
    copied = region_ssim(results["copy of the nearest training image"], images, found)
    for title, filled in {"real": images, **results}.items():
        own, kernel, auc = region_ssim(filled, images, found), "", "|"
        if title != "real":
            auc = border_auc(crops, border_crops(filled, found), 60 if args.quick else 300)
        if not args.quick:
            fake = embed_images(encoder, to_uint8(regions(filled, found, 8)), cache=False)
            k = confidence_interval(kernel_distance, real, fake)
            kernel = f"{1e3 * k['value']:.0f} ({1e3 * k['low']:.0f}–{1e3 * k['high']:.0f})"
        print(f"| {title} | {mean_interval(own)} | {mean_interval(own - copied)} | {auc} | "
              f"{kernel} |", flush=True)  # fmt: skip
    if args.picture:
        some = np.linspace(0, len(images) - 1, 12).astype(int)
        gap = torch.where(holes > 0, 1.0, images)
        shown = {"real": images, "hole": gap, **results}
        figure = strips({title: x[some] for title, x in shown.items()})
        figure.savefig(args.picture, dpi=150, bbox_inches="tight")
