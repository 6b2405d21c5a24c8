"""Probability maps of a section: whole or in large tiles, against one call for each window.

`python benchmarks/segmentation.py`: CPU time; the results are compared before they are timed.
"""

import argparse
import time

import torch
from common import alternate, machine

from synth_nb.segmentation.networks import ResidualUNet
from synth_nb.segmentation.predict import predict_blended, predict_tiled, window_starts


def line(name: str, found: dict, far: float) -> str:
    "A row: seconds of both, ratio, largest difference."
    ratio = f"{found['ratio']:.3f} ({found['low']:.3f}–{found['high']:.3f})"
    return f"| {name} | {found['ours']:.2f} | {found['theirs']:.2f} | {ratio} | {far:.1e} |"


@torch.inference_mode()
def centred(net, section: torch.Tensor, window: int) -> torch.Tensor:
    "Windows with half overlap, a call each, of which the centre is kept (at a border all of it)."
    out, edge = torch.empty(section.shape[1:]), window // 4
    assert edge >= net.reach, "a centre that sees the window's border is not exact"
    places = [window_starts(side, window, window // 2) for side in out.shape]
    for y in places[0]:
        for x in places[1]:
            cut = section[None, :, y : y + window, x : x + window].float() / 127.5 - 1
            found = net(cut).sigmoid()[0, 0]
            top, left = (edge if offset else 0 for offset in (y, x))
            out[y + top : y + window, x + left : x + window] = found[top:, left:]
    return out[None]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--windows", type=int, nargs="+", default=[128, 256, 384])
    args = parser.parse_args()
    side, rounds = args.side, args.rounds
    torch.manual_seed(0)
    net = ResidualUNet().eval()
    section = torch.randint(256, (1, side, side), dtype=torch.uint8)
    print(machine(), "\n\n| against | ours, s | theirs, s | ratio | largest difference |")
    print("| --- | --- | --- | --- | --- |")
    for window in args.windows:
        core = window - 2 * net.reach
        far = (predict_tiled(net, section) - predict_tiled(net, section, core)).abs().max().item()
        found = alternate(
            lambda: predict_tiled(net, section),
            lambda core=core: predict_tiled(net, section, core),
            rounds,
            1,
            time.process_time,
        )
        print(line(f"a call per {window} px window, {core} px of it kept", found, far), flush=True)
    if side >= 256:
        far = (predict_tiled(net, section) - centred(net, section, 256)).abs().max().item()
        found = alternate(lambda: predict_tiled(net, section), lambda: centred(net, section, 256),
                          rounds, 1, time.process_time)
        print(line("a call per 256 px window, half overlap", found, far), flush=True)
    one, many = (lambda size=size: predict_blended(net, section, 128, 64, size) for size in (1, 16))
    far = (many() - one()).abs().max().item()
    found = alternate(many, one, rounds, 1, time.process_time)
    print(line("blended windows, 16 in a call against 1", found, far), flush=True)
    far = (predict_tiled(net, section) - one()).abs().max().item()
    found = alternate(lambda: predict_tiled(net, section), one, rounds, 1, time.process_time)
    print(line("blended windows, 1 in a call (not the same result)", found, far), flush=True)


if __name__ == "__main__":
    main()
