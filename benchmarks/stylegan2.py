"""A training iteration, generation and the discriminator of StyleGAN2 against a plain formulation.

The plain side is written here, with the same weights: weights scaled for every image, zeros put
between pixels before a filter at the full size, every pixel filtered and half of them dropped
after it. In training it scales activations, as the published code does, and finds the
demodulation from weights scaled for every image; `grouped` runs a grouped convolution instead,
as the published code does when it generates. Both sides run in turn in one process and on one
core; what is compared is CPU time. Another implementation takes the plain one's place by
`--other module:build`, where build(resolution, seed) gives (G, D) with the published interface.
Run: OMP_NUM_THREADS=1 python benchmarks/stylegan2.py [--resolution 64] [--rounds 5] … [--quick]
"""

import argparse
import copy
import importlib
import math
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from common import alternate, machine, row
from torch import nn
from torch.nn import functional as F

from synth_nb.core.seeding import seed_everything
from synth_nb.stylegan2.networks import Discriminator, Generator


def build(resolution: int, seed: int):
    "Networks of `cfg=auto` at that resolution, ours."
    seed_everything(seed)
    base = 32768 if resolution >= 512 else 16384
    G = Generator(512, 0, 512, resolution, 3, dict(num_layers=2), dict(channel_base=base))
    return G, Discriminator(0, resolution, 3, channel_base=base)


def copied(net):
    "A copy with its weights laid out as usual."
    net = copy.deepcopy(net)
    for weight in net.parameters():
        weight.data = weight.data.contiguous()
    return net


def filtered(x, kernel, up=1, down=1, before=0, after=0, gain=1.0):
    "By the definition: zeros, border, full filter, decimation."
    batch, channels, height, width = x.shape
    if up > 1:
        x = F.pad(x.reshape(batch, channels, height, 1, width, 1), (0, up - 1, 0, 0, 0, up - 1))
        x = x.reshape(batch, channels, height * up, width * up)
    weight = (kernel * gain).to(x.dtype).expand(channels, 1, *kernel.shape)
    x = F.conv2d(F.pad(x, (before, after) * 2), weight, groups=channels)
    return x[..., ::down, ::down]


def activated(x, bias, gain=2**0.5, slope=0.2):
    "Bias, leaky ReLU, gain."
    return F.leaky_relu(x + bias.to(x.dtype)[:, None, None], slope) * gain


