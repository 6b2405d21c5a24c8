"""Both GANs at their defaults on the offline tissue, against the aims.

Runs the notebooks by papermill into a folder of their own, and reads what they wrote; with
`--runs` it reads runs that are there. Run: python benchmarks/gan_quality.py [--seed 1]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from common import machine

from synth_nb.training.log import read_metrics

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ["02_dcgan", "03_embedding_gan"]


def run(notebook: str, seed: int, outputs: Path, words: list[str]) -> Path:
    "Its folder."
    args = ["-p", "seed", str(seed), "-p", "outputs", str(outputs), "-p", "run_name", "quality"]
    command = [sys.executable, "-m", "papermill", f"nbs/{notebook}.ipynb", str(outputs / "o.ipynb")]
    subprocess.run([*command, *args, *words, "--no-progress-bar"], cwd=ROOT, check=True)
    return outputs / notebook / "quality"


def lines(folder: Path) -> list[str]:
    "A row per set of a run, judged by the network that had no part in it."
    rows = pd.read_csv(folder / "evaluation.csv")
    rows = rows[rows.extractor == rows.extractor.iloc[0]]
    values = rows.pivot(index="set", columns="metric", values="value")
    baseline = rows[rows.metric == "kernel"].set_index("set").floor_high
    copies = json.loads((folder / "evaluation.json").read_text())["copies"]
    share = {one["set"]: f"{one['flagged']:.1%}" for one in copies}
    log, found = read_metrics(folder), []
    for title in values.index:
        part = values.loc[title]
        ratio = part.kernel / values.kernel["untrained"]
        cells = [
            f"{part.kernel:.0f}", f"{baseline[title]:.0f}", f"{ratio:.2f}",
            f"{part.frechet:.0f}", f"{part.spread:.2f}", f"{part.recall:.2f}",
            share.get(title, ""),
        ]
        found.append(f"| {folder.parent.name}, {title} | {' | '.join(cells)} |")
    spent = f"{log[-1]['step']} steps, {log[-1]['seconds'] / 60:.1f} minutes"
    return [*found, f"| {folder.parent.name}: {spent} |" + " |" * 7]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="finished run folders")
    args, words = parser.parse_known_args()
    print(f"{machine()}, seed {args.seed}. Aims: kernel / untrained 0.5, diversity 0.7, 5 min\n")
    print("| | kernel ×1000 | real-vs-real | / untrained | Fréchet | diversity | recall | copies |")
    print("| --- |" + " --- |" * 7)
    with tempfile.TemporaryDirectory() as home:
        for folder in args.runs or (run(n, args.seed, Path(home), words) for n in NOTEBOOKS):
            print("\n".join(lines(folder)), flush=True)


if __name__ == "__main__":
    main()
