"""The demo of `make run`, from nothing: time, memory, and its table against the aims.

Runs the notebook by papermill with a cache and an output folder of its own, so that nothing is
reused. Run: python benchmarks/demo_quality.py [--epochs 10]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from common import machine

ROOT = Path(__file__).parent.parent


def run(epochs: int, seed: int, folder: Path) -> tuple[Path, float, float]:
    "One run in an empty folder: its folder, wall seconds, peak memory in GiB of one process."
    values = dict(epochs=epochs, seed=seed, outputs=folder, run_name="demo")
    words = [word for k, v in values.items() for word in ("-p", k, str(v))]
    command = [sys.executable, "-m", "papermill", "nbs/05_e2i.ipynb", str(folder / "out.ipynb")]
    start = time.monotonic()
    environment = os.environ | {"SYNTH_NB_CACHE": str(folder / "cache")}
    subprocess.run([*command, *words, "--no-progress-bar"], cwd=ROOT, env=environment, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return folder / "05_e2i" / "demo", time.monotonic() - start, peak


def aims(folder: Path, extractor: str, seconds: float, peak: float) -> list[tuple]:
    "What was aimed at: name, measured, aim, met or not."
    numbers, fidelity = (pd.read_csv(folder / f"{name}.csv") for name in ("evaluation", "fidelity"))
    mine = numbers[(numbers.extractor == extractor) & (numbers.metric == "kernel")]
    kernel = mine.set_index("set").value
    fidelity = fidelity[fidelity.extractor == extractor].set_index("set").loc["synthetic"]
    found = [
        ("notebook, minutes", seconds / 60, 8),
        ("peak memory, GiB", peak, 4),
        ("kernel distance, synthetic / untrained", kernel["synthetic"] / kernel["untrained"], 0.5),
        (
            "kernel distance, synthetic / reconstructions",
            kernel["synthetic"] / kernel["reconstructions"],
            1.5,
        ),
    ]
    rows = [(name, value, f"at most {aim}", value <= aim) for name, value, aim in found]
    times = fidelity["times_chance"]
    return [*rows, ("retrieval top-1, times chance", times, "at least 10", times >= 10)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done, seconds, peak = run(chosen.epochs, chosen.seed, Path(folder))
        extractor = next(iter(json.loads((done / "evaluation.json").read_text())["extractors"]))
        print(f"{machine()}; {chosen.epochs} epochs, seed {chosen.seed}, judged by {extractor}\n")
        print("| | measured | aim | met |\n| --- | --- | --- | --- |")
        for name, value, aim, met in aims(done, extractor, seconds, peak):
            print(f"| {name} | {value:.2f} | {aim} | {'yes' if met else 'no'} |")
        print(f"\n{(done / 'evaluation.md').read_text()}")
