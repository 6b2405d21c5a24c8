"The losses of StyleGAN2-ADA: published values, pieces of a batch, checkpoints, several kinds."

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from synth_nb.core.parameters import ParameterError
from synth_nb.stylegan2.augment import Augment
from synth_nb.stylegan2.config import (
    choose_settings,
    ema_decay,
    from_original_parameters,
    optimizer_options,
    parse_seeds,
)
from synth_nb.stylegan2.loss import (
    ADAController,
    DiscriminatorLoss,
    GeneratorLoss,
    GradientPenalty,
    PathLength,
    StyleSampler,
    extra_modules,
    new_phases,
    path_lengths,
    squared_gradient_norms,
)
from synth_nb.training.loop import Trainer, TrainingConfig

FILE = Path(__file__).parent / "reference" / "stylegan2_res32_rgb.npz"
built = importlib.util.find_spec("synth_nb.stylegan2.networks") and FILE.is_file()
published = pytest.mark.skipif(not built, reason="needs the networks and their reference values")


@pytest.fixture(scope="module")
def reference():
    "Networks with the reference weights, and the values."
    from synth_nb.stylegan2.networks import Discriminator, Generator

    with np.load(FILE) as file:
        values = {name: file[name] for name in file.files}
    config = json.loads(str(values["config"]))
    width = dict(channel_base=config["channel_base"], channel_max=config["channel_max"])
    image = (config["res"], config["img_channels"])
    depth = dict(num_layers=config["map_depth"])
    G = Generator(config["z_dim"], 0, config["w_dim"], *image, depth, width)
    D = Discriminator(0, *image, **width, epilogue_kwargs=dict(mbstd_group_size=config["mbstd"]))
    for net, letter in ((G, "G"), (D, "D")):
        weights = {k[2:]: torch.tensor(v) for k, v in values.items() if k.startswith(f"{letter}/")}
        net.load_state_dict(weights, strict=False)
    tensors = {k: torch.tensor(v) for k, v in values.items() if k[:3] in ("in/", "out")
               and v.dtype.kind != "U"}
    return G.eval(), D.eval(), tensors, values


class ReferenceSampler(StyleSampler):
    "Draws the reference's latents, with constant noise in the layers."

    def __init__(self, z):
        super().__init__(z.shape[1])
        self.z = z

    def styles(self, nets, count, c, device):
        return nets["generator"].mapping(self.z[:count], c)

    def images(self, nets, batch, c):
        return nets["generator"].synthesis(self.styles(nets, 4, c, None), noise_mode="const")


def norms(net: nn.Module, names, value) -> torch.Tensor:
    found = dict(net.named_parameters())
    slopes = torch.autograd.grad(value, [found[n] for n in names], allow_unused=True)
    return torch.stack([torch.zeros(()) if s is None else s.norm() for s in slopes]).double()


def near(ours, theirs, tolerance=1e-3):
    "Each by itself, since gradient norms differ by powers of ten."
    ours, theirs = ours.double(), theirs.double()
    size = theirs.abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=1e-6 * size)


@published
def test_main_losses_as_published(reference):
    G, D, values, names = reference
    nets, batch = dict(generator=G, discriminator=D), dict(image=values["in/x"])
    sampler = ReferenceSampler(values["in/z"])
    value = GeneratorLoss(sampler)(nets, batch)
    near(value.detach(), values["out/loss_Gmain"])
    near(norms(G, names["out/names_G"], value), values["out/gradnorm_Gmain"])
    value = DiscriminatorLoss(sampler)(nets, batch)
    near(value.detach(), values["out/loss_Dmain"])
    near(norms(D, names["out/names_D"], value), values["out/gradnorm_Dmain"])


@published
def test_gradient_penalty_as_published(reference):
    _, D, values, names = reference
    x = values["in/x"].clone().requires_grad_()
    slopes = squared_gradient_norms(D(x), x)
    near(slopes.detach(), values["out/r1"])
    penalty = GradientPenalty(StyleSampler(), gamma=2.0, every=1)(
        dict(discriminator=D), dict(image=values["in/x"])
    )
    near(penalty.detach(), values["out/r1"].mean())
    near(norms(D, names["out/names_D"], penalty), values["out/gradnorm_r1"])


