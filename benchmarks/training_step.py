"""What a training step asks of the host: operators, value reads, copies, graph breaks, overhead.

The plain side is the loop of diffusers' own example as in diffusion_step.py: the same network,
batch, precision, and a moving average. Both sides in one process; counts do not depend on the
machine. `reads` are values that an operator returns to the host; on a GPU each waits for all
that is queued. Breaks are those of `torch._dynamo.explain`. The trainer's own time is that of a
step of a network of nine weights, less the same step in a bare loop.
Run: OMP_NUM_THREADS=1 python benchmarks/training_step.py
"""

import argparse
import tempfile
import time

import torch
from common import machine
from diffusion_step import ours, plain
from torch import nn

from synth_nb.core.seeding import seed_everything
from synth_nb.diffusion import Latents, new_unet
from synth_nb.diffusion.masks import PairUNet
from synth_nb.emnist.model import new_unet as new_letter_unet
from synth_nb.training.loop import Phase, Trainer, TrainingConfig
from synth_nb.training.schedules import moving_average
from synth_nb.training.waits import CountedOperators


def counts(step, steps: int = 10) -> tuple[float, float]:
    "Operators and value reads of a step, once it is under way."
    step()
    with CountedOperators() as counted:
        for _ in range(steps):
            step()
    return counted.operators / steps, counted.reads / steps


def networks() -> dict:
    "Networks of diffusion with a batch of inputs each."
    x, t = torch.randn(2, 4, 16, 16), torch.randint(1000, (2,))
    sizes = ("mini", "tiny", "small")
    found = {f"05, {size}": (new_unet(32, 16, size=size), x, t, torch.randn(2, 1, 32))
             for size in sizes}  # fmt: skip
    pairs = PairUNet(4, 8, False, (32, 64)), x, t, torch.randn(2, 1, 8)
    maps = PairUNet(4, 2, True, (32, 64)), x, t, torch.randn(2, 256, 2)
    letters = (new_letter_unet(10), torch.randn(2, 1, 32, 32), t, torch.randint(10, (2,)))
    return found | {"06, joint": pairs, "06, mask-conditioned": maps, "07": letters}


class Numbers:
    "A data set of any length that costs nothing to read."

    def __init__(self, size: int, weights: torch.Tensor | None = None):
        self.size, self.x, self.weights = size, torch.randn(4096, 8), weights

    def __len__(self):
        return self.size

    def __getitem__(self, indices):
        return dict(x=self.x[torch.as_tensor(indices) % 4096], key=indices)


def square(nets, batch):
    return nets["net"](batch["x"]).square().mean()


def trained(data: Numbers):
    "A step of the trainer."
    net = nn.Linear(8, 1)
    phase = Phase(square, torch.optim.AdamW(net.parameters(), fused=True))
    plan = TrainingConfig(1, 32, 32 * 10**6, device="cpu", precision="fp32")
    return Trainer(tempfile.mkdtemp(), data, dict(net=net), [phase], plan, dict(net=0.99))


def bare(data: Numbers):
    "The same step without a trainer."
    net = nn.Linear(8, 1)
    optimizer, average = torch.optim.AdamW(net.parameters(), fused=True), moving_average(net, 0.99)

    def step():
        square(dict(net=net), data[torch.randint(4096, (32,)).tolist()]).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(net)

    return step


def overhead(data: Numbers, rounds: int) -> str:
    "A line of the table, ms of the processor: a tenth of the steps is quicker than that."
    sides, times = (trained(data).training_step, bare(data)), ([], [])
    for _ in range(20 + rounds):
        for side, found in zip(sides, times, strict=True):
            start = time.process_time()
            side()
            found.append(time.process_time() - start)
    ours, theirs = (1e3 * sorted(found[20:])[rounds // 10] for found in times)
    return f"{ours:.3f} | {theirs:.3f} | {ours - theirs:.3f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    chosen = parser.parse_args()
    seed_everything(0)
    print(f"{machine()}\n\n| step of the tiny UNet, batch 16 | operators | value reads |")
    print("| --- | --- | --- |")
    latents = Latents(torch.randn(8, 493, 4, 16, 16), torch.rand(8, 493, 4, 16, 16) / 4)
    for name, side in (("trainer", ours), ("plain diffusers loop", plain)):
        found = counts(side(latents, torch.randn(8, 493, 1, 1280), 16, "cpu"))
        print(f"| {name} | {found[0]:.0f} | {found[1]:.1f} |", flush=True)
    print("\n| network | graphs | graph breaks |\n| --- | --- | --- |")
    for name, (net, *inputs) in networks().items():
        torch._dynamo.reset()
        found = torch._dynamo.explain(net)(*inputs, return_dict=False)
        print(f"| {name} | {found.graph_count} | {found.graph_break_count} |", flush=True)
    print("\n| images in the data set | trainer, ms | bare loop, ms | of its own, ms |")
    print("| --- | --- | --- | --- |")
    many, weights = 700_000, torch.rand(700_000).double()
    for name, data in (("1,000", Numbers(1000)), ("700,000", Numbers(many)),
                       ("700,000 with weights", Numbers(many, weights))):  # fmt: skip
        print(f"| {name} | {overhead(data, chosen.rounds)} |", flush=True)
