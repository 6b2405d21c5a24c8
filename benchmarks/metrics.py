"""Metrics against published tools on the same features: how far the numbers differ, and the time.

The other sides: torch-fidelity (Fréchet and kernel distance, inception score), a Fréchet distance
with `scipy.linalg.sqrtm` as many tools have it, and the `prdc` package. Features are like a
network's: non-negative, correlated, steep spectrum. Time of PRDC is CPU time, since both sides use
threads differently. Needs torch-fidelity and prdc; run: python benchmarks/metrics.py [--large]
"""

import argparse
import contextlib
import io
import time

import numpy as np
import scipy.linalg
import torch
from common import machine
from prdc import compute_prdc
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from synth_nb.metrics import (
    frechet_distance,
    inception_score,
    kernel_distance_subsets,
    prdc,
)


def features(n: int, width: int, shift: float, seed: int) -> torch.Tensor:
    "Non-negative, correlated features (n, width) float64."
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, width + 1) ** -0.75 * (1 + shift)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(7)) / width**0.5
    x = torch.randn(n, width, generator=generator) * scale
    return (3 * x @ mix + 0.4 + shift).abs().double()


def sqrtm_distance(real, fake):
    "Fréchet distance with a matrix square root."
    x, y = real.numpy(), fake.numpy()
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s @ t)
    mean = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return mean + np.trace(s) + np.trace(t) - 2 * np.trace(root.real)


def fidelity_distance(real, fake):
    "torch-fidelity's Fréchet distance."
    first, second = map(fid_features_to_statistics, (real, fake))
    return fid_statistics_to_metric(first, second, False)["frechet_inception_distance"]


def fidelity_kernel(real, fake, size):
    "torch-fidelity's kernel distance over 20 subsets."
    found = kid_features_to_metric(
        real, fake, kid_subsets=20, kid_subset_size=size, rng_seed=2020, verbose=False
    )
    return found["kernel_inception_distance_mean"]


def fidelity_inception(p):
    "torch-fidelity's inception score from logits."
    found = isc_features_to_metric(p.log(), 10, True, 2020)
    return found["inception_score_mean"]


def package_prdc(real, fake):
    "The prdc package, silenced."
    with contextlib.redirect_stdout(io.StringIO()):
        return compute_prdc(real.numpy(), fake.numpy(), 5)


def compare(name, ours, theirs, rounds, clock=time.perf_counter):
    "Alternate both sides, and print a line of the table."
    seconds, ratios, values = ([], []), [], {}
    for number in range(rounds + (rounds > 1)):  # the first pair only warms up
        took = {}
        for side in ((0, 1), (1, 0))[number % 2]:
            start = clock()
            values[side] = (ours, theirs)[side]()
            took[side] = clock() - start
        if number or rounds == 1:
            ratios.append(took[0] / took[1])
            for side in (0, 1):
                seconds[side].append(took[side])
    a, b = (np.array(list(v.values()) if isinstance(v, dict) else [v]) for v in values.values())
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    difference = np.max(np.abs(a - b) / np.abs(b))
    times = " | ".join(f"{np.median(s):.2f}" for s in seconds)
    quartiles = f"{middle:.3f} ({low:.3f}–{high:.3f})"
    print(f"| {name} | {difference:.1e} | {times} | {quartiles} | {rounds} |", flush=True)


def main(large: bool, rounds: int):
    "Print the table."
    print(f"{machine()}; median of the pairs, ratio with its quartiles\n")
    print("| against | relative difference | ours, s | theirs, s | ratio of times | pairs |")
    print("| --- | --- | --- | --- | --- | --- |")
    for n, width, pairs in ((500, 2048, 1), (5000, 512, rounds), (300, 512, rounds)):
        x, y = features(n, width, 0, 0), features(n, width, 0.1, 1)
        what = f"Fréchet, N = {n}, D = {width}"
        for side, other in (("torch-fidelity", fidelity_distance), ("sqrtm", sqrtm_distance)):
            both = [lambda f=f, x=x, y=y: f(x, y) for f in (frechet_distance, other)]
            compare(f"{what}: {side}", *both, pairs)
    x, y = features(2000, 2048, 0, 0), features(2000, 2048, 0.1, 1)
    compare(
        "kernel, 20 subsets of 500, D = 2048: torch-fidelity",
        lambda: kernel_distance_subsets(x, y, 20, 500, 2020)["mean"],
        lambda: fidelity_kernel(x, y, 500),
        rounds,
    )
    p = (8 * features(5000, 100, 0, 2)).softmax(1)
    compare(
        "inception score, N = 5000, K = 100, 10 splits: torch-fidelity",
        lambda: inception_score(p, 10, seed=2020)["mean"],
        lambda: fidelity_inception(p),
        rounds,
    )
    for n, width in ((4000, 512), (4000, 2048)):
        x, y = features(n, width, 0, 0).float(), features(n, width, 0.02, 1).float()
        both = [lambda f=f, x=x, y=y: f(x, y) for f in (prdc, package_prdc)]
        compare(f"PRDC, N = {n}, D = {width}: prdc, CPU time", *both, rounds, time.process_time)
    if large:
        x, y = features(10000, 2048, 0, 0), features(10000, 2048, 0.1, 1)
        for side, other in (("torch-fidelity", fidelity_distance), ("sqrtm", sqrtm_distance)):
            both = [lambda f=f: f(x, y) for f in (frechet_distance, other)]
            compare(f"Fréchet, N = 10000, D = 2048: {side}", *both, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="also N = 10000, D = 2048: minutes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    main(chosen.large, chosen.rounds)
