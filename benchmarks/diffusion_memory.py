"""Peak memory of training a UNet, each choice in a process of its own.

What the process holds at most, libraries included, after some steps of the trainer with AdamW and a
moving average in fp32. Run: python benchmarks/diffusion_memory.py [--size small] [--pixels 256]
"""

import argparse
import resource
import subprocess
import sys

from common import machine


def train(size: str, pixels: int, batch_size: int, accumulate: int, checkpointing: bool):
    "Two updates; prints the peak in GiB and the CPU seconds of an update."
    import tempfile
    import time

    import torch
    from diffusion_speed import latent_set

    from synth_nb.diffusion import DiffusionLoss, new_scheduler, new_unet
    from synth_nb.training.loop import Phase, Trainer, TrainingConfig

    data = latent_set(pixels // 8)
    unet = new_unet(768, pixels // 8, size=size)
    phase = Phase(DiffusionLoss(new_scheduler()), torch.optim.AdamW(unet.parameters(), 1e-4))
    plan = TrainingConfig(1, batch_size, device="cpu", precision="bf16", accumulate=accumulate,
                          checkpointing=checkpointing)
    trainer = Trainer(tempfile.mkdtemp(), data, dict(unet=unet), [phase], plan, dict(unet=0.995))
    trainer.training_step()
    start = time.process_time()
    trainer.training_step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{peak:.2f} | {time.process_time() - start:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--one", nargs=3, type=int, help="one choice, in this process")
    args = parser.parse_args()
    if args.one:
        train(args.size, args.pixels, *args.one[:2], bool(args.one[2]))
        sys.exit()
    print(f"{machine()}; {args.size}, {args.pixels} px, bf16\n")
    print("| batch | at a time | checkpointing | peak, GiB | CPU s of an update |")
    print("| --- | --- | --- | --- | --- |")
    for batch, parts, checkpointing in ((8, 1, 0), (8, 1, 1), (8, 4, 0)):
        words = [sys.executable, __file__, "--size", args.size, "--pixels", str(args.pixels)]
        words += ["--one", *map(str, (batch, parts, checkpointing))]
        result = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
        yes = "yes" if checkpointing else "no"
        print(f"| {batch} | {batch // parts} | {yes} | {result} |", flush=True)
