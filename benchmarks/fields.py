"""Fields larger than a patch: seams, time, crops and memory.

    python benchmarks/fields.py outputs/05_e2i/my_run            # seams, time, kernel distance
    python benchmarks/fields.py outputs/05_e2i/my_run 2048       # time alone, of a larger field
    python benchmarks/fields.py outputs/05_e2i/my_run crops      # crops against patches, 8 seeds
    python benchmarks/fields.py memory                           # peak memory by the field's side

The first takes a run of 05_e2i on the demo. Its fields follow the grid of embeddings of the demo's
own photograph, so that real crops, crops of fields and patches have the same mixture of tissue.
The second draws the weights of networks that are far too small, for two steps.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t
from skimage.data import immunohistochemistry

from synth_nb.core.runs import load_model
from synth_nb.data import to_uint8
from synth_nb.data.pyramid import read_region
from synth_nb.diffusion.conditions import EmbeddingConditioner
from synth_nb.diffusion.experiment import ConditionedModel
from synth_nb.diffusion.fields import EmbeddingField, seam_lines, tokens_at, write_field
from synth_nb.embedders import embed_images, load_embedder
from synth_nb.metrics import kernel_distance
from synth_nb.metrics.seams import seam_auc
from synth_nb.metrics.uncertainty import confidence_interval

MEMORY_SIDES = 1024, 4096, 16384
WAYS = {  # how fields are denoised
    "shifts, last step overlaps (default)": {},
    "shifts alone": dict(overlap_steps=0),
    "overlap of half a window at every step": dict(overlap=0.5, overlap_steps=1000, shifted=False),
}


def photograph_grid(model: ConditionedModel) -> tuple[np.ndarray, EmbeddingField]:
    "The demo's photograph (512, 512, 3), and the embeddings of its 8×8 tiles."
    image, embedder = immunohistochemistry(), model.embedder()
    tiles = image.reshape(8, 64, 8, 64, 3).transpose(0, 2, 4, 1, 3).reshape(64, 3, 64, 64)
    values = embed_images(embedder, np.ascontiguousarray(tiles))
    return image, EmbeddingField(values.unflatten(0, (8, 8)), embedder.id)


def crops_of(image: np.ndarray, count: int, seed: int) -> np.ndarray:
    "Crops (count, C, 64, 64) at random corners of an image (H, W, C)."
    corners = np.random.default_rng(seed).integers(0, [n - 63 for n in image.shape[:2]], (count, 2))
    return np.stack([image[y : y + 64, x : x + 64] for y, x in corners]).transpose(0, 3, 1, 2)


def independent(model, cells, side: int, seed: int, **options) -> tuple[np.ndarray, float]:
    "An image of independent patches side by side (side, side, C), and CPU seconds."
    n, values = side // 64, cells.values[:, :, None]
    x, start = (torch.arange(n) + 0.5) / n, time.process_time()
    wanted = torch.cat([tokens_at(values, (r + 0.5) / n, x)[:, 0] for r in range(n)])
    images = to_uint8(model.sample_for(wanted, seed, best_of=1, **options).images)
    image = images.unflatten(0, (n, n)).permute(0, 3, 1, 4, 2).reshape(side, side, -1).numpy()
    return image, time.process_time() - start


def field(model, cells, side: int, seed: int, folder: Path, **options) -> tuple[np.ndarray, float]:
    "A field (side, side, C), and CPU seconds with its file."
    start = time.process_time()
    path = write_field(model, cells, folder / "field.tif", (side, side), seed=seed, **options)
    seconds = time.process_time() - start
    return read_region(path, 0, 0, side, side), seconds


def quality(run: str, side: int = 768, steps=(8, 20), seeds=(0,)):
    model, folder = load_model(run, "cpu"), Path(tempfile.mkdtemp())
    photograph, cells = photograph_grid(model)
    evaluator = load_embedder("efficientnet_lite2@64")
    real = embed_images(evaluator, crops_of(photograph, 256, 9))
    print("| steps | seed | way | AUC last windows | AUC decoder | AUC edges of patches "
          "| CPU s/MP | of patches | kernel ×1000 |\n" + "|---" * 9 + "|")
    for count in steps:
        for seed in seeds if count == steps[0] else seeds[:1]:
            options = dict(sampling_steps=count)
            image, base = independent(model, cells, side, seed, **options)
            lines = seam_lines(model, (side, side), seed=seed, **options)
            edges = {"edges of patches": lines["edges of patches"]}
            report(count, seed, "independent patches", image, edges, base, base, evaluator, real)
            for name, way in list(WAYS.items())[: None if count == steps[0] else 1]:
                image, seconds = field(model, cells, side, seed, folder, **options, **way)
                lines = seam_lines(model, (side, side), seed=seed, **options, **way)
                report(count, seed, name, image, lines, seconds, base, evaluator, real)


def report(steps, seed, name, image, lines, seconds, base, evaluator, real):
    "A row of the table."
    aucs = [f"{seam_auc(image, *lines[key], 4)['auc']:.2f}" if key in lines else ""
            for key in ("windows of the last step", "windows of the decoder", "edges of patches")]
    features = embed_images(evaluator, crops_of(image, 256, 1), cache=False)
    if "independent" in name:  # the patches themselves, not crops across their edges
        features = embed_images(evaluator, tiles_of(image))
    k = confidence_interval(kernel_distance, real, features, 100)
    cells = [steps, seed, name, *aucs, f"{seconds / image[..., 0].size * 1e6:.1f}",
             f"{seconds / base:.2f}",
             " ".join(f"{1000 * k[part]:.0f}" for part in ("value", "low", "high"))]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def crops(run: str, side: int = 768, seeds: int = 8):
    "Distances of crops of fields and of independent patches to real crops, paired by seed."
    model, folder = load_model(run, "cpu"), Path(tempfile.mkdtemp())
    photograph, cells = photograph_grid(model)
    print("| extractor | crops of fields | patches | difference (95 %) |\n" + "|---" * 4 + "|")
    images = [(crops_of(field(model, cells, side, seed, folder)[0], 144, seed),
               tiles_of(independent(model, cells, side, seed)[0])) for seed in range(seeds)]
    for name in ("efficientnet_lite2", "efficientnet_lite1"):
        evaluator = load_embedder(name)
        real = embed_images(evaluator, crops_of(photograph, 256, 9))
        found = 1000 * np.array([[kernel_distance(real, embed_images(evaluator, x, cache=False))
                                  for x in pair] for pair in images])
        apart = found[:, 0] - found[:, 1]
        half = t.ppf(0.975, seeds - 1) * apart.std(ddof=1) / seeds**0.5
        means = " | ".join(f"{a:.0f} ± {b:.0f}" for a, b in zip(
            found.mean(0), found.std(0, ddof=1), strict=True))
        print(f"| {name} | {means} | {apart.mean():+.0f} ({apart.mean() - half:+.0f} to "
              f"{apart.mean() + half:+.0f}) |", flush=True)


def tiles_of(image: np.ndarray) -> np.ndarray:  # (H, W, C) → (N, C, 64, 64)
    tiles = image.reshape(image.shape[0] // 64, 64, -1, 64, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(tiles.reshape(-1, 3, 64, 64))


def timing(run: str, side: int):
    "CPU seconds for a megapixel of a field, and of as much of independent patches as fits in 1024."
    model, folder = load_model(run, "cpu"), Path(tempfile.mkdtemp())
    cells, small = photograph_grid(model)[1], min(side, 1024)
    ours = field(model, cells, side, 0, folder)[1] / side**2
    theirs = independent(model, cells, small, 0)[1] / small**2
    print(f"{side} pixels: {1e6 * ours:.1f} against {1e6 * theirs:.1f} CPU s/MP, "
          f"{ours / theirs:.2f}")


def tiny_model() -> ConditionedModel:
    "A model of 64×64 patches with drawn weights, a hundredth of the smallest layout."
    from synth_nb.diffusion.autoencoder import new_autoencoder
    from synth_nb.diffusion.model import unet_from_layout
    from synth_nb.diffusion.objective import new_scheduler
    from synth_nb.diffusion.pipeline import new_pipeline

    torch.manual_seed(0)
    layout = dict(widths=(8, 8), layers=1, attends=(False, False), width=8, heads=8, groups=8)
    unet = unet_from_layout(layout, 8).eval().requires_grad_(False)
    vae = new_autoencoder(widths=(8, 8, 8)).eval().requires_grad_(False)
    conditioner = EmbeddingConditioner("none", torch.zeros(8), torch.eye(8))
    settings = dict(image_size=(64, 64), guidance_scale=1.0, sampling_steps=2)
    return ConditionedModel(new_pipeline(vae, unet, new_scheduler()), conditioner,
                            torch.zeros(1, 8), torch.zeros(1), settings)


def memory_of(side: int):
    "One field, and the peak of this process's memory before and after it."
    def peak():
        text = Path("/proc/self/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0]) / 1024

    model, cells = tiny_model(), EmbeddingField(torch.randn(2, 2, 8), "none")
    with tempfile.TemporaryDirectory() as folder:
        write_field(model, cells, Path(folder) / "warm.tif", (512, 512))
        before, start = peak(), time.process_time()
        path = write_field(model, cells, Path(folder) / "field.tif", (side, side))
        seconds, size = time.process_time() - start, path.stat().st_size
    print(f"| {side} | {before:.0f} | {peak():.0f} | {size / 1e6:.0f} | {seconds:.0f} |",
          flush=True)


def memory():
    head = "| side, pixels | peak MB before | peak MB after | slide MB | CPU s |"
    print(head + "\n" + "|---" * 5 + "|", flush=True)
    for side in MEMORY_SIDES:
        subprocess.run([sys.executable, __file__, "memory", str(side)], check=True,
                       env=os.environ | dict(OMP_NUM_THREADS="1"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["memory"]:
        memory()
    elif sys.argv[1] == "memory":
        memory_of(int(sys.argv[2]))
    elif sys.argv[2:] == ["crops"]:
        crops(sys.argv[1])
    elif len(sys.argv) > 2:
        timing(sys.argv[1], int(sys.argv[2]))
    else:
        quality(sys.argv[1])
