"""A training step of the two GANs, against a plain loop of the same networks and their parts.

DCGAN: the plain side is the loop of PyTorch's own DCGAN tutorial with these networks: binary
cross-entropy on real and synthetic batches, Adam, the same images for both networks, and a moving
average of the generator. Embedding GAN: the generator's step against generator forward and
backward plus embedder forward and backward, each alone. `--operators` counts instead what a step of
StyleGAN2 makes the host dispatch, phase by phase, and of the networks alone beside the plain
formulation of stylegan2.py; widths are small, since they change no count.
Run: python benchmarks/gan_step.py [--operators]
"""

import argparse
import tempfile
import time

import torch
from common import alternate, machine, row
from stylegan2 import PlainDiscriminator, PlainGenerator, Side
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from synth_nb.dcgan import Discriminator, GANLosses, Generator
from synth_nb.embedders import load_embedder
from synth_nb.embedding_gan import EmbeddingDiscriminator, EmbeddingGANLosses, FeatureStack
from synth_nb.stylegan2 import choose_settings, extra_modules, new_networks, new_phases
from synth_nb.training.loop import Phase, Trainer, TrainingConfig
from synth_nb.training.waits import CountedOperators


class Noise:
    "Random images, so that reading data plays no part."

    def __init__(self, size, count=64):
        self.images = torch.rand(count, 3, size, size) * 2 - 1
        self.keys = [str(i) for i in range(count)]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        return dict(image=self.images[rows], key=[self.keys[i] for i in rows])


def adam(network):
    return torch.optim.Adam(network.parameters(), 2e-4, betas=(0.5, 0.999))


def ours(size, batch_size, width):
    "One step of the project's trainer."
    G, D = Generator(size, width=width), Discriminator(size, width=width)
    losses = GANLosses(lambda images: images, lambda batch: batch["image"])
    phases = [Phase(losses.generator, adam(G), "G", clip=None),
              Phase(losses.discriminator, adam(D), "D", clip=None)]
    plan = TrainingConfig(1, batch_size, precision="fp32", device="cpu")
    networks = dict(G=G, D=D)
    trainer = Trainer(tempfile.mkdtemp(), Noise(size), networks, phases, plan, dict(G=0.995))
    return trainer.training_step


def plain(size, batch_size, width):
    "The same step, written as in PyTorch's tutorial."
    G, D = Generator(size, width=width).train(), Discriminator(size, width=width).train()
    average = AveragedModel(G, multi_avg_fn=get_ema_multi_avg_fn(0.995), use_buffers=True)
    adam_g, adam_d, data = adam(G), adam(D), Noise(size)
    entropy, ones = F.binary_cross_entropy_with_logits, torch.ones(batch_size)

    def step():
        real = data[torch.randint(len(data), (batch_size,)).tolist()]["image"]
        D.zero_grad()
        loss_real = entropy(D(real), ones)
        loss_real.backward()
        fake = G(torch.randn(batch_size, 100))
        loss_fake = entropy(D(fake.detach()), 0 * ones)
        loss_fake.backward()
        adam_d.step()
        G.zero_grad()
        loss = entropy(D(fake), ones)
        loss.backward()
        adam_g.step()
        average.update_parameters(G)
        return loss.item() + loss_real.item() + loss_fake.item()

    return step


def embedding_step(size, batch_size, width, name, discriminator_input):
    "The generator's step of the embedding GAN; the sum of its parts."
    embedder, images = load_embedder(name), torch.rand(batch_size, 3, size, size) * 2 - 1
    features = FeatureStack(embedder, discriminator_input, torch.randn(100, embedder.dim))
    G, losses = Generator(size, width=width), EmbeddingGANLosses(features)
    D = EmbeddingDiscriminator(features(images)).requires_grad_(False)
    keys, back = dict(key=range(batch_size)), torch.randn(batch_size, embedder.dim)
    upstream = torch.randn_like(images)

    def full_step():
        losses.generator(dict(G=G, D=D), keys).backward()
        losses.cached.clear()
        G.zero_grad()

    def parts():
        G(torch.randn(batch_size, 100)).backward(upstream)
        G.zero_grad()
        units = ((images.detach() + 1) / 2).requires_grad_()
        embedder(units).backward(back)

    return full_step, parts


def operators(size: int = 256, batch_size: int = 4):
    "Rows of what StyleGAN2's phases dispatch: a trainer's, the networks alone, the plain ones."
    widths = dict(channel_base=4 * size, channel_max=16, z_dim=16, w_dim=16, clamp=None)
    settings = choose_settings("auto", size, batch_size, **widths)
    G, D = new_networks(settings)
    extra = extra_modules(settings)
    extra["augment"].p.fill_(0.3)
    trainer = Trainer(tempfile.mkdtemp(), Noise(size), dict(generator=G, discriminator=D, **extra),
                      new_phases(settings, G.parameters(), D.parameters()),
                      TrainingConfig(1, batch_size, precision="fp32", device="cpu"))
    images = trainer.batches(0)[0][0]["image"]
    sides = [Side(G, D, batch_size, images),
             Side(PlainGenerator(G, False), PlainDiscriminator(D), batch_size, images)]
    for phase, name in zip(trainer.phases, ("generator", "path_length", "discriminator", "penalty"),
                           strict=True):
        trainer.backward(phase, trainer.batches(0))
        phase.optimizer.zero_grad()
        with CountedOperators() as whole:
            trainer.backward(phase, trainer.batches(0))
        phase.optimizer.zero_grad()
        counts = []
        for side in sides:
            for adam in side.adam.values():
                adam.step = lambda: None
            with CountedOperators() as counted:
                getattr(side, name)()
            counts.append(counted.operators)
        yield f"| {name.replace('_', ' ')} | {whole.operators} | {counts[0]} | {counts[1]} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--width", type=int, default=64, help="of the networks, as published")
    parser.add_argument("--quick", action="store_true", help="narrow networks, two rounds")
    parser.add_argument("--operators", action="store_true", help="count them, in StyleGAN2")
    args = parser.parse_args()
    if args.operators:
        print("| phase | trainer | networks | plain |\n| --- | --- | --- | --- |")
        return print(*operators(), sep="\n")
    if args.quick:
        args.rounds, args.width = 2, 8
    print(machine(), "\n\n| step | ours, ms | plain, ms | ratio |\n| --- | --- | --- | --- |")
    for size, batch_size in ((224, 16), (64, 32)):
        sides = [side(size, batch_size, args.width) for side in (ours, plain)]
        seconds = alternate(*sides, args.rounds, clock=time.process_time)
        print(row(f"DCGAN, {size} px, batch {batch_size}", seconds), flush=True)
    for size, inputs in ((64, "embedding"), (64, "embedding,layers"), (224, "embedding")):
        name = f"efficientnet_lite0@{size}"
        sides = embedding_step(size, 16, args.width, name, inputs.split(","))
        seconds = alternate(*sides, args.rounds, clock=time.process_time)
        print(row(f"generator's step through {name}, {inputs}, batch 16", seconds), flush=True)


if __name__ == "__main__":
    main()
