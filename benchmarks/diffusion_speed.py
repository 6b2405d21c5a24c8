"""What the choices of latent diffusion save: cached latents, bfloat16, guidance, samplers.

Time of one process, CPU time on a CPU, both sides in turn. The autoencoder has Stable Diffusion's
architecture with drawn weights, which take the same time as trained ones. `cached` compares a
training step that reads mean and deviation from the cache with one that encodes its images. `bf16`
compares a training step, `sampling` sets of images of an untrained network.
Run: python benchmarks/diffusion_speed.py [--what cached] [--device cuda]
"""

import argparse
import tempfile
import time

import torch
from common import alternate, machine, row
from diffusers import AutoencoderKL

from synth_nb.core.seeding import seed_everything
from synth_nb.diffusion import (
    DiffusionLoss,
    Latents,
    LatentSet,
    encode_posterior,
    generate,
    new_autoencoder,
    new_pipeline,
    new_scheduler,
    new_unet,
)
from synth_nb.diffusion.sampling import autocast
from synth_nb.training.loop import Phase, Trainer, TrainingConfig

sd_vae = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
)


def latent_set(side: int, count: int = 64, width: int = 768) -> LatentSet:
    "Made-up latents with a deviation, and one condition token for each."
    latents = Latents(torch.randn(2, count, 4, side, side), torch.rand(2, count, 4, side, side))
    return LatentSet(latents, torch.randn(2, count, 1, width), [str(i) for i in range(count)])


class Encoding(LatentSet):
    "The same, with every latent encoded when it is asked for."

    def __init__(self, data: LatentSet, vae: AutoencoderKL, precision: str):
        super().__init__(data.latents, data.conditions, data.keys)
        self.vae, self.precision = vae, precision
        self.images = torch.rand(8, 3, *(8 * s for s in data.latents.shape[-2:])) * 2 - 1

    def __getitem__(self, indices):
        images = self.images[torch.arange(len(indices)) % len(self.images)]
        with autocast(self.vae.device, self.precision):
            mean, std = encode_posterior(self.vae, images.to(self.vae.device))
        latent = mean + std * torch.randn_like(mean)
        return super().__getitem__(indices) | dict(latent=latent.float())


def step(data: LatentSet, size: str, batch_size: int, device: str, precision: str = "fp32"):
    "One step of the trainer."
    seed_everything(0)
    unet = new_unet(data.conditions.shape[-1], data.latents.shape[-1], size=size)
    phase = Phase(DiffusionLoss(new_scheduler()), torch.optim.AdamW(unet.parameters(), 1e-4))
    plan = TrainingConfig(1, batch_size, device=device, precision=precision)
    trainer = Trainer(tempfile.mkdtemp(), data, dict(unet=unet), [phase], plan, dict(unet=0.995))
    return trainer.training_step


def compare(name: str, ours, theirs, rounds: int, device: str):
    "A GPU works behind the program's back: both wait for it, and the clock is the wall's."
    if device == "cpu":
        print(row(name, alternate(ours, theirs, rounds, 1, time.process_time)), flush=True)
        return
    both = [lambda side=side: (side(), torch.cuda.synchronize()) for side in (ours, theirs)]
    print(row(name, alternate(*both, rounds, 3)), flush=True)


def sizes(device: str) -> list[tuple[str, int, int]]:  # layout, pixels / 8, batch
    "What a machine can train: a GPU is given enough to do."
    return [("tiny", 8, 8), ("small", 32, 1 if device == "cpu" else 32)]


def cached(rounds: int, device: str):
    precision = "fp32" if device == "cpu" else "bf16"
    vae = AutoencoderKL(**sd_vae).eval().requires_grad_(False).to(device)
    head(f"training step, {precision}", "cached", "encoding")
    for size, side, batch_size in sizes(device):
        data = latent_set(side)
        sides = (step(some, size, batch_size, device, precision)
                 for some in (data, Encoding(data, vae, precision)))
        compare(f"{size}, {8 * side} px, batch {batch_size}", *sides, rounds, device)


def bf16(rounds: int, device: str):
    head("training step", "bf16", "fp32")
    for size, side, batch_size in (("tiny", 16, 16), sizes(device)[1]):
        data = latent_set(side)
        sides = (step(data, size, batch_size, device, precision) for precision in ("bf16", "fp32"))
        compare(f"{size}, latents {side}×{side}, batch {batch_size}", *sides, rounds, device)


def sampling(rounds: int, device: str):
    pipeline = new_pipeline(new_autoencoder().eval(), new_unet(768).eval()).to(device)

    def images(**options):
        settings = dict(guidance_scale=2.0, sampling_steps=20) | options
        return lambda: generate(pipeline, torch.randn(8, 1, 768), **settings)

    head("8 images of 64 px, tiny, guided", "ours", "theirs")
    some = images(guidance_interval=(0.0, 0.5))
    compare("guidance in 0–0.5 against everywhere", some, images(), rounds, device)
    slow = images(sampler="ddim", sampling_steps=50)
    compare("DPM-Solver++ in 20 against DDIM in 50", images(), slow, rounds, device)


def head(what: str, ours: str, theirs: str):
    print(f"\n| {what} | {ours}, ms | {theirs}, ms | ratio |\n| --- | --- | --- | --- |")


if __name__ == "__main__":
    parts = dict(cached=cached, bf16=bf16, sampling=sampling)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=parts, nargs="*", default=list(parts))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    seed_everything(0)
    clock = "CPU time" if chosen.device == "cpu" else "time"
    print(f"{machine()}; {clock}, median of {chosen.rounds} pairs, ratio with its quartiles")
    for name in chosen.what:
        parts[name](chosen.rounds, chosen.device)
