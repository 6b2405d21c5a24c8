"""Power up to 1024 images in a world of unlimited images, the table's CPU time, false alarms.

Run: OMP_NUM_THREADS=1 python benchmarks/power.py [--world letters] [--most 1024] [--draws 100]

Prints the score to trust for each fault, its power and the images that reach 0.8; then false alarms
of two rules, halvings of the real images and exchanges between both sides, and for the exchanges
also the power. Rows of the table are cached, and a study that was stopped goes on.
"""

import argparse
import time

import numpy as np
import pandas as pd
import torch
from common import machine

from synth_nb.embedders import load_embedder
from synth_nb.evaluation.power import (
    DIRECTION,
    OF_COPIES,
    PAIRED,
    Grams,
    chooser,
    draw_scores,
    exchange_alarms,
    fault_pool,
    make_pools,
    power_table,
    take_draws,
)
from synth_nb.evaluation.report import markdown
from synth_nb.evaluation.sentences import condense, images_needed, score_words
from synth_nb.evaluation.worlds import FAULTS, make_world


def to_the_end(world: str, most: int, draws: int, embedder):
    "The table of one world, from 32 images to the most."
    counts = [n for n in (32, 64, 128, 256, 512, 1024) if n <= most]
    start, rows = time.process_time(), []
    images = make_world(world, int(2 * most / 0.9) + 64, 64)
    for fault in ("none", *FAULTS):
        rows.append(power_table([images], embedder, counts, draws, 0, [fault]))
        print(f"{fault}: {time.process_time() - start:.0f} CPU s so far", flush=True)
    table = pd.concat(rows)
    best, lines = condense(table), []
    for (fault, severity), part in best.groupby(["fault", "severity"], sort=False):
        need = images_needed(part)
        powers = {str(n): f"{p:.2f}" for n, p in zip(part.n, part.power, strict=True)}
        lines.append({"fault": FAULTS[fault].sentence(severity),
                      "score": score_words(part.metric.iloc[0]), **powers,
                      "for 0.8": need or f"over {most}"})
    print(markdown(pd.DataFrame(lines).set_index("fault")))
    order = table[(table.n == most) & table.rho.notna()].pivot_table(
        index="fault", columns="metric", values="rho")
    print(order.round(2).to_string())


def halvings(grams: Grams, n: int, wanted: set[str], studies: int) -> dict[str, list[bool]]:
    "Alarms beyond all of 19 halvings of 2n real images, without a fault."
    alarms, choose = {name: [] for name in wanted}, chooser(grams.fake, "", 0, 0)
    for study in range(studies):
        rng = np.random.default_rng([n, 6, study])
        rows = rng.permutation(len(grams.a))
        null = take_draws(grams, choose, n, wanted, 19, [n, 7, study], rows[: 2 * n])
        a, b = torch.from_numpy(rows[:n]), torch.from_numpy(rows[2 * n : 3 * n])
        found = draw_scores(grams, a, b, grams.fake.labels[b.numpy()], wanted, rng)
        for name, value in found.items():
            alarms[name].append(DIRECTION[name] * value > null[name].max())
    return alarms


def rules(worlds: list[str], n: int, studies: int, embedder):
    "False alarms of both rules, and the power of the second."
    wanted, alarms, powers = PAIRED | {"frechet", "vendi"} | OF_COPIES, {}, []
    best = {"dropped": "recall", "blur": "frechet", "cast": "kernel", "averages": "cmmd",
            "unbalanced": "cmmd", "copies": "copies", "labels": "kernel_by_class"}
    for world in worlds:
        pools = make_pools(make_world(world, 450, 64), embedder)
        grams, plain = Grams(pools, pools.pool), chooser(pools.pool, "", 0, 0)
        for rule, found in (("halvings", halvings(grams, n, wanted, studies)),
                            ("exchanges", exchange_alarms(grams, plain, n, wanted, [n], studies))):
            for name, x in found.items():
                alarms.setdefault((rule, name), []).append(np.mean(x))
        for fault, score in best.items():
            severity = FAULTS[fault].severities[1]
            pool, behind = fault_pool(pools, fault, severity)
            both = Grams(pools, pool, grams.real)
            choose = chooser(pool, fault, severity, behind)
            null = take_draws(grams, plain, n, {score}, 199, [n, 8])[score]
            found = take_draws(both, choose, n, {score}, 100, [n, 9])[score]
            mine = exchange_alarms(both, choose, n, {score}, [n, 10], 100)[score]
            powers.append(dict(world=world, fault=FAULTS[fault].sentence(severity), score=score,
                               table=np.mean(found > np.sort(null)[-10]), exchange=np.mean(mine)))
        print(f"{world}: {time.process_time():.0f} CPU s", flush=True)
    lines = pd.DataFrame(alarms, worlds).T.round(3)
    print(f"{studies} studies of {n} images in each world\n{lines.to_string()}")
    print(pd.DataFrame(powers).round(2).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--world", default="letters")
    parser.add_argument("--most", type=int, default=1024)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--rules", type=int, default=0, help="studies of each rule")
    args = parser.parse_args()
    print(machine())
    encoder = load_embedder("efficientnet_lite2@64")
    if args.rules:
        rules(["letters", "phantoms", "sections"], 64, args.rules, encoder)
    else:
        to_the_end(args.world, args.most, args.draws, encoder)