def convolved(x, weight, styles, kernel, up, demodulate, grouped):
    "Modulated convolution with weights for every image."
    batch, (outputs, inputs, size, _) = len(x), weight.shape
    weights = weight[None] * styles[:, None, :, None, None]
    factor = torch.ones_like(styles[:, :1])
    if demodulate:
        factor = (weights.square().sum((2, 3, 4)) + 1e-8).rsqrt()
    groups = batch if grouped else 1
    if grouped:
        weights = weights * factor[:, :, None, None, None] if demodulate else weights
        x = x.reshape(1, batch * inputs, *x.shape[2:])
        w = weights.transpose(1, 2) if up > 1 else weights
        w = w.reshape(-1, *w.shape[2:])
    else:
        x = x * styles.to(x.dtype)[:, :, None, None]
        w = weight.transpose(0, 1) if up > 1 else weight
    if up > 1:
        x = filtered(F.conv_transpose2d(x, w, stride=2, groups=groups), kernel, 1, 1, 1, 1, 4)
    else:
        x = F.conv2d(x, w, padding=size // 2, groups=groups)
    if grouped:
        return x.reshape(batch, outputs, *x.shape[2:])
    return x * factor.to(x.dtype)[:, :, None, None] if demodulate else x


class PlainSynthesis(nn.Module):
    "The plain formulation on a copy of the weights."

    def __init__(self, net, grouped):
        super().__init__()
        self.net, self.grouped = copied(net), grouped

    def forward(self, ws, noise_mode="random"):
        first, x, img, grouped = 0, None, None, self.grouped or not self.training
        for res in self.net.block_resolutions:
            block = getattr(self.net, f"b{res}")
            convs = [block.conv1] if block.first else [block.conv0, block.conv1]
            x = block.const[None].repeat(len(ws), 1, 1, 1) if block.first else x
            for layer in convs:
                styles = layer.affine(ws[:, first])
                kernel = layer.resample_filter
                x = convolved(x, layer.weight, styles, kernel, layer.up, True, grouped)
                noise = layer.noise(len(x), noise_mode)
                x = activated(x if noise is None else x + noise.to(x.dtype), layer.bias)
                first += 1
            rgb = block.torgb
            styles = rgb.affine(ws[:, first]) * rgb.gain
            y = convolved(x, rgb.weight, styles, None, 1, False, grouped)
            y = activated(y, rgb.bias, 1.0, 1.0).float()
            img = y if img is None else filtered(img, block.resample_filter, 2, 1, 2, 1, 4) + y
        return img


class PlainGenerator(nn.Module):
    "Our mapping and the plain synthesis."

    def __init__(self, G, grouped):
        super().__init__()
        self.mapping, self.z_dim = copied(G.mapping), G.z_dim
        self.synthesis = PlainSynthesis(G.synthesis, grouped)

    def forward(self, z, c=None, **options):
        return self.synthesis(self.mapping(z, c), **options)


class PlainDiscriminator(nn.Module):
    "The plain formulation on a copy of the weights."

    def __init__(self, D):
        super().__init__()
        self.net = copied(D)

    def conv(self, layer, x, gain=1.0):
        weight, size = layer.weight / math.sqrt(layer.weight[0].numel()), layer.weight.shape[-1]
        kernel = layer.resample_filter
        if layer.down == 2 and size == 1:
            x = F.conv2d(filtered(x, kernel, 1, 2, 1, 1), weight)
        elif layer.down == 2:
            x = F.conv2d(filtered(x, kernel, 1, 1, 2, 2), weight, stride=2)
        else:
            x = F.conv2d(x, weight, padding=size // 2)
        return activated(x, layer.bias, math.sqrt(2) * gain) if layer.active else x * gain

    def forward(self, img, c=None):
        x, half = None, math.sqrt(0.5)
        for res in self.net.block_resolutions:
            block = getattr(self.net, f"b{res}")
            x = self.conv(block.fromrgb, img) if x is None else x
            y = self.conv(block.skip, x, half)
            x = y + self.conv(block.conv1, self.conv(block.conv0, x), half)
        head, x = self.net.b4, x.float()
        groups = x.reshape(min(head.group, len(x)), -1, *x.shape[1:])
        std = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
        std = std.repeat(len(groups))[:, None, None, None].expand(-1, 1, 4, 4)
        x = self.conv(head.conv, torch.cat([x, std], 1)).flatten(1)
        return head.out(head.fc(x))


def plain(resolution: int, seed: int, grouped: bool = False):
    "The plain side, with the weights that ours has for that seed."
    G, D = build(resolution, seed)
    return PlainGenerator(G, grouped), PlainDiscriminator(D)


# how often each phase runs: lazy regularisation [1912.04958, sec. 3.1]
intervals = dict(generator=1, path_length=4, discriminator=1, penalty=16)


class Side:
    "One side's networks and the four phases of an iteration, each with its optimiser's step."

    def __init__(self, G, D, batch, images, autocast=False):
        self.G, self.D, self.batch, self.images = G, D, batch, images
        self.adam = {n: torch.optim.Adam(n.parameters(), 0.0025, (0.0, 0.99)) for n in (G, D)}
        self.mean, self.autocast = torch.zeros(()), autocast

    def context(self):
        return torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext()

    def step(self, trained, other, losses):
        "Backward of each loss in turn, and Adam."
        other.requires_grad_(False)
        trained.requires_grad_(True)
        for loss in losses:
            loss().backward()
        self.adam[trained].step()
        self.adam[trained].zero_grad()

    def synthetic(self, count):
        "Images of the generator, and their styles."
        ws = self.G.mapping(torch.randn(count, self.G.z_dim), torch.zeros(count, 0))
        return self.G.synthesis(ws), ws

    def logits_of(self, images):
        return self.D(images, torch.zeros(len(images), 0))

    def generator(self):
        def loss():
            with self.context():
                return F.softplus(-self.logits_of(self.synthetic(self.batch)[0])).mean()

        self.step(self.G, self.D, [loss])

    def path_length(self):
        def loss():
            with self.context():
                images, ws = self.synthetic(max(self.batch // 2, 1))
                noise = torch.randn_like(images) / images.shape[-1]
                (grad,) = torch.autograd.grad((images * noise).sum(), ws, create_graph=True)
            lengths = grad.square().sum(2).mean(1).sqrt()
            self.mean = self.mean.lerp(lengths.mean().detach(), 0.01)
            return (lengths - self.mean).square().mean() * 2 * 4

        self.step(self.G, self.D, [loss])

    def discriminator(self):
        def fake():
            with self.context():
                with torch.no_grad():
                    images = self.synthetic(self.batch)[0]
                return F.softplus(self.logits_of(images)).mean()

        def real():
            with self.context():
                return F.softplus(-self.logits_of(self.images)).mean()

        self.step(self.D, self.G, [fake, real])

    def penalty(self):
        def loss():
            images = self.images.clone().requires_grad_()
            with self.context():
                answers = self.logits_of(images)
                (grad,) = torch.autograd.grad(answers.sum(), images, create_graph=True)
            return grad.square().sum((1, 2, 3)).mean() * 0.1 / 2 * 16

        self.step(self.D, self.G, [loss])

    def generate(self):
        self.G.eval()
        with torch.no_grad():
            self.G(torch.randn(self.batch, self.G.z_dim), torch.zeros(self.batch, 0))
        self.G.train()

    def answer(self):
        "Forward and backward of the discriminator, without the optimiser."
        self.D.requires_grad_(True)
        with self.context():
            loss = F.softplus(-self.logits_of(self.images)).mean()
        loss.backward()
        self.D.zero_grad()


def iteration(ours: Side, theirs: Side, rounds: int) -> list[str]:
    "Rows of the four phases and of the iteration they make at their intervals."
    results, lines = {}, []
    for name, every in intervals.items():
        pair = getattr(ours, name), getattr(theirs, name)
        results[name] = found = alternate(*pair, rounds, 1, time.process_time)
        lines.append(row(name.replace("_", " ") + f", every {every}" * (every > 1), found))

    def added(value):
        return sum(value(result) / intervals[name] for name, result in results.items())

    total = {side: added(lambda result, s=side: result[s]) for side in ("ours", "theirs")}
    for key in ("low", "high"):  # quartiles of the phases, by their share of the time
        total[key] = added(lambda result, k=key: result[k] * result["theirs"]) / total["theirs"]
    total["ratio"] = total["ours"] / total["theirs"]
    return [*lines, row("**iteration**", total)]


def agreement(one: Side, two: Side) -> str:
    "Largest difference of images, as a share of their largest value, and of answers."
    z, none = torch.randn(one.batch, one.G.z_dim), torch.zeros(one.batch, 0)
    with torch.no_grad():
        a, b = (side.G(z, none, noise_mode="const") for side in (one, two))
        c, d = (side.D(one.images, none) for side in (one, two))
    images, answers = (a - b).abs().max() / b.abs().max(), (c - d).abs().max()
    return f"{images:.1e} of the largest value, of answers {answers:.1e}"


def has_bf16() -> bool:
    "Whether the processor computes in bfloat16."
    info = Path("/proc/cpuinfo")
    return info.exists() and any(w in info.read_text() for w in ("avx512_bf16", "amx_bf16"))


def main():
    words = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words.add_argument("--resolution", default=64, type=int)
    words.add_argument("--batch", default=4, type=int)
    words.add_argument("--rounds", default=5, type=int)
    words.add_argument("--seed", default=0, type=int)
    words.add_argument("--other", default="", help="module:build of a second implementation")
    words.add_argument("--grouped", action="store_true", help="the plain side in training, too")
    words.add_argument("--only", default="", help="iteration, generate, answer or bf16")
    words.add_argument("--quick", action="store_true", help="16 px, batch 2, one round")
    args = words.parse_args()
    if args.quick:
        args.resolution, args.batch, args.rounds = 16, 2, 1
    torch.set_num_threads(1)
    if args.other:
        module, _, name = args.other.partition(":")
        other = getattr(importlib.import_module(module), name or "build")
        other = other(args.resolution, args.seed)
    else:
        other = plain(args.resolution, args.seed, args.grouped)
    images = torch.rand(args.batch, 3, args.resolution, args.resolution) * 2 - 1
    ours = Side(*build(args.resolution, args.seed), args.batch, images)
    theirs = Side(*other, args.batch, images)
    print(f"{machine()}; {args}; medians of CPU time, ratio with its quartiles", flush=True)
    print(f"largest difference of images {agreement(ours, theirs)}\n")
    print("| | ours, ms | other, ms | ratio |\n| --- | --- | --- | --- |", flush=True)
    clock = time.process_time

    def wanted(word):
        return args.only in ("", word)

    if wanted("generate"):
        found = alternate(ours.generate, theirs.generate, args.rounds, 1, clock)
        print(row("generation", found), flush=True)
    if wanted("answer"):
        found = alternate(ours.answer, theirs.answer, args.rounds, 1, clock)
        print(row("discriminator, forward and backward", found), flush=True)
    if wanted("iteration"):
        print(*iteration(ours, theirs, args.rounds), sep="\n", flush=True)
    if wanted("bf16") and has_bf16():
        ours.autocast = True
        print("\nours in bf16 autocast, other in fp32\n", flush=True)
        print(*iteration(ours, theirs, args.rounds), sep="\n", flush=True)


if __name__ == "__main__":
    main()
