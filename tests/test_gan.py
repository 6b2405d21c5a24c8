"The two GANs: resume bit for bit, through any embedder, and what they refuse."

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from synth_nb.core.latents import class_labels
from synth_nb.core.parameters import ParameterError
from synth_nb.core.runs import load_model
from synth_nb.core.seeding import seed_everything
from synth_nb.core.testing import assert_near
from synth_nb.data import Views, open_dataset, to_uint8
from synth_nb.dcgan import (
    DiffAugment,
    Discriminator,
    GANLosses,
    Generator,
    NoiseToImage,
    gan_phases,
)
from synth_nb.embedders import load_embedder
from synth_nb.embedding_gan import (
    CachedEmbeddings,
    EmbeddingDiscriminator,
    EmbeddingGANLosses,
    FeatureStack,
)
from synth_nb.evaluation.sets import weights_tag
from synth_nb.training.log import read_metrics
from synth_nb.training.loop import Trainer, TrainingConfig

ROOT = Path(__file__).parent.parent


def pixel_gan():
    augmentation = DiffAugment()
    networks = dict(G=Generator(32, width=4), D=Discriminator(32, width=4, norm="spectral"))
    losses = GANLosses(augmentation, lambda batch: augmentation(batch["image"]), gamma=1.0,
                       every=2)
    return losses, networks, Views(open_dataset("demo", 32).train)


def conditional_gan():
    losses, _, _ = pixel_gan()
    losses.conditional = True
    digits = open_dataset("digits", 32, channels=1).train
    G = Generator(32, 1, width=4, n_classes=10)
    D = Discriminator(32, 1, width=4, norm="none", n_classes=10)
    return losses, dict(G=G, D=D), Views(digits, "none")


def embedding_gan(inputs, augment=""):
    ds, embedder = open_dataset("demo", 32).train, load_embedder("efficientnet_lite0@32")
    dataset = CachedEmbeddings(ds, embedder, "flip") if inputs == ["embedding"] else None
    images = dataset or Views(ds, "flip")
    train_embeddings = CachedEmbeddings(ds, embedder, "none").embeddings[0]
    features = FeatureStack(embedder, inputs, train_embeddings, DiffAugment(augment))
    D = EmbeddingDiscriminator(features(torch.zeros(2, 3, 32, 32)), hidden=16, width=4)
    losses = EmbeddingGANLosses(features, form="hinge", gamma=0.1, every=2)
    return losses, dict(G=Generator(32, width=4), D=D), images


GANS = {
    "pixels": pixel_gan,
    "classes": conditional_gan,
    "cached embeddings": lambda: embedding_gan(["embedding"]),
    "all of it": lambda: embedding_gan(["embedding", "layers", "tokens", "pixels"], "translation"),
}


def trained(folder, make, epochs, stop_after=None):
    "Weights, averages and log of a small training, or of its beginning."
    seed_everything(0)
    losses, networks, data = make()
    plan = TrainingConfig(epochs, 8, images_per_epoch=24, device="cpu")
    phases = gan_phases(losses, networks["G"], networks["D"], 1e-3, (0.5, 0.99))
    trainer = Trainer(folder, data, networks, phases, plan, dict(G=0.9))
    if stop_after:
        trainer.time_is_up = lambda: trainer.position.step == stop_after
    assert trainer.fit() == ("stopped" if stop_after else "complete")
    state = trainer.state()
    return [t for part in ("modules", "averages") for net in state[part].values()
            for t in net.values()]


@pytest.mark.parametrize("name", GANS)
def test_going_on_after_a_stop_gives_the_same_bits(name, tmp_path):
    once = trained(tmp_path / "once", GANS[name], 2)
    trained(tmp_path / "parts", GANS[name], 2, stop_after=4)  # in the middle of an epoch
    parts = trained(tmp_path / "parts", GANS[name], 2)
    assert all(torch.equal(a, b) for a, b in zip(once, parts, strict=True))
    for folder in ("once", "parts"):
        assert len(read_metrics(tmp_path / folder)) == 2


def test_accumulation_gives_every_piece_its_own_images():
    losses, networks, data = pixel_gan()
    for piece in ([0, 1, 2], [3, 4, 5, 6]):
        losses.generator(networks, data[piece])
    sizes = []
    networks["D"].register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    for piece in ([0, 1, 2], [3, 4, 5, 6]):
        losses.discriminator(networks, data[piece])
    assert sizes == [3, 3, 4, 4] and not losses.cached


