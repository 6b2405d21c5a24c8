"""A training step of the latent diffusion model against the same step written plainly.

The plain side is what diffusers' own text-to-image example does in its loop: noise, `add_noise`,
`get_velocity`, mean squared error, clipping, AdamW, `EMAModel`. Both sides: the same network,
latents drawn from the cached mean and deviation, batch, precision, and a moving average.
Run: OMP_NUM_THREADS=1 python benchmarks/diffusion_step.py --cpu-time
"""

import argparse
import tempfile
import time

import torch
from common import alternate, machine, row
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch.nn import functional as F

from synth_nb.core.devices import pick_device
from synth_nb.core.seeding import seed_everything
from synth_nb.diffusion import DiffusionLoss, Latents, LatentSet, new_scheduler, new_unet
from synth_nb.training.loop import Phase, Trainer, TrainingConfig
from synth_nb.training.schedules import warmup


def ours(latents, conditions, batch_size, device):
    "One step of the project's trainer."
    unet = new_unet(conditions.shape[-1], latents.shape[-1])
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-4, fused=True)
    phase = Phase(DiffusionLoss(new_scheduler()), optimizer, scheduler=warmup(optimizer, 60))
    data = LatentSet(latents, conditions, [str(i) for i in range(latents.shape[1])])
    plan = TrainingConfig(1, batch_size, device=device, precision="fp32")
    trainer = Trainer(tempfile.mkdtemp(), data, dict(unet=unet), [phase], plan, dict(unet=0.995))
    return trainer.training_step


def plain(latents, conditions, batch_size, device):
    "The same step, written as in diffusers' examples."
    target = pick_device(device)
    unet = new_unet(conditions.shape[-1], latents.shape[-1]).to(target).train()
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-4, fused=True)
    noising = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    average = EMAModel(unet.parameters(), decay=0.995, use_ema_warmup=True)
    count = latents.shape[1]

    def step():
        rows, views = (
            torch.randint(count, (batch_size,)),
            torch.randint(len(latents), (batch_size,)),
        )
        z, c = latents[views, rows].to(target), conditions[views, rows].to(target)
        noise = torch.randn_like(z)
        times = torch.randint(0, 1000, (batch_size,), device=target)
        keep = torch.rand(batch_size, 1, 1, device=target) >= 0.1
        predicted = unet(noising.add_noise(z, noise, times), times, c * keep).sample
        loss = F.mse_loss(predicted.float(), noising.get_velocity(z, noise, times))
        loss.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(unet.parameters())

    return step


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cpu-time", action="store_true", help="where other work runs")
    chosen = parser.parse_args()
    seed_everything(0)
    clock = time.process_time if chosen.cpu_time else time.perf_counter
    latents = Latents(torch.randn(8, 493, 4, 16, 16), torch.rand(8, 493, 4, 16, 16) / 4)
    conditions = torch.randn(8, 493, 1, 1280)
    print(f"{machine()}; median of {chosen.rounds} pairs, ratio with its quartiles\n")
    print("| training step | ours, ms | plain diffusers, ms | ratio |\n| --- | --- | --- | --- |")
    for size in (16, 32):
        sides = [f(latents, conditions, size, chosen.device) for f in (ours, plain)]
        print(row(f"batch {size}", alternate(*sides, chosen.rounds, clock=clock)), flush=True)
