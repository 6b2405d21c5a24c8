"""What the choices of latent diffusion save: cached latents, bfloat16, guidance, samplers.

CPU time of one process, both sides in turn. The autoencoder has Stable Diffusion's architecture
with drawn weights, which take the same time as trained ones. `cached` compares a training step that
reads mean and deviation from the cache with one that encodes its images. `bf16` compares a training
step, `sampling` sets of images of an untrained network.
Run: python benchmarks/diffusion_speed.py [--what cached]
"""

import argparse
import tempfile
import time

import torch
from common import alternate, machine, row
from diffusers import AutoencoderKL

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
from synth_nb.runs import seed_everything
from synth_nb.training import Phase, Plan, Trainer

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

    def __init__(self, data: LatentSet, vae: AutoencoderKL):
        super().__init__(data.latents, data.conditions, data.keys)
        self.vae = vae
        self.images = torch.rand(8, 3, *(8 * s for s in data.latents.shape[-2:])) * 2 - 1

    def __getitem__(self, indices):
        images = self.images[torch.arange(len(indices)) % len(self.images)]
        mean, deviation = encode_posterior(self.vae, images)
        latent = mean + deviation * torch.randn_like(mean)
        return super().__getitem__(indices) | dict(latent=latent)


def step(data: LatentSet, size: str, batch_size: int, precision: str = "fp32"):
    "One step of the trainer."
    seed_everything(0)
    unet = new_unet(data.conditions.shape[-1], data.latents.shape[-1], size=size)
    phase = Phase(DiffusionLoss(new_scheduler()), torch.optim.AdamW(unet.parameters(), 1e-4))
    plan = Plan(1, batch_size, device="cpu", precision=precision)
    trainer = Trainer(tempfile.mkdtemp(), data, dict(unet=unet), [phase], plan, dict(unet=0.995))
    return trainer.advance


def compare(name: str, ours, theirs, rounds: int):
    print(row(name, alternate(ours, theirs, rounds, 1, time.process_time)), flush=True)


def cached(rounds: int):
    vae = AutoencoderKL(**sd_vae).eval().requires_grad_(False)
    head("training step", "cached", "encoding")
    for size, side, batch_size in (("tiny", 8, 8), ("small", 32, 1)):
        data = latent_set(side)
        sides = step(data, size, batch_size), step(Encoding(data, vae), size, batch_size)
        compare(f"{size}, {8 * side} px, batch {batch_size}", *sides, rounds)


def bf16(rounds: int):
    head("training step", "bf16", "fp32")
    for size, side, batch_size in (("tiny", 16, 16), ("small", 32, 1)):
        data = latent_set(side)
        sides = (step(data, size, batch_size, precision) for precision in ("bf16", "fp32"))
        compare(f"{size}, latents {side}×{side}, batch {batch_size}", *sides, rounds)


def sampling(rounds: int):
    pipeline = new_pipeline(new_autoencoder().eval(), new_unet(768).eval())

    def images(**options):
        asked = dict(guidance_scale=2.0, sampling_steps=20) | options
        return lambda: generate(pipeline, torch.randn(8, 1, 768), **asked)

    head("8 images of 64 px, tiny, guided", "ours", "theirs")
    some = images(guidance_interval=(0.25, 0.75))
    compare("guidance in 0.25–0.75 against everywhere", some, images(), rounds)
    slow = images(sampler="ddim", sampling_steps=50)
    compare("DPM-Solver++ in 20 against DDIM in 50", images(), slow, rounds)


def head(what: str, ours: str, theirs: str):
    print(f"\n| {what} | {ours}, ms | {theirs}, ms | ratio |\n| --- | --- | --- | --- |")


if __name__ == "__main__":
    parts = dict(cached=cached, bf16=bf16, sampling=sampling)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=parts, nargs="*", default=list(parts))
    parser.add_argument("--rounds", type=int, default=6)
    chosen = parser.parse_args()
    seed_everything(0)
    print(f"{machine()}; CPU time, median of {chosen.rounds} pairs, ratio with its quartiles")
    for name in chosen.what:
        parts[name](chosen.rounds)
