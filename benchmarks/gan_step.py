"""A training step of the two GANs, against a plain loop of the same networks and their parts.

DCGAN: the plain side is the loop of PyTorch's own DCGAN tutorial with these networks: binary
cross-entropy on real and synthetic batches, Adam, the same images for both networks, and a moving
average of the generator. Embedding GAN: the generator's step against generator forward and
backward plus embedder forward and backward, each alone. Run: python benchmarks/gan_step.py
"""

import argparse
import tempfile
import time

import torch
from common import alternate, machine, row
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from synth_nb.dcgan import Discriminator, Game, Generator
from synth_nb.embedders import load_embedder
from synth_nb.embedding_gan import EmbeddingDiscriminator, EmbeddingGame, Sight
from synth_nb.training.loop import Phase, Trainer, TrainingConfig


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
    game = Game(lambda images: images, lambda batch: batch["image"])
    phases = [Phase(game.generator, adam(G), "G", clip=None),
              Phase(game.discriminator, adam(D), "D", clip=None)]
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


def embedding_step(size, batch_size, width, name, sees):
    "The generator's step of the embedding GAN; the sum of its parts."
    eye, images = load_embedder(name), torch.rand(batch_size, 3, size, size) * 2 - 1
    sight = Sight(eye, sees, torch.randn(100, eye.dim))
    G, game = Generator(size, width=width), EmbeddingGame(sight)
    D = EmbeddingDiscriminator(sight(images)).requires_grad_(False)
    keys, back = dict(key=range(batch_size)), torch.randn(batch_size, eye.dim)
    upstream = torch.randn_like(images)

    def whole():
        game.generator(dict(G=G, D=D), keys).backward()
        game.kept.clear()
        G.zero_grad()

    def parts():
        G(torch.randn(batch_size, 100)).backward(upstream)
        G.zero_grad()
        shown = ((images.detach() + 1) / 2).requires_grad_()
        eye(shown).backward(back)

    return whole, parts


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--width", type=int, default=64, help="of the networks, as published")
    given = parser.parse_args()
    print(machine(), "\n\n| step | ours, ms | plain, ms | ratio |\n| --- | --- | --- | --- |")
    for size, batch_size in ((224, 16), (64, 32)):
        sides = [side(size, batch_size, given.width) for side in (ours, plain)]
        found = alternate(*sides, given.rounds, clock=time.process_time)
        print(row(f"DCGAN, {size} px, batch {batch_size}", found), flush=True)
    for size, sees in ((64, "embedding"), (64, "embedding,layers"), (224, "embedding")):
        name = f"efficientnet_lite0@{size}"
        sides = embedding_step(size, 16, given.width, name, sees.split(","))
        found = alternate(*sides, given.rounds, clock=time.process_time)
        print(row(f"generator's step through {name}, {sees}, batch 16", found), flush=True)


if __name__ == "__main__":
    main()