@published
def test_path_lengths_as_published(reference):
    G, _, values, names = reference
    ws = G.mapping(values["in/z"])
    lengths = path_lengths(G.synthesis(ws, noise_mode="const"), ws, values["in/pl_noise"])
    near(lengths.detach(), values["out/pl_lengths"])
    squares = PathLength().eval()(lengths).mean()  # from a mean that is still 0
    near(norms(G, names["out/names_G"], squares), values["out/gradnorm_pl"])


class Half(nn.Module):
    "The smallest generator: a linear mapping, and a linear layer for each style."

    def __init__(self, classes: int = 0):
        super().__init__()
        self.mapping, self.synthesis = Mapping(classes), Synthesis()


class Mapping(nn.Linear):
    def __init__(self, classes: int):
        super().__init__(5 + classes, 4)

    def forward(self, z, c=None):
        z = z if c is None else torch.cat([z, c], 1)
        return super().forward(z).tanh()[:, None].expand(-1, 3, -1)


class Synthesis(nn.Linear):
    def __init__(self):
        super().__init__(12, 192)

    def forward(self, ws):
        return super().forward(ws.flatten(1)).tanh().view(-1, 3, 8, 8)


class TinyDiscriminator(nn.Linear):
    def __init__(self):
        super().__init__(192, 1)

    def forward(self, x, c=None):
        return super().forward(x.flatten(1))


class RandomImages:
    def __init__(self):
        draws = torch.Generator().manual_seed(0)
        self.pictures = torch.rand(32, 3, 8, 8, generator=draws) * 2 - 1

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, rows):
        return dict(image=self.pictures[rows], label=torch.tensor(rows) % 3)


def trained(folder, epochs=1, accumulate=1, classes=0, apart=False, **changes) -> Trainer:
    "A training with the smallest networks, eight steps to an epoch."
    torch.manual_seed(0)
    options = dict(z_dim=5, ada_kimg=0.4, group=4) | changes
    settings = choose_settings("auto", 8, 16, **options)
    generator, discriminator = Half(classes), TinyDiscriminator()
    phases = new_phases(settings, generator.parameters(), discriminator.parameters(), classes)
    parts = dict(mapping=generator.mapping, synthesis=generator.synthesis)
    modules = (parts if apart else dict(generator=generator)) | dict(discriminator=discriminator)
    plan = TrainingConfig(epochs, 16, 16 * 8, accumulate, device="cpu", precision="fp32")
    trainer = Trainer(folder, RandomImages(), modules | extra_modules(settings), phases, plan)
    trainer.fit()
    return trainer


@pytest.mark.parametrize("relativistic", [False, True])
def test_resume_is_exact(tmp_path, relativistic):
    options = dict(relativistic=relativistic)
    once = trained(tmp_path / "once", 3, **options)
    trained(tmp_path / "parts", 1, **options)
    parts = trained(tmp_path / "parts", 3, **options)
    ours, theirs = ({f"{n}.{k}": v for n, m in t.modules.items() for k, v in m.state_dict().items()}
                    for t in (once, parts))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert float(ours["ada.sign"]) != 0


def test_phases_take_turns(tmp_path):
    "Of eight steps, the path regulariser runs in two and R1 in one; each is a step of its Adam."
    trainer = trained(tmp_path)
    steps = [next(iter(o.state_dict()["state"].values()))["step"].item()
             for o in trainer.optimizers.values()]
    assert steps == [8 + 2, 8 + 1]
    assert [p.every for p in trainer.phases] == [1, 4, 1, 16]
    assert all(p.clip is None for p in trainer.phases)


