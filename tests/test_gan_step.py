"What a training step of the three GANs asks of the host: no value, no copy, no graph break."

import pytest
import torch

from synth_nb.core.testing import assert_near
from synth_nb.data import Views, open_dataset
from synth_nb.dcgan import DiffAugment, Discriminator, GANLosses, Generator, gan_phases
from synth_nb.embedders import load_embedder
from synth_nb.embedding_gan import EmbeddingDiscriminator, EmbeddingGANLosses, FeatureStack
from synth_nb.stylegan2 import choose_settings, extra_modules, new_networks, new_phases
from synth_nb.training.loop import Trainer, TrainingConfig
from synth_nb.training.waits import blind_steps

PLAN = TrainingConfig(1, 8, device="cpu", precision="fp32")
SMALL = dict(channel_base=128, channel_max=8, z_dim=8, w_dim=8, mapping_layers=2)


@pytest.fixture(scope="module")
def images():
    return open_dataset("digits", image_size=16, channels=1).train


def stylegan2(folder, images, augment="bgcfnc", classes=0, **changes) -> Trainer:
    settings = choose_settings("auto", 16, 8, augment=augment, **SMALL | changes)
    torch.manual_seed(0)
    G, D = new_networks(settings, 1, classes)
    extra = extra_modules(settings)
    if "augment" in extra:
        extra["augment"].p.fill_(0.5)
    modules = dict(generator=G, discriminator=D, **extra)
    phases = new_phases(settings, G.parameters(), D.parameters(), classes)
    return Trainer(folder, Views(images, "flip"), modules, phases, PLAN, dict(generator=0.9))


@pytest.mark.parametrize("options", [
    dict(), dict(classes=10, clamp=None), dict(relativistic=True, augment="bgc"),
    dict(augment="none", path_weight=0.0)])  # fmt: skip
def test_a_step_of_stylegan2_reads_and_copies_nothing(tmp_path, images, options):
    counted = blind_steps(stylegan2(tmp_path, images, **options))
    assert counted.copies == 0 and counted.operators > 500


@pytest.mark.parametrize("form", ["logistic", "hinge"])
def test_a_step_of_a_dcgan_reads_and_copies_nothing(tmp_path, images, form):
    G, D, augment = Generator(16, 1, width=4), Discriminator(16, 1, width=4), DiffAugment()
    losses = GANLosses(augment, lambda batch: augment(batch["image"]), form=form, gamma=0.1)
    phases = gan_phases(losses, G, D, 2e-4, (0.5, 0.999), 10, 0.3)
    trainer = Trainer(tmp_path, Views(images), dict(G=G, D=D), phases, PLAN, dict(G=0.9))
    assert blind_steps(trainer).copies == 0


def test_a_step_of_an_embedding_gan_reads_and_copies_nothing(tmp_path, images):
    embedder = load_embedder("efficientnet_lite0@32", "cpu")
    features = FeatureStack(embedder, ["embedding", "pixels"], torch.randn(9, embedder.dim),
                            DiffAugment())
    G = Generator(16, 1, width=4)
    losses = EmbeddingGANLosses(features, gamma=0.1)
    D = EmbeddingDiscriminator(features(torch.zeros(2, 1, 16, 16)))
    phases = gan_phases(losses, G, D, 2e-4, (0.5, 0.999))
    modules = dict(G=G, D=D, features=features)
    trainer = Trainer(tmp_path, Views(images), modules, phases, PLAN, dict(G=0.9))
    embedder.to("meta")
    assert blind_steps(trainer).copies == 0


@pytest.mark.parametrize("classes, clamp", [(0, None), (3, 0.5)])
def test_stylegan2_is_one_graph(classes, clamp):
    "Both networks, as the generator's loss calls them: the same logits and gradients."
    torch.manual_seed(0)
    G, D = new_networks(choose_settings("auto", 16, 8, clamp=clamp, **SMALL), 3, classes)
    c = torch.eye(3)[[0, 1, 2, 0]] if classes else None
    styles = G.mapping(torch.randn(4, 8), c).detach()

    def step(synthesis, discriminator):
        torch.manual_seed(1)  # of the noise
        logits = discriminator(synthesis(styles), c)
        weights = [p for p in G.synthesis.parameters() if p.requires_grad]
        return logits.detach(), torch.autograd.grad(logits.sum(), weights)

    options = dict(backend="aot_eager", fullgraph=True, dynamic=False)
    plain, compiled = step(G.synthesis, D), step(*(torch.compile(n, **options) for n in (
        G.synthesis, D)))
    assert_near(compiled[0], plain[0])
    for ours, theirs in zip(compiled[1], plain[1], strict=True):
        assert_near(ours, theirs, rel=1e-3)


def test_what_is_differentiated_twice_stays_plain(tmp_path, images):
    "A trainer that compiles takes a step of all four phases."
    trainer = stylegan2(tmp_path, images, augment="none")
    calls = []
    for name in ("generator.synthesis", "discriminator"):
        net, _, part = name.partition(".")
        module = trainer.nets[net].get_submodule(part)
        module._compiled_call_impl = lambda *a, m=module, n=name: calls.append(n) or m.forward(*a)
    assert {n for p in trainer.phases for n in getattr(p.loss, "compilable", ())} == {
        "generator.synthesis", "discriminator"}
    for phase in trainer.phases:
        calls.clear()
        trainer.backward(phase, trainer.batches(0))
        expected = dict(generator=["generator.synthesis", "discriminator"], path=[], r1=[],
                        discriminator=["generator.synthesis", "discriminator", "discriminator"])
        assert calls == expected[phase.name]
