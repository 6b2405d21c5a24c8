"""Which share of planted copies a release refuses, by kind, and of unseen real images.

In every repeat other unseen images set the threshold and other images are judged; the copies are
of other training images. Run: python benchmarks/release.py [--data WORD] [--alpha 0.05] …
"""

import argparse

import numpy as np
import pandas as pd
import torch
from common import different_images, machine, recompressed

from synth_nb.data import view
from synth_nb.embedders import load_embedder
from synth_nb.evaluation.copies import SAME_IMAGE, SymmetricViews
from synth_nb.evaluation.release import conformal_p, nearness, shared_units, space_rows
from synth_nb.evaluation.report import markdown


def stored(image: np.ndarray, rng) -> np.ndarray:  # (C, H, W) uint8
    "JPEG at a quality of 50 to 90."
    return recompressed(image, int(rng.integers(50, 91)))


def brighter(image: np.ndarray, rng) -> np.ndarray:
    "Brighter or darker by 10 to 40 of 255."
    return np.clip(image + rng.choice([-1, 1]) * rng.uniform(10, 40), 0, 255).astype(np.uint8)


def turned(image: np.ndarray, rng) -> np.ndarray:
    "In another of the eight symmetries."
    return view(torch.from_numpy(np.array(image)), int(rng.integers(1, 8))).numpy()


def planted(images: np.ndarray, row: int, kind: str, rng) -> np.ndarray:  # (C, H, W) uint8
    "A copy of a training image."
    image = images[row]
    if kind == "mirrored":
        return image[..., ::-1]
    if kind == "blend of 80 to 100 %":
        other = images[(row + rng.integers(1, len(images))) % len(images)]
        share = rng.uniform(0.8, 1)
        return (share * image + (1 - share) * other).round().astype(np.uint8)
    steps = dict(plain=[], turned=[turned], recompressed=[stored], brighter=[brighter])
    for change in steps.get(kind, [turned, brighter, stored]):
        image = change(image, rng)
    return image


KINDS = ("plain", "mirrored", "turned", "recompressed", "brighter", "blend of 80 to 100 %",
         "turned, brighter and recompressed")


def settings(words: list[str] | None = None):
    "What to measure, from the command line."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="mr_phantom")
    parser.add_argument("--size", default=64, type=int)
    parser.add_argument("--channels", default=1, type=int)
    parser.add_argument("--embedder", default="efficientnet_lite2")
    parser.add_argument("--train", default=300, type=int)
    parser.add_argument("--held-out", default=300, type=int, help="that set the threshold")
    parser.add_argument("--fresh", default=300, type=int, help="unseen ones that are judged")
    parser.add_argument("--alpha", default=0.05, type=float)
    parser.add_argument("--pool", default=140, type=int, help="copies of each kind")
    parser.add_argument("--repeats", default=200, type=int)
    parser.add_argument("--quick", action="store_true", help="a small set, for tests")
    args = parser.parse_args(words)
    if args.quick:
        small = dict(size=32, embedder="efficientnet_lite0@32", train=60, held_out=60, fresh=60,
                     pool=16, repeats=20)
        vars(args).update(small)
    return args


def opened(args) -> tuple[np.ndarray, np.ndarray]:  # training images, the others
    "Images that are all different. Ends where there are too few."
    wanted = args.train + args.held_out + args.fresh
    images = different_images(args.data, args.size, args.channels, wanted)
    return images[: args.train], images[args.train :]


def scored(args) -> tuple[dict[str, torch.Tensor], int]:  # kind → scores; leaks left out
    "Scores of the copies of each kind, and of the unseen images."
    train, others = opened(args)
    embedder, views = load_embedder(args.embedder, "auto"), SymmetricViews(train)
    seen = space_rows(embedder, views)
    units, rng = shared_units(seen, len(train), args.alpha), np.random.default_rng(1)

    def near(images):
        return nearness(space_rows(embedder, images, cache=False), seen, len(train))

    found = {kind: np.stack([planted(train, int(row), kind, rng)
                             for row in rng.permutation(len(train))[: args.pool]])
             for kind in KINDS}
    scores = {kind: (near(images) / units).min(1).values for kind, images in found.items()}
    unseen = near(others)
    leaked = unseen[:, 1] < SAME_IMAGE
    return scores | {"unseen real": (unseen[~leaked] / units).min(1).values}, int(leaked.sum())


def repeated(scores: dict[str, torch.Tensor], args) -> pd.DataFrame:  # a row per kind
    "Shares refused, over the repeats."
    rows, unseen = [], scores["unseen real"]
    for repeat in range(args.repeats):
        rng = np.random.default_rng(repeat)
        order = rng.permutation(len(unseen))
        usual, fresh = unseen[order[: args.held_out]], unseen[order[args.held_out :]]
        tested = {kind: scores[kind][rng.permutation(args.pool)[: args.pool // 7]]
                  for kind in KINDS} | {"unseen real": fresh}
        rows.append({kind: (conformal_p(x, usual) <= args.alpha).double().mean().item()
                     for kind, x in tested.items()})
    table = pd.DataFrame(rows)
    ends = table.quantile([0.025, 0.975])
    return pd.DataFrame(dict(refused=table.mean(), low=ends.iloc[0], high=ends.iloc[1]))


def main(words: list[str] | None = None) -> pd.DataFrame:
    args = settings(words)
    scores, leaks = scored(args)
    table = repeated(scores, args)
    print(f"{machine()}, {args}\n{leaks} of the unseen images are training images "
          "again: left out\n")
    print(markdown(table))
    return table


if __name__ == "__main__":
    main()
