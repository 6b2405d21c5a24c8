"Every augmentation of StyleGAN2-ADA, against values of the published definition."

from pathlib import Path

import numpy as np
import pytest
import torch

from synth_nb.core.testing import assert_near
from synth_nb.data.affine import scaling
from synth_nb.stylegan2 import augment
from synth_nb.stylegan2.augment import Augment, BatchRandom

WORDS = [name for names in augment.GROUPS.values() for name in names if name != "noise"]
CHOICES = [*WORDS, "blit", "geom", "color", "bgc"]


class Fixed(BatchRandom):
    "Everything happens, and every number has the same percentile."

    def __init__(self, count: int, percentile: float):
        super().__init__(count)
        self.percentile = percentile

    def uniform(self):
        return torch.full((self.count,), self.percentile, dtype=torch.float64)

    def normal(self):  # the reference takes the error function's inverse without the factor √2
        return torch.erfinv(2 * self.uniform() - 1)

    def bernoulli(self, p):
        return torch.full((self.count,), p > 0)


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parent / "reference" / "stylegan2_augment.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.mark.parametrize("words", CHOICES)
@pytest.mark.parametrize("case", ["0.2", "0.8", "0.8_gray"])
def test_same_as_published(reference, monkeypatch, words, case):
    one_turn = augment.GEOMETRIC[:6] + augment.GEOMETRIC[7:]  # the reference fixes only the first
    monkeypatch.setattr(augment, "GEOMETRIC", one_turn)
    images = reference["x_gray" if "gray" in case else "x"]
    rng = Fixed(len(images), float(case.split("_")[0]))
    ours = Augment(words, p=1).change(images, 1.0, rng)[:, :, reference["rows"]]
    name = dict(imgfilter="filter").get(words, words)
    assert_near(ours, reference[f"{name}@{case}"])


@pytest.mark.parametrize("word", [*WORDS, "noise"])
def test_gradient_of_a_gradient_penalty(word):
    torch.manual_seed(1)
    images = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    changes = Augment(word, p=1).double()

    def penalty(x):
        torch.manual_seed(2)  # the same draws every time
        [slope] = torch.autograd.grad((changes.change(x, 1.0, BatchRandom(2)) ** 3).sum(), x,
                                      create_graph=True)
        return slope.square().sum()

    x = images.clone().requires_grad_()
    [exact] = torch.autograd.grad(penalty(x), x)
    step = 1e-5 * torch.randn_like(images)
    above, below = (penalty((images + sign * step).requires_grad_()) for sign in (1, -1))
    assert (exact * step).sum() == pytest.approx(((above - below) / 2).item(), rel=1e-4)


@pytest.mark.parametrize("word", [*WORDS, "noise"])
def test_strength_is_how_often(word):
    torch.manual_seed(0)
    images = torch.rand(400, 3, 16, 16) * 2 - 1
    changed = (Augment(word, p=0.4)(images) - images).abs().flatten(1).amax(1) > 1e-4
    seen = dict(xflip=1 / 2, rotate90=3 / 4, lumaflip=1 / 2, xint=24 / 25, imgfilter=1)
    chance = 1 - 0.6**4 if word == "imgfilter" else 0.4 * seen.get(word, 1)
    std = (chance * (1 - chance) / len(images)) ** 0.5  # of a share among so many draws
    assert changed.float().mean().item() == pytest.approx(chance, abs=3.7 * std)


@pytest.mark.parametrize("size", [(32, 32), (16, 24), (28, 28), (40, 9)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size(size, channels):
    images = torch.rand(3, channels, *size, requires_grad=True)
    seen = Augment("bgcfnc", p=1)(images)
    assert seen.shape == images.shape and seen.isfinite().all()
    [slope] = torch.autograd.grad(seen.square().sum(), images, create_graph=True)
    slope.square().sum().backward()
    assert images.grad.isfinite().all()


def test_strength_is_checkpointed_and_nothing_else():
    first = Augment("bgc", p=0.37)
    second = Augment("bgc")
    second.load_state_dict(first.state_dict())
    assert second.p == first.p and list(first.state_dict()) == ["p"]


def test_half_precision_training_does_not_round_images():
    images = torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(0)
        mixed = Augment("bgcf", p=1)(images.bfloat16())
    torch.manual_seed(0)
    full = Augment("bgcf", p=1)(images.bfloat16().float())
    assert mixed.dtype == torch.float32 and torch.equal(mixed, full)


def test_a_far_zoom_out_is_filled_with_reflections():
    images = torch.ones(1, 1, 16, 16)
    tiny = scaling(*torch.full((2, 1), 0.15, dtype=torch.float64))
    seen = augment.apply_geometric(images, tiny, torch.tensor(augment.SYM6))
    assert (seen - 1).abs().max() < 0.02
