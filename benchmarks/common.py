"What several benchmarks need: two sides timed in turn, and images to plant copies of."

import io
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from synth_nb.data import open_dataset
from synth_nb.embedders import image_keys


def machine() -> str:
    "Processor, threads, versions and date, for the head of a table."
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = {line.split(":")[1].strip() for line in lines if line.startswith("model name")}
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ", ".join(names)
    system = name or platform.processor()
    return f"{system}, {torch.get_num_threads()} threads, torch {torch.__version__}, {date.today()}"


def alternate(ours, theirs, rounds: int = 20, warm: int = 3, clock=time.perf_counter) -> dict:
    "Run two functions in turn; seconds of each and the ratio pair by pair: median, low, high."
    times = {"ours": [], "theirs": []}
    for number in range(warm + rounds):
        order = [("ours", ours), ("theirs", theirs)]
        for name, function in order if number % 2 else reversed(order):
            start = clock()
            function()
            times[name].append(clock() - start)
    pairs = list(zip(times["ours"][warm:], times["theirs"][warm:], strict=True))
    ratios = sorted(a / b for a, b in pairs)
    quarter = len(ratios) // 4
    return dict(
        ours=statistics.median(a for a, _ in pairs),
        theirs=statistics.median(b for _, b in pairs),
        ratio=statistics.median(ratios),
        low=ratios[quarter],
        high=ratios[-1 - quarter],
    )


def row(name: str, result: dict) -> str:
    "A line of the Markdown table."
    times = f"{1e3 * result['ours']:.0f} | {1e3 * result['theirs']:.0f}"
    return (
        f"| {name} | {times} | {result['ratio']:.3f} ({result['low']:.3f}–{result['high']:.3f}) |"
    )


def different_images(data: str, size: int, channels: int, count: int) -> np.ndarray:
    "As many images of a data set, uint8 (N, C, H, W), all different. Ends where there are too few."
    options = dict(n=count) if data.endswith("phantom") else {}
    ds = open_dataset(data, size, channels, **options)
    once = sorted({key: i for i, key in enumerate(image_keys(ds.images))}.values())
    images = ds.images[np.random.default_rng(0).permutation(once)[:count]]
    if len(images) < count:
        raise SystemExit(f"{data} has {len(images)} images, {count} are needed")
    return images


def recompressed(image: np.ndarray, quality: int) -> np.ndarray:  # (C, H, W) uint8
    "An image after JPEG."
    stored = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(stored, "JPEG", quality=quality)
    return np.asarray(Image.open(stored)).reshape(*image.shape[1:], -1).transpose(2, 0, 1)
