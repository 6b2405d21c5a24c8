"""Opening many small files: plain class folders against the layouts that people have.

Every layout holds as many files of 16 px, so that names and tables weigh as much as they can beside
reading. The cache is warm: a layout is listed, read and hashed, and nothing is decoded. Times are
of the CPU. `--old` names a package that holds an older version of the library, to open the plain
folder with it too. Run: python benchmarks/opening.py [--files 100000] [--rounds 3]
[--only mask] [--old PACKAGE]
"""

import argparse
import importlib
import io
import os
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
from common import machine
from PIL import Image

from synth_nb.data import open_dataset


def encoded(pixels: np.ndarray) -> bytes:
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def layouts(n: int) -> dict[str, dict[str, str]]:
    "Layout → name of each file → `image` or `mask`, or the text of a table."
    plain = {f"{'ab'[i % 2]}/{i:06}.png": "image" for i in range(n)}
    pairs = {f"{'ab'[i % 2]}/{i:06}{end}.png": kind for i in range(n // 2)
             for end, kind in (("", "image"), ("_mask", "mask"))}  # fmt: skip
    folders = {f"{kind}s/{'ab'[i % 2]}/{i:06}.png": kind for i in range(n // 2)
               for kind in ("image", "mask")}  # fmt: skip
    wrapped = {f"archive/set/{part}_images/{'ab'[i % 2]}/{i:06}.png": "image"
               for i, part in enumerate(["train", "test"] * (n // 2))}  # fmt: skip
    table = {f"images/{i:06}.png": "image" for i in range(n)}
    table["labels.csv"] = "id,label\n" + "".join(f"{i:06},{'ab'[i % 2]}\n" for i in range(n))
    return {"class folders": plain, "a mask beside each image": pairs, "images and masks": folders,
            "wrapped, split words": wrapped, "a table of labels": table}  # fmt: skip


def write(folder: Path, files: dict[str, str]) -> Path:
    draw = np.random.default_rng(0)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 255
    mask = encoded(mask)
    for parent in {Path(name).parent for name in files}:
        (folder / parent).mkdir(parents=True, exist_ok=True)
    for name, kind in files.items():
        pixels = draw.integers(0, 256, (16, 16), dtype=np.uint8) if kind == "image" else None
        content = encoded(pixels) if kind == "image" else mask if kind == "mask" else kind.encode()
        (folder / name).write_bytes(content)
    return folder


def packed(folder: Path) -> Path:
    "The same as a zip."
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as file:
        for one in sorted(folder.rglob("*.png")):
            file.write(one, one.relative_to(folder))
    return path


def cpu_seconds(opener, path: Path) -> float:
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opener(path, 16, channels=1)
    return time.process_time() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="a word of the layouts to open")
    parser.add_argument("--old", default="", help="package of an older version of the library")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        os.environ["SYNTH_NB_CACHE"] = str(Path(base) / "cache")
        paths = {name: write(Path(base) / str(i), files)
                 for i, (name, files) in enumerate(layouts(chosen.files).items())
                 if chosen.only in name or not i}  # fmt: skip
        if chosen.only in "a zip":
            paths["class folders in a zip"] = packed(paths["class folders"])
        openers = {name: (open_dataset, path) for name, path in paths.items()}
        if chosen.old:
            old = importlib.import_module(f"{chosen.old}.data").open_dataset
            openers = {"class folders, before": (old, paths["class folders"])} | openers
        for opener, path in openers.values():
            cpu_seconds(opener, path)  # decoded once
        times = {name: [] for name in openers}
        for _ in range(chosen.rounds):
            for name, (opener, path) in openers.items():
                times[name].append(cpu_seconds(opener, path))
        first = np.array(next(iter(times.values())))
        print(f"{machine()}; {chosen.files:,} files, {chosen.rounds} rounds, alternating\n")
        for name, found in times.items():
            low, middle, high = np.quantile(np.array(found) / first, [0, 0.5, 1])
            print(f"| {name} | {np.median(found):.1f} | {middle:.2f} ({low:.2f} … {high:.2f}) |")
