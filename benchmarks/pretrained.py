"""A published pipeline that is trained on: does it start with the loss that it was saved with?

A stand-in takes the place of Stable Diffusion: a small UNet with cross-attention, trained here with
diffusers alone on captions of stained tissue, on latents times 0.18215 that have no unit deviation,
predicting the noise on Stable Diffusion's schedule, and saved as a stock pipeline with a scheduler
file as Stable Diffusion 1.5 has it. Then it is continued by the library, on texts and on
embeddings, with all weights and with LoRA, and what is saved is loaded with diffusers alone.

    python benchmarks/pretrained.py --minutes 6 > benchmarks/pretrained.md
"""

import argparse
import contextlib
import copy
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import machine
from diffusers import (
    DDPMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch.nn import functional as F

from synth_nb.core.seeding import seed_everything
from synth_nb.data import open_dataset
from synth_nb.diffusion import add_noise, encode_all, noise_levels, standardise, whiten
from synth_nb.diffusion.bundled import bundled_autoencoder
from synth_nb.diffusion.captions import open_captions
from synth_nb.diffusion.conditions import image_conditions
from synth_nb.diffusion.experiment import (
    DiffusionConfig,
    ExperimentData,
    new_trainer,
    open_autoencoder,
    save,
)
from synth_nb.diffusion.objective import new_scheduler, target_for
from synth_nb.diffusion.text import text_conditions
from synth_nb.embedders import load_embedder
from synth_nb.training.loop import TrainingConfig

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
LAYOUT = dict(sample_size=16, block_out_channels=(64, 128), layers_per_block=1, norm_num_groups=16,
              down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=8,
              up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=64)
ENCODER = "efficientnet_lite0@32"
STOCK = """
import json, sys, torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
base, model = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(model)
parts = load_file(model + "/conditions.safetensors")
words = dict(prompt=json.load(open(model + "/conditions.json")).get("captions", [""])[0])
if "embeddings" in parts:
    token = (parts["embeddings"][:1] - parts["mean"]) @ parts["components"]
    words = dict(prompt_embeds=token[:, None] + parts["prompt"])
def images(pipe):
    noise = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipe(**words, num_inference_steps=4, guidance_scale=2.0, height=64,
                                 width=64, generator=noise, output_type="np").images)
merged, added = images(pipe), None
if base:
    other = DiffusionPipeline.from_pretrained(base)
    other.scheduler = pipe.scheduler
    plain = images(other)
    other.load_lora_weights(model + "/lora")
    added = (images(other) - merged).abs().max().item()
    print(json.dumps([added, (plain - merged).abs().max().item()]))
assert not any(name.startswith("synth_nb") for name in sys.modules)
"""


def published_autoencoder():
    "The demo's, with latents as Stable Diffusion's have them: other means, times 0.18215."
    vae, factor = bundled_autoencoder("cpu")[0], 0.18215
    gain, shift = torch.tensor([0.8, 1.2, 1.0, 0.7]), torch.tensor([0.3, -0.5, 0.0, 0.2])
    whiten(vae, -shift, factor / gain)
    vae.register_to_config(scaling_factor=factor)
    return vae


def mean_error(unet, latents, tokens, empty: bool = False, seed: int = 0) -> float:
    "Error of the predicted noise, by diffusers alone, with fixed noise and timesteps."
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(latents.shape, generator=draw)
    t = torch.randint(0, 1000, (len(latents),), generator=draw)
    noisy = DDPMScheduler(**BETAS).add_noise(latents, noise, t)
    with torch.inference_mode():
        return F.mse_loss(unet.eval()(noisy, t, tokens).sample, noise).item()


def stand_in(folder: Path, train, held_out, captions, seconds=0.0, steps=10**6, text=None) -> dict:
    "Train a pipeline with diffusers, save it, and return its losses on the held-out images."
    seed_everything(0)
    vae = published_autoencoder()
    conditioner, tokens, texts = text_conditions(train, held_out, captions, load_embedder(ENCODER),
                                                 conditioner=text)
    tokens, empty = tokens[0], conditioner.empty()
    latents, unet = encode_all(vae, train), UNet2DConditionModel(**LAYOUT)
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-3)
    end, step, scheduler = time.process_time() + seconds, 0, DDPMScheduler(**BETAS)
    while step < steps and (not seconds or time.process_time() < end):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 50) * (0.3 if step > 1500 else 1)
        rows = torch.randint(0, len(latents), (16,))
        keep = torch.rand(16, 1, 1) > 0.1
        noise, t = torch.randn(16, *latents.shape[1:]), torch.randint(0, 1000, (16,))
        noisy = scheduler.add_noise(latents[rows], noise, t)
        predicted = unet(noisy, t, torch.where(keep, tokens[rows], empty)).sample
        optimizer.zero_grad()
        F.mse_loss(predicted, noise).backward()
        optimizer.step()
        step += 1
    as_published = PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1,
                                 set_alpha_to_one=False)
    pipeline = StableDiffusionPipeline(
        vae=vae, unet=unet, scheduler=as_published, text_encoder=conditioner.encoder,
        tokenizer=conditioner.tokenizer, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False)
    pipeline.save_pretrained(folder)
    file = folder / "scheduler/scheduler_config.json"
    config = json.loads(file.read_text())
    config.pop("prediction_type")  # the file of Stable Diffusion 1.5 has none
    file.write_text(json.dumps(config))
    shown = encode_all(vae, held_out)
    nothing = empty.expand(len(shown), -1, -1)
    return dict(steps=step, text=mean_error(unet, shown, conditioner.tokens(texts)),
                empty=mean_error(unet, shown, nothing))


