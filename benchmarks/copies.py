"""How many planted copies the copy audit finds, and how many images that are none it flags.

One in a hundred synthetic images is a training image again: as it is, mirrored or turned,
compressed as JPEG, or both. The others are images of the same kind that were not learnt from, as a
perfect generator would make. Pooled over seeds, which draw anew which images are planted, which
judge and which are judged. Run: python benchmarks/copies.py [--data WORD] [--size 64] …
"""

import argparse

import numpy as np
import torch
from common import different_images, machine, recompressed

from synth_nb.embedders import embed_images, load_embedder
from synth_nb.evaluation.copies import (
    SAME_IMAGE,
    SymmetricViews,
    find_copies,
    relative_distance,
    thumbnails,
)
from synth_nb.metrics.uncertainty import wilson_interval

KINDS = ("as it is", "view", "JPEG 75", "JPEG 50", "view and JPEG 75")


def planted(views: SymmetricViews, row: int, kind: str, rng) -> np.ndarray:  # (C, H, W)
    "A copy of a training image."
    number = rng.integers(1, len(views.numbers)) if "view" in kind else 0
    image = views[[number * len(views.images) + row]][0]
    return recompressed(image, int(kind[-2:])) if "JPEG" in kind else image


def spaces_of(embedder, images) -> list[torch.Tensor]:
    "Features and thumbnails."
    return [embed_images(embedder, images), thumbnails(images)]


def settings():
    "What to measure, from the command line."
    words = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words.add_argument("--data", default="mr_phantom")
    words.add_argument("--size", default=64, type=int)
    words.add_argument("--channels", default=3, type=int)
    words.add_argument("--embedder", default="efficientnet_lite2")
    words.add_argument("--train", default=400, type=int)
    words.add_argument("--held-out", default=400, type=int, help="that set the threshold")
    words.add_argument("--synthetic", default=1000, type=int)
    words.add_argument("--fresh", default=400, type=int, help="held out, to count false alarms")
    words.add_argument("--seeds", default=20, type=int)
    return words.parse_args()


def opened(args, copies: int) -> tuple[np.ndarray, np.ndarray]:  # training images, the others
    "Images that are all different. Ends where there are too few."
    wanted = args.train + args.held_out + args.fresh + args.synthetic - copies
    images = different_images(args.data, args.size, args.channels, wanted)
    return images[: args.train], images[args.train :]


def of_seed(seed: int, args, copies: int, embedder, views: SymmetricViews, seen, others):
    "One search: the kinds of the planted copies, and the table, those first, then fresh ones."
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(others[0]))
    rows = rng.choice(args.train, copies, replace=False)
    kinds = [KINDS[i % len(KINDS)] for i in range(seed, seed + copies)]
    copied = np.stack([planted(views, r, k, rng) for r, k in zip(rows, kinds, strict=True)])
    usual, queries = order[: args.held_out], order[args.held_out :]
    spaces = {name: (torch.cat([plant, other[queries]]), train, other[usual])
              for name, plant, train, other in zip(
                  ("features", "pixels"), spaces_of(embedder, copied), seen, others, strict=True)}
    return kinds, find_copies(spaces, args.train)[0]


def main():
    args = settings()
    copies = max(args.synthetic // 100, 1)
    train, rest = opened(args, copies)
    embedder, views = load_embedder(args.embedder, "auto"), SymmetricViews(train)
    seen, others = spaces_of(embedder, views), spaces_of(embedder, rest)
    again = relative_distance(others[1], seen[1], args.train)[0] < SAME_IMAGE
    print(f"{int(again.sum())} of {len(rest)} other images are training images again: left out")
    others = [x[~again] for x in others]
    found, missed, flagged, honest = np.zeros(3, int), {}, [0, 0], [0, 0]
    for seed in range(args.seeds):
        kinds, table = of_seed(seed, args, copies, embedder, views, seen, others)
        found += table[["copy", "copy_features", "copy_pixels"]][:copies].sum().to_numpy()
        for kind, hit in zip(kinds, table["copy"][:copies], strict=True):
            missed[kind] = missed.get(kind, 0) + (not hit)
        for counter, part in ((flagged, slice(copies, copies + args.fresh)),
                              (honest, slice(copies + args.fresh, None))):
            counter[0] += int(table["copy"][part].sum())
            counter[1] += len(table["copy"][part])
    total, share = copies * args.seeds, found[0] / (copies * args.seeds)
    print(f"{machine()}, {embedder.id}, {args}")
    print(f"found {found[0]} of {total} ({share:.1%}, 95 % {wilson_interval(share, total)}); "
          f"features alone {found[1]}, pixels alone {found[2]}; missed {missed}")
    for name, (n, of) in (("unseen real", flagged), ("synthetic that are no copies", honest)):
        print(f"{name} flagged: {n} of {of} ({n / of:.2%})")


if __name__ == "__main__":
    main()
