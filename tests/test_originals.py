"""The settings of the original programs, each run through in little on made-up data of its layout.

A profile's parameters are given to its notebook as papermill gives them; only sizes and lengths
are replaced, so that none of them is refused, and the networks, losses and optimisers that come of
it show that none is ignored.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib import pyplot as plt

from synth_nb.embedders import Embedder
from synth_nb.embedders.base import REGISTRY

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
