"""Seconds per thousand images and memory of a StyleGAN2 training, beside the published times.

`auto` at each size, the trainer with all phases, augmentation and averages, on random images, so
that reading data plays no part. `--memory` says how much of the GPU may be used: batches are cut
into as many microbatches as the estimate asks for, and what was really taken stands beside it.
Run: python benchmarks/stylegan2_gpu.py [--sizes 128 256 512] [--batch 16] [--memory 24]
"""

import argparse
import tempfile
import time

import torch
from common import machine

from synth_nb.core.devices import pick_device, pick_precision
from synth_nb.core.seeding import seed_everything
from synth_nb.stylegan2 import choose_settings, extra_modules, new_networks, new_phases
from synth_nb.stylegan2.config import ema_decay, memory_estimate, microbatches_for
from synth_nb.training.loop import Trainer, TrainingConfig

published = {128: 6.8, 256: 12.5, 512: 41, 1024: 90}  # s/kimg of the original on an A100


class Noise:
    "Random images of a size."

    def __init__(self, size: int, count: int):
        self.images = torch.rand(count, 3, size, size) * 2 - 1
        self.keys = [str(i) for i in range(count)]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        return dict(image=self.images[rows], key=[self.keys[i] for i in rows])


def ready(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def line(size: int, args: argparse.Namespace) -> str:
    "Train some steps at one size, and say what they cost."
    device = pick_device(args.device)
    kind = pick_precision(args.precision, device)
    half, changes = kind != "fp32", {} if kind == "fp16" else dict(clamp=None)
    changes |= dict(channel_max=args.channel_max) if args.channel_max else {}
    settings = choose_settings("auto", size, args.batch, **changes)
    seed_everything(0)
    G, D = new_networks(settings)
    count = sum(p.numel() for net in (G, D) for p in net.parameters())
    microbatches = microbatches_for(settings, int(args.memory * 2**30), count, half)
    share = settings.batch_size // microbatches
    estimate = memory_estimate(settings, share, count, half) / 2**30
    plan = TrainingConfig(1, settings.batch_size, accumulate=microbatches, device=args.device,
                precision=args.precision)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            folder, Noise(size, 2 * settings.batch_size),
            dict(generator=G, discriminator=D, **extra_modules(settings)),
            new_phases(settings, G.parameters(), D.parameters()), plan,
            dict(generator=ema_decay(settings)),
        )  # fmt: skip
        for _ in range(args.warm):
            trainer.training_step()
        ready(device)
        start = time.perf_counter()
        for _ in range(args.steps):
            trainer.training_step()
        ready(device)
        seconds = time.perf_counter() - start
    speed = 1000 * seconds / (args.steps * settings.batch_size)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    cells = [size, settings.batch_size, microbatches, f"{speed:.1f}", published.get(size, ""),
             f"{estimate:.1f}", f"{peak:.1f}"]
    return f"| {' | '.join(map(str, cells))} |"


def main():
    words = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words.add_argument("--sizes", nargs="+", type=int, default=[128, 256, 512])
    words.add_argument("--batch", type=int, default=0, help="0: the one of `auto`")
    words.add_argument("--memory", type=float, default=24, help="GiB that may be used")
    words.add_argument("--steps", type=int, default=64, help="a multiple of 16 has all phases")
    words.add_argument("--warm", type=int, default=16, help="steps before the clock starts")
    words.add_argument("--channel-max", type=int, default=0, help="0: the one of `auto`")
    words.add_argument("--device", default="auto")
    words.add_argument("--precision", default="auto")
    args = words.parse_args()
    kind = pick_precision(args.precision, pick_device(args.device))
    print(f"{machine()}; {kind}, at most {args.memory:g} GiB\n")
    print("| pixels | batch | microbatches | s/kimg | published, A100 | estimate, GiB "
          "| peak, GiB |")
    print("| --- |" + " --- |" * 6, flush=True)
    for size in args.sizes:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        print(line(size, args), flush=True)


if __name__ == "__main__":
    main()
