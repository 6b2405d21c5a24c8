"Gradient checkpointing changes no gradient and keeps less, in every network that is trained."

import copy

import pytest
import torch
from torch import nn

from synth_nb.training.memory import enable_checkpointing


def unet(**options):
    from synth_nb.diffusion.model import new_unet

    net = new_unet(8, 8, 4, "mini", **options)
    return net, (torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 1, 8))


def letters():
    from synth_nb.emnist.model import new_unet

    return new_unet(4), (torch.randn(2, 1, 32, 32), torch.tensor([3, 700]), torch.tensor([0, 2]))


def pairs():
    from synth_nb.em.pairs import PairUNet

    net = PairUNet(widths=(16, 32))
    return net, (torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 1, 8))


def segmenter():
    from synth_nb.segmentation.networks import ResidualUNet

    return ResidualUNet(1, (8, 16, 24)), (torch.randn(3, 1, 16, 16),)


def dcgan(norm):
    from synth_nb.dcgan import Discriminator

    return Discriminator(32, 1, 8, norm), (torch.randn(3, 1, 32, 32),)


def generator():
    from synth_nb.dcgan import Generator

    return Generator(32, 1, 8, 8, True), (torch.randn(3, 8),)


def style(kind):
    from synth_nb.stylegan2.networks import Discriminator, Synthesis

    options = dict(channel_base=256, channel_max=16)
    if kind == "discriminator":
        return Discriminator(0, 32, 1, **options), (torch.randn(4, 1, 32, 32),)
    net = Synthesis(8, 32, 1, **options)
    return net, (torch.randn(4, net.num_ws, 8),)


NETWORKS = {
    "diffusion UNet": unet,
    "diffusion UNet with dropout": lambda: unet(dropout=0.3),
    "UNet of letters": letters,
    "UNet of pairs": pairs,
    "segmenter": segmenter,
    "DCGAN generator": generator,
    "DCGAN discriminator": lambda: dcgan("batch"),
    "DCGAN discriminator, spectral": lambda: dcgan("spectral"),
    "StyleGAN2 synthesis": lambda: style("synthesis"),
    "StyleGAN2 discriminator": lambda: style("discriminator"),
}
TWICE = [n for n in NETWORKS if "StyleGAN2" in n or "spectral" in n]


def output(net: nn.Module, inputs: tuple) -> torch.Tensor:
    found = net(*inputs)
    return getattr(found, "sample", found[0] if isinstance(found, tuple) else found)


def step(net: nn.Module, inputs: tuple, twice: bool) -> tuple[list[torch.Tensor], int]:
    "Gradients and buffers after a step, and bytes that its forward pass saved."
    sizes = {}

    def note(x):
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss = output(net, inputs).square().sum() + output(net, inputs).sum()
    if twice:
        [gradient] = torch.autograd.grad(loss, inputs[0], create_graph=True)
        loss = gradient.square().sum()
    loss.backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    return gradients + list(net.buffers()), sum(sizes.values())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_gradients_are_equal_and_less_is_saved(name, twice):
    if twice and name not in TWICE:
        pytest.skip("it is never differentiated twice")
    torch.manual_seed(0)
    plain, inputs = NETWORKS[name]()
    plain.train()
    again = copy.deepcopy(plain)
    enable_checkpointing(again)
    inputs[0].requires_grad_()
    expected, before = step(plain, inputs, twice)
    found, after = step(again, inputs, twice)
    assert len(expected) == len(found) > 4
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)
    weights = sum(p.nbytes for p in plain.parameters())  # a plain pass saves them too
    assert after < 0.8 * (before - weights)