def continued(condition: str, folder: Path, train, held_out, captions, **options):
    "What the library makes of the stand-in: configuration and data of a training that continues."
    options = dict(timesteps="uniform", lr=2e-4) | options
    config = DiffusionConfig(pretrained=str(folder), **options)
    vae = open_autoencoder(train, device="cpu", pretrained=str(folder))
    embedder = load_embedder(ENCODER)
    if condition == "t2i":
        conditions = text_conditions(train, held_out, captions, embedder, pretrained=str(folder))
    else:
        head = dict(i2i="components", e2i="tuned")[condition]
        conditions = image_conditions(train, held_out, embedder, head, 32, "none")
    return config, ExperimentData(train, held_out, vae, *conditions)


def error_of(config, data, unet, seed: int = 0) -> float:
    "The error by the library's noise schedule and target, with the same noise and timesteps."
    held_out = data.held_out_set()[list(range(len(data.held_out)))]
    clean, draw = held_out["latent"], torch.Generator().manual_seed(seed)
    noise = torch.randn(clean.shape, generator=draw)
    t = torch.randint(0, 1000, (len(clean),), generator=draw)
    scheduler = config.scheduler()
    alpha, sigma = (level[t] for level in noise_levels(scheduler))
    target = target_for(clean, noise, alpha, sigma, scheduler.config.prediction_type)
    with torch.inference_mode():
        noisy = add_noise(clean, noise, alpha, sigma)
        return F.mse_loss(unet.eval()(noisy, t, held_out["condition"]).sample, target).item()


def as_a_new_one(folder: Path, data) -> float:
    "The error of the same weights on whitened latents, as predictions of v."
    vae = standardise(copy.deepcopy(data.vae), data.train)
    draw = torch.Generator().manual_seed(0)
    clean = encode_all(vae, data.held_out)
    noise = torch.randn(clean.shape, generator=draw)
    t = torch.randint(0, 1000, (len(clean),), generator=draw)
    alpha, sigma = (level[t] for level in noise_levels(new_scheduler()))
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    tokens = data.conditioner.tokens(data.conditions)
    with torch.inference_mode():
        predicted = unet(add_noise(clean, noise, alpha, sigma), t, tokens).sample
        return F.mse_loss(predicted, target_for(clean, noise, alpha, sigma)).item()


