"""The settings of the original programs, each run through in little on made-up data of its layout.

A profile's parameters are given to its notebook as papermill gives them; only sizes and lengths
are replaced, so that none of them is refused, and the networks, losses and optimisers that come of
it show that none is ignored.
"""

import json
import random
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.checkpointing import save_accelerator_state
from diffusers import UNet2DModel
from matplotlib import pyplot as plt
from safetensors.torch import load_file, save_file

from synth_nb.core.parameters import ParameterError
from synth_nb.data import Views, open_dataset
from synth_nb.data.readers.microscopy import list_volumes
from synth_nb.diffusion.sampling import SamplingConfig
from synth_nb.embedders import Embedder
from synth_nb.embedders.base import REGISTRY
from synth_nb.emnist.model import NETWORKS, letter_scheduler, new_unet
from synth_nb.emnist.states import continue_from, open_letters, write_state
from synth_nb.emnist.training import denoising_phase
from synth_nb.segmentation.sections import chunk_corners
from synth_nb.training.log import read_metrics
from synth_nb.training.loop import Trainer, TrainingConfig

ROOT = Path(__file__).parent.parent
EVAL_EMBEDDERS = ["efficientnet_lite2@64"]


def code_of(notebook: str) -> list[str]:
    "The code cells of a notebook, without the one that makes it small in a test."
    cells = json.loads((ROOT / "nbs" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [source for source in code if "if in_test():  #" not in source]


@pytest.fixture
def run_reported():
    "Run a notebook with its `reported` profile, but for what is given; runs go to a test's folder."

    def run(notebook: str, until: str = "", **small) -> dict:
        file = ROOT / "nbs" / "params" / f"{notebook}.reported.yaml"
        values = yaml.safe_load(file.read_text(encoding="utf-8")) | dict(device="cpu", seed=0)
        values |= dict(run_name="reported") | small
        injected = "# Parameters\n" + "\n".join(f"{k} = {v!r}" for k, v in values.items())
        space, code = dict(__name__="notebook", In=[injected]), code_of(notebook)
        where = next(i for i, source in enumerate(code) if "outputs: str" in source)
        for source in [*code[: where + 1], injected, *code[where + 1 :]]:
            exec(compile(source, notebook, "exec"), space)
            plt.close("all")
            if until and until in source:
                break
        return space

    return run


# --- 02 and 03: tiles of three sizes from slides


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    "Five slides at 0.25 µm per pixel, as CAMELYON16's, each with 1024 pixels of stained tissue."
    pytest.importorskip("openslide")
    tifffile = pytest.importorskip("tifffile")
    from skimage.data import immunohistochemistry

    folder = tmp_path_factory.mktemp("data") / "camelyon16"
    folder.mkdir()
    patch = immunohistochemistry()
    for number in range(5):
        pixels = np.full((1024, 1280, 3), 242, np.uint8)
        turned = np.rot90(patch[: 256 + 32 * number, : 256 + 32 * number], number)
        repeats = -(-1024 // len(turned))
        pixels[:, :1024] = np.tile(turned, (repeats, repeats, 1))[:1024, :1024]
        with tifffile.TiffWriter(folder / f"normal_{number:03}.tif", bigtiff=True) as f:
            for level in range(2):
                size = dict(resolution=(4e4 / 2**level,) * 2, resolutionunit="CENTIMETER")
                f.write(pixels[:: 2**level, :: 2**level], tile=(256, 256), photometric="rgb",
                        compression="zlib", subfiletype=level, **size)
    return folder


GAN = dict(width=2, epochs=1, batch_size=16, tiles_per_slide=6, n_samples=12,
           eval_embedders=EVAL_EMBEDDERS)


def check_gan(space: dict):
    "What both of these profiles say."
    data, phases = space["data"], space["phases"]
    sizes = {key.split("/")[1] for key in data.keys}
    assert sizes == {"t0224", "t0512", "t1024"} and data.image_size == (224, 224)
    sides = {slide: {side for key, side in zip(data.keys, data.split, strict=True)
                     if key.startswith(slide)} for slide in set(data.groups)}
    assert len(sides) == 5 and all(len(side) == 1 for side in sides.values())
    G = space["trainer"].modules["G"]
    ups = [m for m in G.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [m.kernel_size[0] for m in ups] == [7, 4, 4, 4, 4, 4] and G.z_dim == 100
    assert [m.stride[0] for m in ups] == [1, 2, 2, 2, 2, 2]
    assert [phase.name for phase in phases] == ["G", "D"]  # no penalty
    for phase in phases:
        group = phase.optimizer.param_groups[0]
        assert type(phase.optimizer).__name__ == "Adam" and phase.scheduler is None
        assert group["lr"] == 2e-4 and tuple(group["betas"]) == (0.5, 0.999)
    folder = space["run"].folder
    assert (folder / "model").is_dir() and (folder / "synthetic.png").is_file()
    average = space["trainer"].averages["G"].module.state_dict()
    current = G.state_dict()  # a moving average with decay 0 is the network itself
    assert all(torch.equal(average[name], current[name]) for name in current)


def test_02_dcgan(run_reported, slides):
    space = run_reported("02_dcgan", dataset=f"wsi:{slides}", **GAN)
    check_gan(space)
    D = space["trainer"].modules["D"]
    convolutions = [m for m in D.modules() if isinstance(m, torch.nn.Conv2d)]
    shapes = [(m.kernel_size[0], m.stride[0], m.padding[0]) for m in convolutions]
    assert shapes == [(4, 2, 1)] * 5 + [(7, 1, 0)]
    norms = [m for m in D.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 4  # none after the first
    losses = space["losses"]
    assert losses.form == "logistic" and losses.gamma == 0 and not space["augment"]
    images = space["trainer"].data
    assert torch.equal(images[[3]]["image"], images[[3]]["image"])  # no views
    weights = space["Generator"](224).blocks[2][0].weight  # as it is before the training
    assert abs(weights.std().item() / 0.02 - 1) < 0.01 and abs(weights.mean().item()) < 1e-4


class Averages(torch.nn.Module):
    "384 numbers of an image of 224 pixels: all that the discriminator needs of its encoder."

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = torch.nn.Linear(3 * 14 * 14, 384)

    def forward(self, images):
        return self.linear(torch.nn.functional.adaptive_avg_pool2d(images, 14).flatten(1))


def test_03_embedding_gan(run_reported, slides, monkeypatch):
    "With a stand-in for Path Foundation, which is gated; test_savedmodel.py is about its loading."
    stand_in = Embedder(Averages(), "path-foundation", "0", 384, 224)
    monkeypatch.setitem(REGISTRY, "path-foundation", lambda size: stand_in)
    space = run_reported("03_embedding_gan", dataset=f"wsi:{slides}", hidden=8, **GAN)
    check_gan(space | dict(phases=space["trainer"].phases))
    heads = space["trainer"].modules["D"].heads
    assert list(heads) == ["embedding"] and space["second"] is None
    linear = [m for m in heads["embedding"] if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 3 and len(heads["embedding"]) == 5  # with two activations between
    assert heads["embedding"][0].in_features == 384
    assert type(space["trainer"].data).__name__ == "CachedEmbeddings"  # as nothing moves them


@pytest.mark.parametrize("notebook", ["02_dcgan", "03_embedding_gan"])
def test_slides_that_are_not_there(run_reported, notebook, tmp_path, monkeypatch):
    pytest.importorskip("openslide")
    monkeypatch.chdir(tmp_path)  # no checkout, so nobody's data lies there
    with pytest.raises(FileNotFoundError) as caught:
        run_reported(notebook, until="data = open_dataset(")
    text = str(caught.value)
    assert "data/camelyon16: download slides of CAMELYON16" in text and "\n" not in text


# --- 07: letters, and the states of accelerate


LETTERS = dict(epochs=1, images_per_epoch=8, batch_size=4, accumulate=2, sampling_steps=2,
               epoch_samples=12, snapshot_every=1, classifier_steps=20, classifier_width=4)


@pytest.fixture(scope="module")
def emnist(tmp_path_factory) -> Path:
    "EMNIST byclass in its own files: 62 classes of upright bars, lying on their side."
    folder = tmp_path_factory.mktemp("emnist")
    for part, each in (("train", 4), ("test", 3)):
        labels = np.arange(62 * each) % 62
        images = np.zeros((len(labels), 28, 28), np.uint8)
        for i, label in enumerate(labels):
            images[i, 4:24, 4 + label % 20 : 8 + label % 20] = 150 + label
            images[i, 4 + label // 20 : 8 + label // 20, 4:24] = 255
        images = images.transpose(0, 2, 1)  # rows and columns exchanged, as NIST has them
        for kind, array in (("images-idx3", images), ("labels-idx1", labels.astype(np.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big")
                                                           for n in array.shape)
            (folder / f"emnist-byclass-{part}-{kind}-ubyte").write_bytes(head + array.tobytes())
    return folder


class Classes(Embedder):
    "Features and class probabilities, as Inception's."

    standard_fid = True

    def probabilities(self, features):
        return features[:, :10].softmax(1)


@pytest.fixture
def small_letters(monkeypatch):
    "The documented network with few channels, and a stand-in for Inception."
    small = dict(widths=(32,) * 6, layers=1, groups=8, attends=4)
    monkeypatch.setitem(NETWORKS, "documented", small)
    stand_in = Classes(Averages(), "inception", "0", 384, 224)
    monkeypatch.setitem(REGISTRY, "inception", lambda size: stand_in)


def check_letters(space: dict):
    "What the profile says, by label or without."
    data, trainer, scheduler = space["data"], space["trainer"], space["scheduler"]
    assert "".join(data.classes) == "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert scheduler.config.prediction_type == "epsilon"
    assert torch.allclose(scheduler.betas, torch.linspace(1e-4, 0.02, 1000))
    loss, optimizer = trainer.phases[0].loss, next(iter(trainer.optimizers.values()))
    assert loss.timesteps == "uniform" and loss.p_uncond == 0 and loss.prediction_type == "epsilon"
    assert trainer.config.accumulate == 2 and trainer.config.epochs == 1
    assert len(trainer.modules["unet"].config.block_out_channels) == 6
    assert trainer.modules["unet"].config.sample_size == 32  # 28 pixels and two around
    assert trainer.phases[0].scheduler.get_last_lr()[0] == pytest.approx(1e-4 * 3 / 50)  # warm-up
    assert optimizer.param_groups[0]["lr"] < 1e-4
    average = trainer.model("unet").state_dict()
    assert all(torch.equal(v, average[k]) for k, v in trainer.modules["unet"].state_dict().items())
    run = space["run"].folder
    scores = pd.read_csv(run / "evaluation_metrics_epoch_1_random_seed.csv")
    assert {"ssim", "fid", "is"} <= set(scores.metric)
    assert (run / "checkpoints/epoch_1/model.safetensors").is_file()
    return run, scores


def test_07_emnist_without_labels_as_in_the_text(run_reported, emnist, small_letters):
    space = run_reported("07_emnist", dataset=f"emnist:{emnist}/byclass", **LETTERS)
    check_letters(space)
    assert space["classes"] == [] and space["letters"].unet.class_embedding is None
    assert space["sampling"] == SamplingConfig("ddpm", 2, 1.0, (0.4, 0.8))


def test_07_emnist_by_label_as_in_the_figure(run_reported, emnist, small_letters):
    options = dict(dataset=f"emnist:{emnist}/byclass", conditional=True)
    space = run_reported("07_emnist", **options, **LETTERS)
    run, scores = check_letters(space)
    assert len(space["classes"]) == 52 and "accuracy" in set(scores.metric)
    assert (run / "label_aligned_samples_epoch_1_run_1.png").is_file()
    # and its state, with one row for each class as a program of one's own would have it
    state = run.parent / "emnist_diffusion_model" / "epoch_50"
    state.mkdir(parents=True)
    weights = load_file(run / "checkpoints/epoch_1/model.safetensors")
    weights["class_embedding.weight"] = weights["class_embedding.weight"][:52].contiguous()
    save_file(weights, state / "model.safetensors")
    small = LETTERS | dict(run_name="original", model=str(state))
    space = run_reported("07_emnist", until="label_aligned_samples", **options, **small)
    assert space["letters"].classes == space["classes"] and not space["letters"].has_empty_class
    assert (space["run"].folder / "label_aligned_samples_epoch_50_run_1.png").is_file()
    with pytest.raises(ParameterError, match="`guidance_scale` must be 1: the model has no empty"):
        space["letters"].sample(2, guidance_scale=2.0)
    with pytest.raises(ParameterError, match=r"knows 52 classes, .* the data has 10: give"):
        run_reported("07_emnist", **options, **small | dict(characters="digits"))


def documented() -> UNet2DModel:
    "The network as the original's text writes it down."
    return UNet2DModel(
        sample_size=28, in_channels=1, out_channels=1, layers_per_block=2,
        block_out_channels=(128, 128, 256, 256, 512, 512),
        down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4)


def one_step(unet, folder, size=32):
    "A step of a training in this library, and its state in a folder."
    folder.mkdir(parents=True)
    scheduler = letter_scheduler("epsilon", "linear")
    data = open_dataset("digits", 28, channels=1)
    config = TrainingConfig(3, 2, 4, device="cpu")
    phase = denoising_phase(unet, scheduler, 0)
    trainer = Trainer(folder.parent / "run", Views(data, "none"), dict(unet=unet), [phase], config)
    trainer.training_step()
    write_state(trainer, folder)
    return trainer


def test_the_texts_own_lines_load_a_state_that_is_written_here(tmp_path):
    "At full size; and what happens with these lines in the order that they are printed in."
    unet = new_unet(0, network="documented")
    folder = tmp_path / "emnist_diffusion_model" / "epoch_50"
    folder.mkdir(parents=True)
    weights = unet.state_dict()
    save_accelerator_state(folder, [weights], [], [], [], 0, 0)  # as `write_state`, without moments
    model_path = f"{tmp_path}/emnist_diffusion_model/epoch_{50}"
    accelerator, model = Accelerator(cpu=True), documented()
    accelerator.load_state(model_path)  # nothing is prepared, so nothing is loaded
    first = "conv_in.weight"
    assert not torch.equal(model.state_dict()[first], weights[first])
    model = accelerator.prepare(model)
    accelerator.load_state(model_path)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    model.eval()
    sample, t = torch.randn(1, 1, 32, 32), 999
    with torch.no_grad():
        assert torch.equal(model(sample, t).sample, unet.eval()(sample, t).sample)
        with pytest.raises(RuntimeError):  # 28, 14, 7, 4, 2, 1, and back to 8
            model(sample[..., :28, :28], t)


@pytest.mark.parametrize("safe", [True, False])
def test_a_state_that_accelerate_wrote_is_trained_on(tmp_path, safe):
    "Weights, the optimiser's moments and all random states of a program of its own."
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(3)
    unet = new_unet(0)
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-3)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    loss = unet(torch.randn(2, 1, 28, 28), torch.tensor([5, 500])).sample.square().mean()
    accelerator.backward(loss)
    optimizer.step()
    folder = tmp_path / "emnist_diffusion_model" / "epoch_2"
    accelerator.save_state(str(folder), safe_serialization=safe)
    assert (folder / ("model.safetensors" if safe else "pytorch_model.bin")).is_file()
    expected = torch.randn(3), np.random.rand(3).tolist(), random.random()
    saved = optimizer.state_dict()["state"]

    data = open_dataset("digits", 28, channels=1)
    mine = new_unet(0)
    phase = denoising_phase(mine, letter_scheduler("epsilon", "linear"), 0, lr=2e-3)
    trainer = Trainer(tmp_path / "run", Views(data, "none"), dict(unet=mine), [phase],
                      TrainingConfig(3, 2, 4, device="cpu"), dict(unet=0.9))
    continue_from(trainer, folder)
    theirs = unet.state_dict()
    for net in (mine, trainer.model("unet")):
        assert all(torch.equal(value, theirs[name]) for name, value in net.state_dict().items())
    moments = next(iter(trainer.optimizers.values())).state_dict()
    for number, one in saved.items():
        for name, value in one.items():
            assert torch.equal(moments["state"][number][name], value), (number, name)
    assert moments["param_groups"][0]["betas"] == (0.9, 0.99)  # this training's own settings
    drawn = torch.randn(3), np.random.rand(3).tolist(), random.random()
    assert torch.equal(drawn[0], expected[0]) and drawn[1:] == expected[1:]
    assert trainer.position.step == 4  # two epochs of two steps
    trainer.fit()
    assert trainer.position.step == 6
    # and to generate with
    letters = open_letters(str(folder), "cpu", 0, data.classes, letter_scheduler("epsilon",
                                                                                 "linear"))
    assert letters.classes == [] and torch.equal(
        letters.unet.state_dict()["conv_in.weight"], theirs["conv_in.weight"])


def test_a_program_of_accelerate_trains_on_from_a_state_of_ours(tmp_path):
    folder = tmp_path / "emnist_diffusion_model" / "epoch_1"
    trainer = one_step(new_unet(0), folder)
    expected = torch.randn(3)
    accelerator = Accelerator(cpu=True)
    unet = new_unet(0)
    unet, optimizer = accelerator.prepare(unet, torch.optim.AdamW(unet.parameters(), 1e-3))
    accelerator.load_state(str(folder))
    assert torch.equal(torch.randn(3), expected)
    ours = trainer.modules["unet"].state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in unet.state_dict().items())
    pairs = (optimizer, next(iter(trainer.optimizers.values())))
    theirs, mine = (one.state_dict()["state"] for one in pairs)
    for number, one in mine.items():
        assert all(torch.equal(theirs[number][name], value) for name, value in one.items())


def test_states_that_are_refused(tmp_path):
    "Of another network, of other moments, damaged, with code in it, or none at all."
    data = open_dataset("digits", 28, channels=1)

    def trainer():
        unet = new_unet(0)
        phase = denoising_phase(unet, letter_scheduler(), 0)
        return Trainer(tmp_path / "run", Views(data, "none"), dict(unet=unet), [phase],
                       TrainingConfig(3, 2, 4, device="cpu"))

    state = tmp_path / "epoch_1"
    one_step(new_unet(0), state)
    (tmp_path / "run").rename(tmp_path / "was")
    other, middle = tmp_path / "other", new_unet(0, network="middle").state_dict()
    other.mkdir()
    save_file(middle, other / "model.safetensors")
    with pytest.raises(ParameterError, match="is the state of another network than `network`"):
        continue_from(trainer(), other)
    del middle["conv_in.bias"]
    save_file(middle, other / "model.safetensors")
    plain = letter_scheduler("epsilon", "linear")
    sizes = r"6.95 million weights, and there are small 1.14, middle 6.95, documented 113.67"
    with pytest.raises(ParameterError, match=f"is the state of another network: it has {sizes}"):
        open_letters(str(other), "cpu", 0, data.classes, plain)
    with pytest.raises(FileNotFoundError, match="gone holds no state of accelerate: it has neit"):
        continue_from(trainer(), tmp_path / "gone")
    moments = torch.load(state / "optimizer.bin", weights_only=True)
    moments["param_groups"][0]["params"].pop()
    torch.save(moments, state / "optimizer.bin")
    with pytest.raises(ParameterError, match=r"is of an optimiser of \[\d+\] weights, this netw"):
        continue_from(trainer(), state)
    plain_steps = torch.optim.SGD(new_unet(0).parameters(), 1e-3, momentum=0.9).state_dict()
    plain_steps["state"] = {0: dict(momentum_buffer=torch.zeros(3))}
    torch.save(plain_steps, state / "optimizer.bin")
    with pytest.raises(ParameterError, match="and parameter `optimizer` must both be Adam's"):
        continue_from(trainer(), state)
    for content in (b"", b"dear diary"):
        (state / "optimizer.bin").write_bytes(content)
        with pytest.raises(ValueError, match=r"optimizer.bin is no state of an optimiser"):
            continue_from(trainer(), state)
        (other / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"model.safetensors is no file of weights alone"):
            continue_from(trainer(), other)
    (other / "model.safetensors").unlink()
    torch.save(dict(weight=Path("x")), other / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is no file of weights alone"):
        continue_from(trainer(), other)
    assert not (tmp_path / "run" / "checkpoints").exists()  # nothing was begun
    (state / "optimizer.bin").unlink()
    continue_from(begun := trainer(), state)  # without moments
    assert begun.position.step == 2
    begun.save_checkpoint()
    (state / "model.safetensors").unlink()
    continue_from(trainer(), state)  # it has a checkpoint of its own


# --- 06: the whole volume of EPFL, in chunks of half-size sections


def write_volume(path: Path, sections: int, height: int, width: int, pixels=None):
    "A stack of equal sections; one is packed, and its bytes stand in the file for each."
    tifffile = pytest.importorskip("tifffile")
    page = np.zeros((height, width), np.uint8) if pixels is None else pixels
    packed = zlib.compress(page.tobytes())
    tifffile.imwrite(path, iter([packed] * sections), shape=(sections, height, width),
                     dtype=np.uint8, compression="zlib", rowsperstrip=height,
                     photometric="minisblack", metadata=None)


def test_the_whole_volume_has_12780_chunks(tmp_path):
    "By the files' headers alone: 1065 sections of 2048x1536, at half size, 12 chunks of each."
    profile = yaml.safe_load((ROOT / "nbs/params/06_em_ddpm.reported.yaml").read_text())
    write_volume(tmp_path / "volumedata.tif", 1065, 1536, 2048)
    (volume,) = list_volumes(tmp_path / "volumedata.tif")
    assert len(volume.pages) == 1065 and not volume.problems
    half = [(h // profile["downsample"], w // profile["downsample"]) for h, w in volume.sizes]
    assert set(half) == {(768, 1024)}
    assert sum(len(chunk_corners(*size, profile["chunk"])) for size in half) == 12_780


def test_06_em_ddpm(run_reported, tmp_path):
    "Thirty sections in chunks of 64 pixels; networks as deep as there, with fewer channels."
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(60, 200, (32, 48), np.uint8), np.ones((8, 8), np.uint8))
    folder = tmp_path / "epfl"
    folder.mkdir()
    write_volume(folder / "volumedata.tif", 30, 256, 384, pixels)
    space = run_reported(
        "06_em_ddpm", dataset=f"em:{folder / 'volumedata.tif'}", chunk=64, vae_steps=50,
        vae_width=8, epochs=2, width=16, n_samples=12, sampling_steps=3, patience=1,
        eval_embedders=EVAL_EMBEDDERS)
    assert space["described"]["counts"] == dict(train=19 * 6, val=3 * 6, test=6 * 6)
    assert space["data"].masks is None and space["data"].images.shape == (30, 1, 128, 192)
    halves = pixels.reshape(128, 2, 192, 2).mean((1, 3)) + 0.5
    assert (space["data"].images[7, 0] == halves.astype(np.uint8)).all()
    training, config = space["training"], space["config"]
    assert training.data.latents.shape == (1, 114, 32, 8, 8)  # one view, 8 times smaller
    assert not training.data.conditions.any() and not training.spectrum.any()
    trainer, loss = training.trainer, training.loss
    assert trainer.config.accumulate == 10 and trainer.config.best == "loss_held_out"
    assert loss.prediction_type == "epsilon" and loss.timesteps == "uniform"
    assert torch.allclose(config.scheduler.betas, torch.linspace(1e-4, 0.02, 1000))
    assert config.widths == (16, 32, 64, 64) and config.wide_time_embedding
    assert trainer.averages["unet"].module.state_dict().keys() == (
        trainer.modules["unet"].state_dict().keys())
    assert trainer.config.patience == 1
    losses = [row["loss_held_out"] for row in read_metrics(space["run"].folder)]
    best = torch.load(space["run"].folder / "checkpoints/best.pt", weights_only=True)
    returned = trainer.modules["unet"].state_dict()
    assert all(torch.equal(v, returned[k]) for k, v in best["modules"]["unet"].items())
    assert best["position"]["best"] == min(losses)
    encoder = read_metrics(space["run"].folder / "autoencoder")
    assert 2 <= len(encoder) <= 25 and encoder[0]["images"] == 100  # two steps of 50
    model = space["generator"]
    assert not model.masked and model.settings["sampler"] == "ddpm"
    assert space["synthetic"].shape == (12, 1, 64, 64) and space["synthetic_masks"] is None
    assert (space["run"].folder / "pairs.png").is_file()
    with pytest.raises(ParameterError, match="`model` makes sections alone: give `mode` so"):
        run_reported("06_em_ddpm", until="give `mode` so", mode="joint", dataset="demo", chunk=64,
                     model=str(space["run"].folder), run_name="other", sections=48)


def test_06_em_segmentation(run_reported, tmp_path):
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(60, 200, (8, 12), np.uint8), np.ones((8, 8), np.uint8))
    for name, page in (("training", pixels), ("training_groundtruth", (pixels > 130) * 255)):
        write_volume(tmp_path / f"{name}.tif", 30, 64, 96, page.astype(np.uint8))
    space = run_reported(
        "06_em_segmentation", dataset=f"em:{tmp_path / 'training.tif'}", chunk=32, width=8,
        masks=str(tmp_path / "training_groundtruth.tif"), epochs=1, images_per_epoch=32)
    trainer = space["trainer"]
    assert trainer.phases[0].scheduler and type(trainer.phases[0].optimizer).__name__ == "Adam"
    assert float(space["threshold"]) == 0.05 and space["loss_terms"] == "bce+iou"
    assert trainer.data.views == 1 and not trainer.data.classical_augmentation


def test_a_volume_that_is_not_there(run_reported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = r"download the TIFF of that name from https://www.epfl.ch/labs/cvlab/data/data-em/"
    with pytest.raises(FileNotFoundError, match=rf"data/epfl/volumedata.tif: {page} and put it"):
        run_reported("06_em_ddpm", until="data = open_sections(")
