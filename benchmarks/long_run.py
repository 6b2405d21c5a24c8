"""What a long run leaves: memory and files over 200,000 steps; a million images in a data set.

The steps are those of the Trainer on a network of nine weights, with an evaluation, a row of the
log, a checkpoint and a line of progress every 2,000 of them; a snapshot at every tenth. Memory is
the resident set of the process, and files are those of the run folder and those that are open.
Every thousand images share their pixels, so that what is timed is the way to a batch and not the
disk: names, splits, hashes and order are those of a million.
Run: OMP_NUM_THREADS=1 python benchmarks/long_run.py [--quick]
"""

import argparse
import contextlib
import gc
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from common import machine
from torch import nn
from training_step import Numbers, square

from synth_nb.core.seeding import seed_everything
from synth_nb.data import Views
from synth_nb.data.dataset import ImageDataset
from synth_nb.training.loop import Phase, Trainer, TrainingConfig


def measured(folder: Path) -> dict:
    "What a run holds at the moment: MB of memory, files in its folder and their MB, open files."
    gc.collect()
    files, process = [p for p in folder.rglob("*") if p.is_file()], psutil.Process()
    return dict(memory=process.memory_info().rss / 1e6, files=len(files),
                size=sum(p.stat().st_size for p in files) / 1e6, open=process.num_fds())


def long_training(folder: Path, steps: int, epochs: int) -> list[dict]:
    "A training of tiny steps; what it held after each epoch."
    net, found = nn.Linear(8, 1), []
    phase = Phase(square, torch.optim.AdamW(net.parameters(), fused=True))
    config = TrainingConfig(epochs, 32, 32 * steps // epochs, device="cpu", precision="fp32",
                            snapshot_every=max(epochs // 10, 1))

    def evaluate(epoch: int) -> dict:
        found.append(dict(step=epoch * steps // epochs, **measured(folder)))
        return {}

    def save(at: Path):
        torch.save(net.state_dict(), at / "net.pt")

    trainer = Trainer(folder, Numbers(10_000), dict(net=net), [phase], config, dict(net=0.99),
                      evaluate, save)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trainer.fit()
    return found


def many_images(count: int) -> ImageDataset:
    "A data set of any size: 64x64 pixels in colour, the same for every thousandth image."
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 3, 64, 64), dtype=np.uint8)
    names, numbers = [f"{i:07}" for i in range(count)], np.arange(count)
    split = ["train" if i % 10 else "val" for i in range(count)]
    return ImageDataset("made on the spot", ["a", "b"], torch.from_numpy(numbers % 2), names,
                        names, split, None, None, hashes=names, pixels=pixels,
                        rows=numbers % 1000, skipped=[])


def open_and_step(folder: Path, count: int, weighted: bool, steps: int = 200) -> dict:
    "Seconds to open so many images and to begin a training on them; milliseconds of its steps."
    began = time.process_time()
    data = many_images(count)
    views = Views(data.train, "flip")
    if weighted:
        views.weights = torch.rand(len(views)).double()
    net = nn.Linear(3 * 64 * 64, 1)
    loss = lambda nets, batch: nets["net"](batch["image"].flatten(1)).square().mean()  # noqa: E731
    phase = Phase(loss, torch.optim.SGD(net.parameters(), 1e-3))
    config = TrainingConfig(1, 32, 32 * 10**6, device="cpu", precision="fp32")
    trainer = Trainer(folder / f"{count}-{weighted}", views, dict(net=net), [phase], config)
    opened = time.process_time() - began
    trainer.training_step()
    first, times = time.process_time() - began - opened, []
    for _ in range(steps):
        start = time.process_time()
        trainer.training_step()
        times.append(time.process_time() - start)
    return dict(opened=opened, first=first, step=1e3 * float(np.median(times)),
                fingerprint=_seconds(lambda: data.fingerprint))


def _seconds(call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def table(rows: list[dict], form: str = ".3g") -> str:
    "Rows as Markdown."
    head = list(rows[0])
    lines = [[f"{row[name]:,}" if isinstance(row[name], int) else row[name]
              if isinstance(row[name], str) else format(row[name], form) for name in head]
             for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2,000 steps and 100,000 images")
    chosen = parser.parse_args()
    seed_everything(0)
    print(machine(), "\n")
    steps, most = (2_000, 100_000) if chosen.quick else (200_000, 1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        found = long_training(Path(folder, "run"), steps, steps // (200 if chosen.quick else 2000))
        shown = found[:1] + found[9 :: len(found) // 10]
        print(table(shown, ".1f"), f"\n\n{time.process_time() - began:.0f} s of the processor\n")
        rows = [dict(images=count, weights="yes" if weighted else "no",
                     **open_and_step(Path(folder), count, weighted))
                for weighted in (False, True) for count in (most // 100, most)]
        print(table(rows))
