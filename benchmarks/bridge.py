"""A SavedModel called through torch, against the same one called in TensorFlow directly.

The network is a ViT-S/16 in TensorFlow's operations, 384 features of 224 pixels, as large as
Path Foundation, drawn at random. One side is an embedder that gets float images (B, 3, 224, 224)
in torch, checks and prepares them and gives features, and with gradients the one of a sum of
squares. The other has the same images as (B, 224, 224, 3) in NumPy and asks the signature, under
a tape for the gradient. Needs TensorFlow; run: python benchmarks/bridge.py [--rounds 10]
"""

import argparse
import tempfile

import numpy as np
import torch
from common import alternate, machine, row

from synth_nb.embedders import load_embedder
from synth_nb.embedders.savedmodel import start_tensorflow

tf = start_tensorflow("this benchmark")
WIDTH, HEADS, DEPTH, PATCH, SIZE = 384, 6, 12, 16, 224
TOKENS = (SIZE // PATCH) ** 2 + 1


class Vision(tf.Module):
    "A plain vision transformer; its feature is the class token."

    def __init__(self):
        super().__init__()
        draw = np.random.default_rng(0).normal

        def weight(*shape):
            return tf.Variable(draw(0, np.prod(shape[:-1]) ** -0.5, shape).astype("float32"))

        self.stem, self.first = weight(PATCH, PATCH, 3, WIDTH), weight(1, 1, WIDTH)
        self.positions = weight(1, TOKENS, WIDTH)
        sizes = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]
        self.layers = [[weight(*size) for size in sizes] for _ in range(DEPTH)]

    def attend(self, x, into, out):
        "Attention of all heads."
        split = (-1, TOKENS, 3, HEADS, WIDTH // HEADS)
        q, k, v = tf.unstack(tf.transpose(tf.reshape(x @ into, split), (2, 0, 3, 1, 4)))
        seen = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) * (WIDTH // HEADS) ** -0.5) @ v
        return tf.reshape(tf.transpose(seen, (0, 2, 1, 3)), (-1, TOKENS, WIDTH)) @ out

    def __call__(self, images):
        x = tf.nn.conv2d(2 * images - 1, self.stem, PATCH, "VALID")
        x = tf.reshape(x, (-1, TOKENS - 1, WIDTH))
        x = tf.concat([tf.repeat(self.first, tf.shape(x)[0], 0), x], 1) + self.positions
        for into, out, up, down in self.layers:
            x += self.attend(norm(x), into, out)
            x += tf.nn.gelu(norm(x) @ up) @ down
        return norm(x)[:, 0]


def norm(x):
    "Layer normalisation."
    mean, variance = tf.nn.moments(x, -1, keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + 1e-6)


def saved(folder: str) -> str:
    "Write the network as Path Foundation is written."
    network = Vision()
    spec = tf.TensorSpec((None, SIZE, SIZE, 3), "float32", name="inputs")
    network.run = tf.function(lambda inputs: network(inputs), [spec], autograph=False)
    tf.saved_model.save(network, folder, network.run.get_concrete_function())
    return folder


def main(batches: list[int], rounds: int):
    "Print the table."
    print(f"{machine()}, TensorFlow {tf.__version__}; median of {rounds} pairs\n")
    print("| | ours, ms | TensorFlow, ms | ratio |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        embedder = load_embedder(f"savedmodel:{saved(folder)}")
        loaded = tf.saved_model.load(folder)
    direct = loaded.signatures["serving_default"]
    (name,) = direct.structured_outputs
    for batch in batches:
        images = torch.rand(batch, 3, SIZE, SIZE)
        rows = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())

        def ours(images=images):
            with torch.inference_mode():
                return embedder(images).numpy()

        def theirs(rows=rows):
            return direct(inputs=tf.constant(rows))[name].numpy()

        def our_gradient(images=images):
            x = images.clone().requires_grad_()
            return torch.autograd.grad(embedder(x).square().sum(), x)[0].numpy()

        def their_gradient(rows=rows):
            x = tf.constant(rows)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                loss = tf.reduce_sum(direct(inputs=x)[name] ** 2)
            return tape.gradient(loss, x).numpy()

        np.testing.assert_allclose(ours(), theirs(), atol=1e-4)
        same = our_gradient().transpose(0, 2, 3, 1), their_gradient()
        assert np.abs(same[0] - same[1]).max() < 1e-3 * np.abs(same[1]).max()
        for what, sides in [("features", (ours, theirs)),
                            ("features and gradient", (our_gradient, their_gradient))]:
            print(row(f"{what}, batch {batch}", alternate(*sides, rounds, warm=1)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=20)
    chosen = parser.parse_args()
    main(chosen.batches, chosen.rounds)