def test_the_controller_counts_images_not_microbatches(tmp_path):
    once, cut = (trained(tmp_path / str(n), accumulate=n) for n in (1, 4))
    for trainer in (once, cut):  # 8 steps of 16 images: a change after 64 and after 128
        assert trainer.modules["ada"].signs.tolist() == [0, 0]
        images = trainer.modules["augment"].p.item() * 400
        assert images == pytest.approx(64 * round(images / 64), rel=1e-5)


def test_generator_in_two_parts_is_the_same(tmp_path):
    one, two = (trained(tmp_path / str(apart), apart=apart) for apart in (False, True))
    assert torch.equal(one.modules["generator"].mapping.weight, two.modules["mapping"].weight)


def test_classes_reach_both_networks(tmp_path):
    trainer = trained(tmp_path, classes=3)
    start = trained(tmp_path / "start", 0, classes=3)
    moved = trainer.modules["generator"].mapping.weight - start.modules["generator"].mapping.weight
    assert (moved[:, 5:] != 0).all()


def test_mixing_can_be_switched_off(tmp_path):
    counts = []

    class Counting(Half):
        def __init__(self):
            super().__init__()
            self.mapping.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))

    nets = dict(generator=Counting(), discriminator=TinyDiscriminator())
    for share in (0.0, 0.9):
        GeneratorLoss(StyleSampler(5, mixing=share))(nets, dict(image=torch.zeros(4, 3, 8, 8)))
    assert counts == [4, 8]


def test_the_controller_waits_for_its_target():
    augment, ada = Augment("bgc", p=0.5), ADAController(8, target=0.5, kimg=1)
    ada(torch.tensor([[1.0]] * 6 + [[-1.0]] * 2), augment)  # a mean sign of exactly 0.5
    assert augment.p.item() == 0.5
    ada(torch.full((8, 1), 3.0), augment)
    assert augment.p.item() == pytest.approx(0.508)
    augment.p.fill_(1.0)
    ada(torch.full((8, 1), 3.0), augment)
    assert augment.p.item() == 1


def test_gradient_penalty_reaches_through_every_augmentation():
    torch.manual_seed(0)
    nets = dict(discriminator=nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Tanh(),
                                            nn.Linear(8, 1)))
    body = nets["discriminator"]
    nets["discriminator"] = lambda x, c: body(x)
    nets["augment"] = Augment("bgcfnc", p=1)
    batch = dict(image=torch.rand(4, 3, 8, 8) * 2 - 1)
    GradientPenalty(StyleSampler(), gamma=1.0)(nets, batch).backward()
    assert body[1].weight.grad.abs().sum() > 0 and body[1].weight.grad.isfinite().all()


@pytest.mark.parametrize("cfg", ["auto", "stylegan2", "paper256", "paper512", "paper1024"])
@pytest.mark.parametrize("size", [64, 256, 1024])
def test_settings_agree_with_each_other(cfg, size):
    one, half = choose_settings(cfg, size), None
    if one.batch_size > 4:
        half = choose_settings(cfg, size, one.batch_size // 2)
        assert half.gamma * half.batch_size == pytest.approx(one.gamma * one.batch_size)
        assert ema_decay(half) == pytest.approx(ema_decay(one))  # half as far in half as many steps
    options = optimizer_options(one, "discriminator")
    assert options["lr"] < one.lr and options["betas"][1] > one.beta2


def test_old_words_and_seeds_are_refused_in_sentences():
    for call, words in [
        (lambda: parse_seeds("5-1"), "write '1-5'"),
        (lambda: parse_seeds(""), "numbers like"),
        (lambda: from_original_parameters(dict(batch=1), dict(batch_size=2)), "the same parameter"),
        (lambda: choose_settings(kimg=0), "`kimg` must be above 0"),
        (lambda: choose_settings(image_size="512x256"), "square"),
        (lambda: choose_settings(batch_size=-1), "cannot be trained"),
        (lambda: choose_settings(batch_size=16, gpus=3), "change `batch_size` or `group`"),
        (lambda: Augment("bgd"), "no augmentation 'bgd'"),
    ]:
        with pytest.raises(ParameterError, match=words):
            call()
