"""DPM-Solver++ against DDIM in 50 steps: CPU time, kernel distance, texture of what comes out.

Takes a finished run of 05_i2i or 05_e2i on the demo, or trains a short model of it (tiny UNet, one
token of 64 numbers), then makes the same images, one for each held-out patch and from the same
noise, with all samplers in turn: DPM-Solver++ at equal distances of t and of log σ/α (`spacing`).
The distance is to the held-out patches, in an encoder that had no part in the training; differences
are paired, over random halves of them.
A training is kept short, so that all of it takes about three CPU minutes; --full trains longer,
--quick only shows that it runs.
Run: python benchmarks/diffusion_samplers.py [--run outputs/05_e2i/demo] [--full | --quick]
"""

import argparse
import tempfile
import time

import torch
from common import machine

from synth_nb.core.runs import load_model
from synth_nb.core.seeding import seed_everything
from synth_nb.data import open_dataset, to_float, to_uint8
from synth_nb.diffusion import (
    DiffusionLoss,
    LatentSet,
    cached_latents,
    fit_autoencoder,
    generate,
    new_pipeline,
    new_scheduler,
    new_unet,
    trainable,
    view_embeddings,
)
from synth_nb.diffusion.conditions import fit_components
from synth_nb.embedders import embed_images, load_embedder
from synth_nb.metrics import kernel_distance
from synth_nb.training.loop import Phase, Trainer, TrainingConfig
from synth_nb.training.schedules import warmup

settings = {  # sampler, steps, spacing
    "DPM-Solver++, 8": ("dpm++", 8, "time"), "DPM-Solver++, 8, log σ/α": ("dpm++", 8, "log_snr"),
    "DPM-Solver++, 20": ("dpm++", 20, "time"),
    "DPM-Solver++, 20, log σ/α": ("dpm++", 20, "log_snr"), "DDIM, 50": ("ddim", 50, "time")}


def texture(images: torch.Tensor) -> float:  # (N, C, H, W) in [-1, 1]
    "Standard deviation of the difference of neighbouring pixels, grey, in grey levels of 256."
    return 127.5 * images.mean(1).diff(dim=1).std().item()


def trained(train, embedder, steps: int, vae_steps: int, precision: str):
    "A pipeline, and what makes conditions of embeddings."
    vae = fit_autoencoder(train, vae_steps, embedder)
    seen = view_embeddings(embedder, train, "flip")
    conditioner = fit_components("efficientnet_lite0", seen)
    data = LatentSet(cached_latents(vae, train, "flip"), conditioner.tokens(seen), train.keys)
    unet = new_unet(conditioner.components.shape[1], data.latents.shape[-1])
    optimizer = torch.optim.AdamW(trainable(unet), 1e-3)
    phase = Phase(DiffusionLoss(new_scheduler()), optimizer, scheduler=warmup(optimizer, 60))
    plan = TrainingConfig(1, 16, 16 * steps, device="cpu", precision=precision)
    trainer = Trainer(tempfile.mkdtemp(), data, dict(unet=unet), [phase], plan, dict(unet=0.99))
    trainer.fit()
    return new_pipeline(vae, trainer.model("unet").eval(), new_scheduler()), conditioner


def opened(run: str, held_out):
    "A finished run's pipeline, its held-out conditions, and the rows that they belong to."
    model, index_of = load_model(run, "cpu"), {key: i for i, key in enumerate(held_out.keys)}
    rows = torch.tensor([index_of[key] for key in model.settings["keys"]])
    return model.pipeline, model.conditioner.tokens(model.conditions), rows


def differences(real, ours, theirs, draws: int = 200) -> list[float]:
    "Kernel distance of ours minus that of theirs, on random halves: 2.5 and 97.5 %."
    found = []
    for _ in range(draws):
        rows = torch.randperm(len(real))[: len(real) // 2]
        found.append(kernel_distance(real[rows], ours[rows])
                     - kernel_distance(real[rows], theirs[rows]))
    return torch.tensor(found).quantile(torch.tensor([0.025, 0.975])).tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="", help="a finished run, in place of a training")
    parser.add_argument("--full", action="store_true", help="a longer training, more images")
    parser.add_argument("--quick", action="store_true", help="a few steps, a few images")
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()
    lengths, images = ((400, 600), 256) if arguments.full else ((200, 200), 96)
    if arguments.quick:
        lengths, images = (2, 2), 8
    seed_everything(0)
    data = open_dataset("demo", image_size=64)
    train, held_out = data.subset("train"), data.subset("val")
    embedder, evaluator = load_embedder("efficientnet_lite0"), load_embedder("efficientnet_lite2")
    if arguments.run:
        pipeline, conditions, rows = opened(arguments.run, held_out)
    else:
        pipeline, conditioner = trained(train, embedder, *lengths, arguments.precision)
        conditions = conditioner.tokens(embed_images(embedder, held_out.images))
        rows = torch.arange(len(held_out))
    rows_used = torch.linspace(0, len(rows) - 1, min(images, len(rows))).long()
    real, conditions = held_out[rows[rows_used]]["image"], conditions[rows_used]
    wanted, took = embed_images(evaluator, real, cache=False), dict.fromkeys(settings, 0.0)
    generated = {name: [] for name in settings}
    for i in range(0, len(conditions), 32):  # in turn
        for name, (sampler, steps, spacing) in settings.items():
            start = time.process_time()
            generated[name].append(generate(
                pipeline, conditions[i : i + 32], first=i, sampler=sampler, sampling_steps=steps,
                spacing=spacing, precision=arguments.precision))
            took[name] += time.process_time() - start
    features = {name: embed_images(evaluator, to_uint8(torch.cat(x)), cache=False)
                for name, x in generated.items()}
    print(f"{machine()}; {arguments}, {len(real)} images, judged by {evaluator.id}\n")
    print("| sampler | CPU s | / DDIM 50 | kernel ×1000 | minus DDIM 50 ×1000 | texture |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, seen in features.items():
        low, high = (1e3 * x for x in differences(wanted, seen, features["DDIM, 50"]))
        print(f"| {name} | {took[name]:.1f} | {took[name] / took['DDIM, 50']:.3f} | "
              f"{1e3 * kernel_distance(wanted, seen):.1f} | {low:.1f} … {high:.1f} | "
              f"{texture(torch.cat(generated[name])):.1f} |")
    print(f"texture of the real patches {texture(to_float(real)):.1f}")
