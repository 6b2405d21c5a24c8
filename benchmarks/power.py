"""Power up to 1024 images in a world of unlimited images, the table's CPU time, false alarms.

Run: OMP_NUM_THREADS=1 python benchmarks/power.py [--world letters] [--most 1024]

Prints the false alarms by exchange, the score to trust for each fault, its power and the images
that reach 0.8. Rows of the table are cached, and a study that was stopped goes on.
"""

import argparse
import time

import pandas as pd
from common import machine

from synth_nb.embedders import load_embedder
from synth_nb.evaluation.power import power_table
from synth_nb.evaluation.report import markdown
from synth_nb.evaluation.sentences import condense, images_needed, score_words
from synth_nb.evaluation.worlds import FAULTS, make_world


def to_the_end(world: str, most: int, draws: int, faults: list[str], embedder):
    "The table of one world, from 32 images to the most."
    counts, start = [n for n in (32, 64, 128, 256, 512, 1024) if n <= most], time.process_time()
    images = make_world(world, int(2 * most / 0.9) + 64, 64)
    table = power_table([images], embedder, counts, draws, 0, faults)
    print(f"{time.process_time() - start:.0f} CPU s, less what was cached", flush=True)
    quiet = table[table.fault == "none"]
    print(quiet.pivot_table(index="n", columns="metric", values="power").round(2).to_string())
    best, lines = condense(table), []
    for (fault, severity), part in best.groupby(["fault", "severity"], sort=False):
        need = images_needed(part)
        powers = dict.fromkeys(map(str, counts), "") | {
            str(n): f"{p:.2f}" for n, p in zip(part.n, part.power, strict=True)}
        lines.append({"fault": FAULTS[fault].sentence(severity),
                      "score": score_words(part.metric.iloc[0]), **powers,
                      "for 0.8": need or f"over {part.n.max()}"})
    print(markdown(pd.DataFrame(lines).set_index("fault")))
    order = table[(table.n == min(most, 128)) & table.rho.notna()].pivot_table(
        index="fault", columns="metric", values="rho")
    print(order.round(2).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--world", default="letters")
    parser.add_argument("--most", type=int, default=1024)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--faults", nargs="*", default=["none", *FAULTS])
    args = parser.parse_args()
    print(machine())
    encoder = load_embedder("efficientnet_lite2@64")
    to_the_end(args.world, args.most, args.draws, args.faults, encoder)
