"Gradient checkpointing changes no gradient and keeps less, in every network that is trained."

import copy
import sys
from unittest.mock import patch

import pytest
import torch
from torch import nn

from synth_nb.core.seeding import seed_everything
from synth_nb.training import memory
from synth_nb.training.memory import enable_checkpointing


def unet(**options):
    from synth_nb.diffusion.model import new_unet

    net = new_unet(8, 8, 4, "mini", **options)
    return net, (torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 1, 8))


def letters():
    from synth_nb.emnist.model import new_unet

    return new_unet(4), (torch.randn(2, 1, 32, 32), torch.tensor([3, 700]), torch.tensor([0, 2]))


def pairs():
    from synth_nb.diffusion.masks import PairUNet

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
TWICE = [n for n in NETWORKS if "StyleGAN2" in n or "spectral" in n]  # R1 and path length


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


@pytest.mark.parametrize(
    "name, twice", [(n, False) for n in NETWORKS] + [(n, True) for n in TWICE]
)
def test_gradients_are_equal_and_less_is_saved(name, twice):
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


class Numbers:
    "Eight rows of noise."
    keys = tuple("01234567")

    def __len__(self):
        return 8

    def __getitem__(self, rows):
        return dict(image=torch.randn(len(rows), 1, 16, 16), mask=torch.ones(len(rows), 1, 16, 16))


FAILURES = {
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate "
                        "memory: you tried to allocate 1099511627776 bytes."),
    "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "numpy": MemoryError("Unable to allocate 1 TiB"),
}  # fmt: skip


def training(folder, failing_step, error, epochs=1, optimizer="adam", **changes):
    "A training of a segmenter whose loss fails to allocate in one step."
    from synth_nb.segmentation.networks import ResidualUNet
    from synth_nb.training.loop import Phase, Trainer, TrainingConfig
    from synth_nb.training.memory import new_optimizer

    net, calls = ResidualUNet(1, (8, 32)), [0]  # 8 bits begin at 4096 weights of a layer

    def loss(nets, batch):
        calls[0] += 1
        if calls[0] > failing_step:
            raise error
        return nets["unet"](batch["image"]).square().mean()

    config = TrainingConfig(epochs, 4, 32, device="cpu", **changes)
    phase = Phase(loss, new_optimizer(net.parameters(), optimizer))
    return Trainer(folder, Numbers(), dict(unet=net), [phase], config)


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("step", [0, 4], ids=["while it is tried", "in training"])
def test_a_failed_allocation_names_the_parameters(tmp_path, kind, step):
    with pytest.raises(MemoryError) as caught:
        training(tmp_path, step, FAILURES[kind]).fit()
    found = step - 2 if step else 0  # the first two are tries
    assert str(caught.value) == (
        f"training, step {found}: the memory is too small; turn `checkpointing` on, raise "
        "`accumulate` (now 1) or lower `batch_size` (now 4)"
    )
    assert caught.value.__suppress_context__


def test_what_is_used_already_is_not_advised(tmp_path):
    with pytest.raises(MemoryError, match=r"lower `batch_size` \(now 4\)$") as caught:
        training(tmp_path, 0, MemoryError(), checkpointing=True, accumulate=4).fit()
    assert "accumulate" not in str(caught.value) and "checkpointing" not in str(caught.value)


def test_another_error_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        training(tmp_path, 3, RuntimeError("shapes differ")).fit()


def test_the_estimate_names_the_parameters_where_memory_is_short(tmp_path, capsys, monkeypatch):
    training(tmp_path / "enough", 99, None).fit()
    assert "are free" not in capsys.readouterr().out
    monkeypatch.setattr("synth_nb.training.loop.free_bytes", lambda device: 1e6)
    training(tmp_path / "short", 99, None).fit()
    line = capsys.readouterr().out
    assert "only 1 MB of memory are free: turn `checkpointing` on" in line, line


def test_a_frozen_encoder_is_run_again():
    "Features of images, and the gradients of the images, are those without checkpointing."
    from synth_nb.dcgan import DiffAugment
    from synth_nb.embedders import load_embedder
    from synth_nb.embedding_gan import FeatureStack

    encoder = load_embedder("efficientnet_lite0@32")
    stack = FeatureStack(encoder, ["embedding", "layers"], torch.randn(9, 1280),
                         DiffAugment("translation"))
    images, results = torch.rand(2, 3, 32, 32) * 2 - 1, []
    for on in (False, True):
        stack.checkpointing, own = on, images.clone().requires_grad_()
        torch.manual_seed(2)
        features = stack(own)
        sum(x.square().mean() for x in features.values()).backward()
        results.append([*features.values(), own.grad])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_adam_in_8_bits_says_what_it_needs(monkeypatch):
    from synth_nb.training.memory import new_optimizer

    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ImportError, match=r"pip install 'synth_nb\[adam8bit\]'"):
        new_optimizer([nn.Parameter(torch.ones(2))], "adam8bit")


@pytest.mark.parametrize("kind", ["adafactor", "adam8bit"])
def test_an_optimiser_that_remembers_less_goes_on_from_a_checkpoint(kind, tmp_path):
    "Two epochs, and one and then another: the same weights, which are not those of the start."
    if kind == "adam8bit":
        pytest.importorskip("bitsandbytes")
    found, start = [], None
    for name, lengths in dict(one=[2], two=[1, 2]).items():
        for epochs in lengths:
            seed_everything(0)
            options = dict(optimizer=kind, checkpointing=True, accumulate=2)
            trainer = training(tmp_path / name, 99, None, epochs, **options)
            start = start or [p.detach().clone() for p in trainer.modules["unet"].parameters()]
            trainer.fit()
        found.append(list(trainer.modules["unet"].parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(found[0], start, strict=True) if a.ndim > 1)


def test_an_autoencoder_names_its_own_parameters(tmp_path):
    "A notebook's `batch_size` and `accumulate` are the diffusion model's."
    from synth_nb.em.autoencoder import SectionImages, fit_vae

    sections = SectionImages(torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8).numpy())
    failing = "synth_nb.em.autoencoder.VAELoss.__call__"
    with patch(failing, side_effect=MemoryError), pytest.raises(MemoryError) as caught:
        fit_vae(tmp_path, sections, 4, device="cpu", width=8)
    reason = "the memory is too small; lower `vae_width` or `chunk`"
    assert str(caught.value) == f"autoencoder, step 0: {reason}"


def test_a_peak_that_cannot_be_reset_stops_no_training(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CLEAR", tmp_path)  # as where nobody may write it
    memory.reset_peak(torch.device("cpu"))
    assert memory.peak_bytes(torch.device("cpu")) > 0
