"""What differential privacy costs a DCGAN: kernel distance, recall and coverage with and without.

All trainings have the same networks, batches drawn image by image and equal steps; the private one
clips each image's gradient and adds noise, and is without R1; the plain one is trained with it, as
02_dcgan is, and without. Needs the extra `privacy`.
Run: python benchmarks/private_gan.py [--epsilon 10] …
"""

import argparse
import copy

import pandas as pd
import torch
import torch.nn.functional as F
from common import machine

from synth_nb.core.seeding import fork_rng
from synth_nb.data import open_dataset, to_float, to_uint8
from synth_nb.dcgan.losses import squared_gradient_norm
from synth_nb.dcgan.model import NoiseToImage
from synth_nb.dcgan.networks import Discriminator, Generator
from synth_nb.dcgan.private import private_discriminator
from synth_nb.embedders import embed_images, load_embedder
from synth_nb.evaluation.report import markdown
from synth_nb.figures.plots import save_figure, strips
from synth_nb.metrics import kernel_distance, prdc


def trained(images: torch.Tensor, args, epsilon: float, gamma: float, seed: int) -> NoiseToImage:
    "A DCGAN after some steps; `epsilon` 0: without privacy, `gamma` 0: without R1."
    with fork_rng(seed):
        G = Generator(args.size, images.shape[1], 64, args.width)
        D = Discriminator(args.size, images.shape[1], args.width, "none")
        both = [torch.optim.Adam(net.parameters(), args.lr, (0.5, 0.999)) for net in (G, D)]
        if epsilon:
            D, both[1] = private_discriminator(D, both[1], epsilon, len(images), args.batch,
                                               args.steps)
            print(f"noise σ {both[1].noise_multiplier:.2f}", flush=True)
        average = copy.deepcopy(G)
        for step in range(args.steps):
            real = images[torch.rand(len(images)) < args.batch / len(images)]
            with torch.no_grad():
                synthetic = G(torch.randn(args.batch, 64))
            signs = torch.ones(len(real) + args.batch)
            signs[len(real) :] = -1
            loss = F.softplus(-signs * D(torch.cat([to_float(real), synthetic]))).sum()
            both[1].zero_grad()
            loss = loss if epsilon else loss / args.batch
            if gamma:  # R1 (Mescheder et al. 2018, eq. 9)
                loss = loss + gamma / 2 * squared_gradient_norm(D, to_float(real)).mean()
            loss.backward()
            both[1].step()
            both[0].zero_grad()
            F.softplus(-D(G(torch.randn(args.batch, 64)))).mean().backward()
            both[0].step()
            both[1].zero_grad()
            for mine, theirs in zip(average.state_dict().values(), G.state_dict().values(),
                                    strict=True):
                mine.copy_(mine.lerp(theirs, 0.02) if mine.is_floating_point() else theirs)
            if step % 100 == 0:
                print(f"ε {epsilon:g}, γ {gamma:g}, seed {seed}, step {step}: {loss.item():.3f}",
                      flush=True)
    return NoiseToImage(average.eval())


def settings(words: list[str] | None = None):
    "What to measure, from the command line."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="mr_phantom")
    parser.add_argument("--train", default=2000, type=int)
    parser.add_argument("--unseen", default=400, type=int)
    parser.add_argument("--size", default=32, type=int)
    parser.add_argument("--width", default=8, type=int)
    parser.add_argument("--batch", default=128, type=int)
    parser.add_argument("--lr", default=1e-3, type=float)
    parser.add_argument("--steps", default=800, type=int)
    parser.add_argument("--epsilon", default=10.0, type=float)
    parser.add_argument("--gamma", default=0.2, type=float, help="of R1")
    parser.add_argument("--seeds", default=2, type=int)
    parser.add_argument("--picture", default="", help="file for samples of both")
    return parser.parse_args(words)


def main(words: list[str] | None = None):
    args = settings(words)
    images = open_dataset(args.data, args.size, 1, n=args.train + args.unseen).images
    images = torch.from_numpy(images[:])
    train, unseen = images[: args.train], images[args.train :]
    embedder = load_embedder("efficientnet_lite2@64", "auto")
    real, rows, shown = embed_images(embedder, unseen, cache=False), [], {"real": unseen[:12]}
    for seed in range(args.seeds):
        for title, epsilon, gamma in (("without privacy, R1", 0.0, args.gamma),
                                      ("without privacy", 0.0, 0.0),
                                      (f"ε = {args.epsilon:g}", args.epsilon, 0.0)):
            model = trained(train, args, epsilon, gamma, seed)
            samples = to_uint8(model.sample(len(unseen), 0).images)
            fake = embed_images(embedder, samples, cache=False)
            shown.setdefault(title, samples[:12])
            scores = prdc(real, fake, 5)
            rows.append(dict(training=title, seed=seed, kernel=1000 * kernel_distance(real, fake),
                             recall=scores["recall"], coverage=scores["coverage"]))
            print(rows[-1], flush=True)
    half = embed_images(embedder, train[: len(unseen)], cache=False)
    scores = prdc(real, half, 5)
    rows.append(dict(training="real vs real", seed=0, kernel=1000 * kernel_distance(real, half),
                     recall=scores["recall"], coverage=scores["coverage"]))
    table = pd.DataFrame(rows)
    print(f"{machine()}, {embedder.id}, {args}\n")
    print(markdown(table.groupby("training", sort=False)[["kernel", "recall", "coverage"]].mean()))
    if args.picture:
        save_figure(strips(shown), args.picture)


if __name__ == "__main__":
    main()
