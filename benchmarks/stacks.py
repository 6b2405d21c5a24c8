"""06_em_stacks seed by seed: do neighbouring sections agree?

    OMP_NUM_THREADS=1 python benchmarks/stacks.py --seeds 1 2 [-p epochs 25 …]

Runs the notebook by papermill, at its defaults unless told otherwise, into a folder of its own, and
prints the tables that it wrote.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from common import machine

from synth_nb.training.log import read_metrics

ROOT = Path(__file__).parent.parent


def run(seed: int, outputs: Path, words: list[str]) -> Path:
    "Its folder."
    own = ["-p", "seed", str(seed), "-p", "outputs", str(outputs)]
    command = [sys.executable, "-m", "papermill", "nbs/06_em_stacks.ipynb", outputs / "out.ipynb"]
    subprocess.run([*command, *own, *words, "-p", "run_name", f"seed_{seed}", "--no-progress-bar"],
                   cwd=ROOT, check=True)
    return outputs / "06_em_stacks" / f"seed_{seed}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args, words = parser.parse_known_args()
    print(machine())
    with tempfile.TemporaryDirectory() as home:
        for seed in args.seeds:
            folder = run(seed, Path(home), words)
            last, table = read_metrics(folder)[-1], (folder / "stacks.md").read_text()
            print(f"\nseed {seed}: {last['step']} steps, {last['seconds'] / 60:.1f} minutes, "
                  f"held-out loss {last['loss_held_out']:.3f}\n\n{table}", flush=True)


if __name__ == "__main__":
    main()
