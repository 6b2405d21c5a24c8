"""An epoch of images: from the decoded cache, and from torchvision's ImageFolder.

Both sides give the same batches: 512 px JPEG files, scaled to 256 px, mirrored at random, float in
[-1, 1]. ImageFolder has as many worker processes as there are cores; the cache needs none. The
first pass is `open_dataset` on an empty cache, which reads, decodes and writes everything.
Run: python benchmarks/loading.py [--images 400]
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from common import machine
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from synth_nb.data import Views, open_dataset

BATCH = 32


def write_photos(folder: Path, n: int):
    "Different 512 px JPEG files of stained tissue, in two classes."
    from skimage.data import immunohistochemistry

    tissue, draw = immunohistochemistry(), np.random.default_rng(0)
    for i in range(n):
        moved = np.roll(tissue, draw.integers(0, 512, 2), (0, 1))
        path = folder / "ab"[i % 2] / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(moved).save(path, quality=90)


def by_image_folder(folder: Path, workers: int) -> int:
    "One epoch with worker processes."
    steps = [transforms.Resize(256), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    change = transforms.Compose([*steps, transforms.Normalize([0.5] * 3, [0.5] * 3)])
    loader = torch.utils.data.DataLoader(
        ImageFolder(folder, change), BATCH, shuffle=True, num_workers=workers
    )
    return sum(len(images) for images, _ in loader)


def by_cache(data: Views) -> int:
    "One epoch from the array."
    order = torch.randperm(len(data))
    parts = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    return sum(len(data[part]["image"]) for part in parts)


def seconds(work, *args) -> float:
    start = time.perf_counter()
    work(*args)
    return time.perf_counter() - start


def first_pass(folder: Path) -> float:
    "Open the folder with an empty cache."
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SYNTH_NB_CACHE"] = cache
        return seconds(open_dataset, folder, 256)


def peak_of_first_pass(folder: Path) -> float:
    "Private memory that opening took, in MiB (what is mapped from disk is not counted)."
    process = psutil.Process()
    before = process.memory_full_info().uss
    first_pass(folder)
    return (process.memory_full_info().uss - before) / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    workers = os.cpu_count()
    torch.set_num_threads(1)  # the cache's side is one process with one thread
    with tempfile.TemporaryDirectory() as base:
        photos = Path(base) / "photos"
        write_photos(photos, chosen.images)
        first, again, plain = [], [], []
        for _ in range(chosen.rounds):
            plain.append(seconds(by_image_folder, photos, workers))
            first.append(first_pass(photos))
            os.environ["SYNTH_NB_CACHE"] = str(Path(base) / "cache")
            data = Views(open_dataset(photos, 256), "flip")
            again.append(seconds(by_cache, data))
        print(f"{machine()}; {chosen.images} images, {workers} workers, {chosen.rounds} rounds\n")
        for name, ours in (("epoch from the cache", again), ("first pass", first)):
            ratios = np.divide(plain, ours)
            low, middle, high = np.percentile(ratios, [25, 50, 75])
            rate = chosen.images / np.median(ours)
            print(f"{name}: {rate:.0f} images/s, {middle:.1f} times ImageFolder's "
                  f"(quartiles {low:.1f}-{high:.1f})")
        print(f"ImageFolder: {chosen.images / np.median(plain):.0f} images/s")
        print(f"memory of a first pass: {peak_of_first_pass(photos):.0f} MiB")
