"""Writing the tissue tiles of a slide against a plain loop of `read_region` and `save`.

Both sides know where the tissue is, read the same level and write PNG. The plain side comes in
three forms: as most scripts have it, with the compression of ours, and on as many threads too.
The slide is JPEG in tiles, as scanners write it, which takes `pip install imagecodecs`; it is
wide enough that a row of it does not fit OpenSlide's cache. Run: python benchmarks/tiles.py
"""

import argparse
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tifffile
from common import alternate, machine
from PIL import Image
from skimage.data import immunohistochemistry

from synth_nb.data.readers.slides import find_tiles, open_slide, write_slide_tiles


def write_slide(path, height, width):
    "Stained tissue in the middle of a slide, four levels, JPEG, 0.25 µm per pixel."
    tissue = immunohistochemistry()[:256, :256]
    pixels = np.full((height, width, 3), 242, np.uint8)
    part = pixels[height // 4 : -height // 4, width // 16 : -width // 16]
    repeats = -(-part.shape[0] // 256), -(-part.shape[1] // 256), 1
    part[:] = np.tile(tissue, repeats)[: part.shape[0], : part.shape[1]]
    with tifffile.TiffWriter(path, bigtiff=True) as f:
        for i in range(4):
            f.write(pixels, tile=(256, 256), photometric="rgb", compression="jpeg",
                    compressionargs={"level": 85}, subfiletype=int(i > 0),
                    resolution=(4e4 / 2**i,) * 2, resolutionunit="CENTIMETER")
            pixels = pixels[::2, ::2]


def ours(path, plan, names, out, workers):
    "Blocks, cut into tiles, by threads."

    def run():
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        write_slide_tiles(plan, names, out, workers)

    return run


def plain(path, plan, names, out, workers, **options):
    "One `read_region` and one `save` per tile."

    def write(item):
        (y, x), name = item
        size = plan.grid.side, plan.grid.side
        image = slide.read_region((x, y), plan.grid.level, size).convert("RGB")
        if plan.grid.side != plan.grid.tile:
            image = image.resize((plan.grid.tile,) * 2, Image.Resampling.BILINEAR)
        image.save(out / name, **options)

    def run():
        nonlocal slide
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        items = zip(plan.positions().tolist(), names, strict=True)
        with open_slide(path) as slide, ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(write, items):
                pass

    slide = None
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=2048, help="of the slide, pixels")
    parser.add_argument("--width", type=int, default=40960, help="of the slide, pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=4)
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    write_slide(folder / "slide.tif", chosen.height, chosen.width)
    print(f"{machine()}; median of {chosen.rounds} pairs, ratio of times with its quartiles\n")
    print("| tiles | against | ours, tiles/s | plain, tiles/s | ratio |")
    print("| --- | --- | --- | --- | --- |")
    same = dict(compress_level=1)
    for tile, mpp in ((224, 0.25), (512, 0.25), (224, 0.4)):
        plan = find_tiles(folder / "slide.tif", "slide", tile, mpp, 0.5)
        names = [f"{y}_{x}.png" for y, x in plan.positions().tolist()]
        sides = [(folder / "slide.tif", plan, names, folder / side) for side in ("ours", "plain")]
        for title, workers, options in (
            ("plain loop", 1, {}),
            ("same compression", 1, same),
            ("same compression and threads", chosen.workers, same),
        ):
            functions = ours(*sides[0], chosen.workers), plain(*sides[1], workers, **options)
            times = alternate(*functions, chosen.rounds, warm=1)
            speeds = [f"{len(names) / times[side]:.0f}" for side in ("ours", "theirs")]
            quartiles = f"{times['ratio']:.2f} ({times['low']:.2f}–{times['high']:.2f})"
            name = f"{len(names)} of {tile} px at {mpp} µm"
            print(f"| {name} | {title} | {' | '.join(speeds)} | {quartiles} |", flush=True)
    shutil.rmtree(folder)