def saved_and_opened(model, folder: Path, base: Path) -> tuple[float, float] | None:
    "Differences of the stand-in with LoRA from the merged model, and without LoRA."
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder)
    base = str(base) if model.lora else ""
    done = subprocess.run([sys.executable, "-c", STOCK, base, str(folder)], check=True,
                          capture_output=True, text=True)
    return json.loads(done.stdout) if base else None


PAGE = """# A pretrained pipeline is continued

`python benchmarks/pretrained.py --minutes {minutes:g} --epochs {epochs}`
on {machine}.

A stand-in for Stable Diffusion, trained with diffusers alone for {minutes:g} minutes of one
core, in batches of 16 of the demo's images with their captions: cross-attention to 77 tokens,
latents times 0.18215 that are not of unit deviation, ε on Stable Diffusion's schedule, saved as a
stock pipeline. Then it is continued for {images} images in batches of 16.

The loss is the mean squared error on the {held_out} held-out images, always with the same
noise and timesteps; a network that predicts zero has 1. "Saved with" is what diffusers alone
measured before saving: with the captions for t2i, with the empty prompt for i2i and e2i, whose
embedding has no meaning yet. The last column is the largest difference of an image (0 to 1) between
the base with the LoRA file and the merged pipeline, both with diffusers alone; in brackets, between
the base without that file and the merged one.

| condition | trained | saved with | at step 0 | after | LoRA file against merged |
|---|---|---|---|---|---|
{lines}

The same weights on whitened latents, predicting v, as a new network is trained: {wrong:.3f}.
"""


def continued_row(condition: str, rank: int, home: Path, sets: tuple, epochs: int) -> str:
    "The stand-in with a condition goes on by `epochs` of 640 images: one line of the table."
    train, held_out, captions = sets
    config, data = continued(condition, home / "base", train, held_out, captions, lora_rank=rank)
    plan = TrainingConfig(epochs, 16, 640, device="cpu", precision="fp32")
    name = f"{condition}-{rank}-{epochs}"
    trainer, model = new_trainer(home / name, data, config, plan, "none", guidance_scale=2.0,
                                 sampling_steps=4, best_of=1, precision="fp32")
    start = error_of(config, data, data.unet(config, (4, 16, 16)))
    with contextlib.redirect_stdout(sys.stderr):
        trainer.fit()
    after = error_of(config, data, trainer.model("unet"))
    opened = saved_and_opened(model(), home / name / "model", home / "base")
    saved = json.loads((home / "losses.json").read_text())
    reference = saved["text" if condition == "t2i" else "empty"]
    apart = f"{opened[0]:.0e} ({opened[1]:.2f})" if opened else "–"
    what = "LoRA, rank 8" if rank else "all weights"
    return f"| {condition} | {what} | {reference:.5f} | {start:.5f} | {after:.5f} | {apart} |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=6.0, help="of training the stand-in")
    parser.add_argument("--epochs", type=int, default=4, help="of 640 images, of continuing it")
    parser.add_argument("--home", help="a folder that keeps everything: a second start goes on")
    args = parser.parse_args()
    demo, home = open_dataset("demo", 64), Path(args.home or tempfile.mkdtemp())
    sets = demo.train, demo.held_out, open_captions("auto", demo)
    if not (home / "losses.json").is_file():
        found = stand_in(home / "base", *sets, 60 * args.minutes)
        (home / "losses.json").write_text(json.dumps(found))
    lines = []
    for condition in ("t2i", "i2i", "e2i"):
        for rank in (0, 8):
            lines.append(continued_row(condition, rank, home, sets, args.epochs))
            print(lines[-1], file=sys.stderr, flush=True)
    wrong = as_a_new_one(home / "base", continued("t2i", home / "base", *sets, lora_rank=0)[1])
    print(PAGE.format(minutes=args.minutes, epochs=args.epochs, machine=machine(),
                      images=args.epochs * 640, held_out=len(demo.held_out),
                      lines="\n".join(lines), wrong=wrong))


if __name__ == "__main__":
    main()