def test_both_networks_learn_from_the_classes_of_the_batch_alone():
    losses, networks, data = conditional_gan()
    batch = data[[0, 1]]
    losses.generator(networks, batch).backward()
    (losses.discriminator(networks, batch) + losses.penalty(networks, batch)).backward()
    present = sorted(set(batch["label"].tolist()))
    for net in networks.values():
        moved = net.classes.weight.grad.abs().sum(1).nonzero().flatten().tolist()
        assert moved == present


def test_a_conditional_gan_draws_the_class_that_is_asked_for(tmp_path):
    "Dark images and bright ones, as two classes."
    class Shades(torch.utils.data.Dataset):
        def __len__(self):
            return 64

        def __getitem__(self, i):
            label = torch.as_tensor(i) % 2
            image = (label[:, None, None, None] - 0.5).expand(-1, 1, 16, 16)
            return dict(image=image + 0.1 * torch.randn(image.shape), label=label, key=list(i))

    seed_everything(0)
    losses = GANLosses(lambda x: x, lambda batch: batch["image"], 8, gamma=0.2, conditional=True)
    nets = dict(G=Generator(16, 1, 8, width=4, n_classes=2),
                D=Discriminator(16, 1, width=4, norm="none", n_classes=2))
    phases = gan_phases(losses, nets["G"], nets["D"], 2e-3, (0.0, 0.99))
    Trainer(tmp_path, Shades(), nets, phases, TrainingConfig(40, 16, device="cpu")).fit()
    images = NoiseToImage(nets["G"]).sample(40)
    dark, bright = (images.images[images.labels == label].mean() for label in (0, 1))
    assert dark < -0.1 and bright > 0.1, (dark, bright)


def test_gradients_reach_the_generator_through_every_input():
    for inputs in (["embedding"], ["layers"], ["tokens"], ["pixels"], ["embedding", "layers"]):
        build = embedding_gan if "embedding" in inputs else _without_r1
        losses, networks, _ = build(inputs)
        losses.generator(networks, dict(key=range(4))).backward()
        norms = [p.grad.norm().item() for p in networks["G"].parameters()]
        assert min(norms) > 0, inputs
        assert all(p.grad is None for p in losses.prepare.embedder.parameters()), inputs


def _without_r1(inputs):
    embedder = load_embedder("efficientnet_lite0@32")
    features = FeatureStack(embedder, inputs, torch.randn(9, embedder.dim))
    D = EmbeddingDiscriminator(features(torch.zeros(2, 3, 32, 32)), hidden=16, width=4)
    return EmbeddingGANLosses(features), dict(G=Generator(32, width=4), D=D), None


def cell_with(notebook: str, mark: str) -> str:
    "The one code cell of a notebook that holds some words."
    cells = json.loads((ROOT / "nbs" / f"{notebook}.ipynb").read_text())["cells"]
    found = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    [cell] = [source for source in found if mark in source]
    return cell


def test_minutes_of_earlier_starts_are_not_taken_from_the_second_gan(tmp_path):
    minutes = []

    def new_trainer(inputs, folder, what, left):
        minutes.append(left)
        return SimpleNamespace(fit=lambda: "complete", position=SimpleNamespace(seconds=25 * 60.0))

    space = dict(trainer=new_trainer([], tmp_path, "", 20), status="complete", baseline=["tokens"],
                 began=time.monotonic() - 300, max_minutes=20, pretrained=None,
                 baseline_input="tokens", new_trainer=new_trainer,
                 run=SimpleNamespace(folder=tmp_path), time=time)
    exec(cell_with("03_embedding_gan", "second = new_trainer("), space)
    # 25 over all starts, 5 in this one; the test itself takes some seconds
    assert minutes[1] == pytest.approx(15, rel=0.02)


@pytest.mark.parametrize(("notebook", "marks"), [
    ("02_dcgan", ["synthetic = "]), ("03_embedding_gan", ["synthetic = "]),
    ("04_stylegan2", ["synthetic = run.cached(", "truncated = "]), ("07_emnist", ["synthetic = "])])
def test_samples_of_a_pretrained_model_are_new_when_it_learnt_on(notebook, marks):
    net = torch.nn.Linear(2, 1)
    net.c_dim = 0  # as StyleGAN2's
    net.n_classes = 0  # as DCGAN's
    model, names = SimpleNamespace(generator=net, unet=net), []
    space = dict(pretrained=model, saved_model=model, trained=model, generator=model,
                 class_labels=class_labels, n_samples=4, data=SimpleNamespace(classes=[]),
                 trainer=None, weights_tag=weights_tag, label=0,
                 run=SimpleNamespace(cached=lambda name, make: names.append(name)))

    def cached_names():
        names.clear()
        for source in (cell_with(notebook, mark) for mark in marks):
            for line in ("first", "initial", "fakes", "intended"):  # not of this model
                source = source.partition(f"\n{line} = ")[0]
            exec(source, space)
        return set(names)

    assert len(before := cached_names()) == len(marks) and cached_names() == before
    torch.nn.init.zeros_(net.weight)
    assert not cached_names() & before


