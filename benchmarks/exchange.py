"""How often the interval of the exchange rate covers the truth, in studies whose truth is known.

A study has two learning curves: of real labels alone, and of a synthetic set beside them that is
worth a known number of labels at each count. Subsets of a seed are nested, so the deviations of its
scores are alike; both curves share subsets and test units, which may profit differently from the
synthetic set. Run: python benchmarks/exchange.py

`--letters N` measures one study from images to sentence, by a probe and a small network: N unseen
letters of each class, drawn as the real ones are, stand for a perfect synthetic set.
"""

import argparse
from itertools import pairwise, product

import numpy as np
import pandas as pd

from synth_nb.embedders import load_embedder
from synth_nb.evaluation.exchange import exchange_rate, exchange_summary, learning_curves
from synth_nb.evaluation.report import markdown
from synth_nb.evaluation.worlds import make_world

COUNTS = np.array([5, 10, 20, 40, 80, 160])
CURVES = {"0.95 − 0.9/√n": lambda n: 0.95 - 0.9 / np.sqrt(n),
          "an S in log n": lambda n: 0.5 + 0.45 / (1 + (25 / n) ** 1.2),
          "nearly flat": lambda n: 0.9 - 0.05 / np.sqrt(n)}
WORTHS = {"20 labels": lambda n: 20 + 0 * n, "40, fading": lambda n: 40 * np.exp(-n / 30),
          "none": lambda n: 0 * n}


def study(score, worth, seeds: int, units: int, rng, profit: float = 0,
          noise: float = 0.01) -> list[np.ndarray]:
    # profit: deviation of a unit's profit, in deviations of the noise
    "Scores (K, S, U) of both curves."
    k = len(COUNTS)
    nested = rng.normal(0, noise, (k, seeds))[::-1].cumsum(0)[::-1]  # a subset and those in it
    nested /= np.sqrt(np.arange(k, 0, -1))[:, None]
    of_unit = rng.normal(0, 2 * noise, units) * (units > 1)
    arms = []
    for counts in (COUNTS, COUNTS + worth(COUNTS)):
        runs = score(counts)[:, None] + 0.7 * nested + 0.7 * rng.normal(0, noise, (k, seeds))
        rest = rng.normal(0, 2 * noise, (k, seeds, units)) * (units > 1)
        own = rng.normal(0, profit * noise, units) * (units > 1)
        arms.append(runs[:, :, None] + of_unit + own + rest)
    return arms


def covered(score, worth, seeds: int, units: int, profit: float, numbers) -> np.ndarray:
    # numbers: of the studies, for their noise
    "Whether the interval of each study covers the truth at each count (studies, K)."
    found, truth = [], worth(COUNTS)
    for number in numbers:
        rng = np.random.default_rng([number, seeds, units])
        table = exchange_rate(COUNTS, *study(score, worth, seeds, units, rng, profit))
        found.append((table.low <= truth + 1e-9) & (truth <= table.high + 1e-9))
    return np.array(found)


def letters(beside: int, seeds: int = 5):
    "Learning curves with letters, alone and beside as many unseen ones of each class."
    ends = 6 * np.cumsum([0, 81, beside, 60])  # six letters, one of each in six images
    world = make_world("letters", ends[-1], 32)
    train, fake, test = (world.select(range(a, b)) for a, b in pairwise(ends))
    embedder = load_embedder("efficientnet_lite0@32")
    for name, curves in learning_curves(train, test, fake, embedder, 4, seeds).items():
        table = exchange_rate(*curves)
        print(f"{name}: {exchange_summary(table, f'{beside} unseen letters of each class')}")
        print(markdown(table.set_index("count")), flush=True)


def main(words: list[str] | None = None) -> pd.DataFrame | None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", default=200, type=int, help="of each kind")
    parser.add_argument("--quick", action="store_true", help="fewer kinds and studies, for tests")
    parser.add_argument("--letters", type=int, help="unseen letters of each class")
    args = parser.parse_args(words)
    if args.letters:
        return letters(args.letters)
    sizes = [(5, 1, 0), (5, 8, 0)] if args.quick else [
        (seeds, *units) for units in ((1, 0), (8, 0), (30, 0), (8, 2), (30, 2))
        for seeds in (3, 5, 10)]
    curves = dict([*CURVES.items()][:1]) if args.quick else CURVES
    studies, rows = 60 if args.quick else args.studies, []
    for i, ((curve, score), (name, worth)) in enumerate(product(curves.items(), WORTHS.items())):
        for seeds, units, profit in sizes:
            numbers = range(i * studies, (i + 1) * studies)  # of other noise in every kind
            inside = covered(score, worth, seeds, units, profit, numbers).mean(0)
            rows.append(dict(curve=curve, worth=name, seeds=seeds, units=units, profit=profit,
                             coverage=inside.mean(), lowest=inside.min(), highest=inside.max()))
    table = pd.DataFrame(rows)
    print(markdown(table.set_index("curve")))
    print(markdown(table.groupby(["units", "profit", "seeds"]).coverage.agg(["min", "mean", "max"])
                   .reset_index().set_index("units")))
    return table


if __name__ == "__main__":
    main()