def test_an_embedder_without_gradients_is_refused():
    embedder = load_embedder("efficientnet_lite0@32")
    embedder.differentiable = False
    with pytest.raises(ValueError, match=r"`efficientnet_lite0@32` passes no gradients"):
        FeatureStack(embedder, ["embedding"], torch.randn(9, embedder.dim))


@pytest.mark.parametrize("size", [0, 7, 30, 100, 225])
def test_a_size_it_cannot_make_names_its_neighbours(size):
    with pytest.raises(ParameterError, match=rf"cannot make {size} pixels.*near are \d+"):
        Generator(size)


def test_one_image_is_too_few_for_batch_normalisation():
    with pytest.raises(ValueError, match="raise `batch_size`"):
        Generator(32, width=2).train()(torch.randn(1, 100))
    with pytest.raises(ValueError, match="raise `batch_size`"):
        Discriminator(32, width=2).train()(torch.randn(1, 3, 32, 32))
    assert Generator(32, width=2).eval()(torch.randn(1, 100)).shape == (1, 3, 32, 32)


def papermill(notebook: str, folder: Path, **parameters) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    env["SYNTH_NB_CACHE"] = str(folder / "cache")
    options = [word for k, v in parameters.items() for word in ("-p", k, str(v))]
    command = [sys.executable, "-m", "papermill", str(ROOT / f"nbs/{notebook}.ipynb"),
               str(folder / "out.ipynb"), *options, "-p", "outputs", str(folder)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


SMALL = dict(image_size=32, epochs=1, images_per_epoch=16, batch_size=8, width=4, n_samples=24,
             eval_embedders=["efficientnet_lite2@64"], run_name="small")


@pytest.mark.parametrize("notebook", ["02_dcgan", "03_embedding_gan"])
def test_a_run_explains_itself_and_is_extended(notebook, patches, tmp_path):
    small = SMALL | dict(dataset=patches)
    done = papermill(notebook, tmp_path, **small)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / notebook / "small"
    for name in ("manifest.json", "metrics.csv", "evaluation.csv", "report.md", "generator.png",
                 "synthetic.png", "samples/epoch_001.png", "model/config.json"):
        assert (run / name).is_file(), name
    again = papermill(notebook, tmp_path, **small | dict(epochs=2))
    assert again.returncode == 0, again.stdout + again.stderr
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["epoch"], len(manifest["starts"])) == (2, 2)
    model = load_model(run, "cpu")
    assert_near(model.sample(3, 1).images, model.sample(5, 1).images[:3])
    evaluated = torch.from_numpy(np.load(run / "samples" / f"synthetic_{manifest['step']}.npy"))
    assert torch.equal(evaluated, to_uint8(model.sample(24, 0).images))  # not those before


def test_grey_images_pixels_as_an_input_and_a_pretrained_model(patches, tmp_path):
    small = SMALL | dict(dataset=patches)
    grey = small | dict(channels=1, discriminator_input="embedding,pixels", baseline_input="",
                        gamma=0.1, augment="")
    done = papermill("03_embedding_gan", tmp_path, **grey)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "03_embedding_gan" / "small"
    other = small | dict(channels=1, model=run, run_name="pretrained")
    done = papermill("02_dcgan", tmp_path, **other)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "02_dcgan" / "pretrained" / "metrics.csv").exists()
    done = papermill("02_dcgan", tmp_path, **small | dict(model=run, run_name="colour"))
    assert "the model makes 32 pixels with 1 channel:" in done.stdout + done.stderr


@pytest.mark.parametrize(("notebook", "wrong", "sentence"), [
    ("02_dcgan", dict(image_size=100), "near are 96 or 112"),
    ("02_dcgan", dict(batch_size=1), "raise `batch_size`"),
    ("02_dcgan", dict(gamma=1, norm="batch"), "`norm` spectral or none"),
    ("03_embedding_gan", dict(discriminator_input="patches"), "got 'patches'"),
    ("03_embedding_gan", dict(eval_embedders=["efficientnet_lite0@96"]), "must be other networks"),
])
def test_bad_parameters_get_one_sentence(notebook, wrong, sentence, tmp_path):
    done = papermill(notebook, tmp_path, **SMALL | wrong)
    assert done.returncode and sentence in done.stdout + done.stderr
