"Fields of any size: the same to the bit by several processes and after a kill, in little memory."

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from synth_nb.data import open_dataset
from synth_nb.diffusion import fields
from synth_nb.diffusion.autoencoder import new_autoencoder
from synth_nb.diffusion.conditions import EmbeddingConditioner
from synth_nb.diffusion.experiment import ConditionedModel
from synth_nb.diffusion.fields import EmbeddingField, embed_slide, write_field
from synth_nb.diffusion.model import new_unet, unet_from_layout
from synth_nb.diffusion.objective import new_scheduler
from synth_nb.diffusion.pipeline import new_pipeline
from synth_nb.embedders import load_embedder

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers'


def tiny(width=12, embedder="some"):
    "A patch model with drawn weights, the same at every call."
    torch.manual_seed(0)
    unet, vae = new_unet(8, size="mini").eval(), new_autoencoder(widths=(8, 16, 16)).eval()
    torch.nn.init.normal_(unet.conv_out.weight, std=0.05)
    conditioner = EmbeddingConditioner(embedder, torch.zeros(width), torch.randn(width, 8))
    pipeline = new_pipeline(vae.requires_grad_(False), unet.requires_grad_(False), new_scheduler())
    settings = dict(image_size=(64, 64), guidance_scale=1.0, sampling_steps=3)
    return ConditionedModel(pipeline, conditioner, torch.zeros(1, width), torch.zeros(1), settings)


def cells(width=12, embedder="some"):
    torch.manual_seed(1)
    return EmbeddingField(torch.randn(2, 2, width), embedder)


def pixels(path):
    Image.MAX_IMAGE_PIXELS = None
    return np.asarray(Image.open(path))


SIZE = (2400, 200)  # three bands of rows of windows


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return pixels(write_field(tiny(), cells(), tmp_path_factory.mktemp("field") / "a.tif", SIZE))


def test_two_processes_make_the_same_field(tmp_path, expected):
    path = write_field(tiny(), cells(), tmp_path / "b.tif", SIZE, num_processes=2, device="cpu")
    assert np.array_equal(pixels(path), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.tif", "b.tif.json"]


PROGRAM = """
import sys, torch
from pathlib import Path
sys.path.insert(0, "tests")
from test_fields import SIZE, cells, tiny, write_field
torch.set_num_threads(1)
write_field(tiny(), cells(), Path(sys.argv[1]), SIZE)
"""


def test_a_killed_field_goes_on_where_it_was(tmp_path, expected):
    torch_threads = dict(os.environ, OMP_NUM_THREADS="1")
    path, marks = tmp_path / "c.tif", tmp_path / "c.tif.work"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, path], env=torch_threads)
    while process.poll() is None and not list(marks.glob("0001-*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {p: p.stat().st_mtime_ns for p in marks.glob("0*")}
    assert done and not path.exists()
    subprocess.run([sys.executable, "-c", PROGRAM, path], env=torch_threads, check=True)
    assert not marks.exists()
    assert np.abs(pixels(path).astype(int) - expected).max() <= 1  # threads may differ


def test_other_settings_begin_afresh(tmp_path, expected):
    path = tmp_path / "d.tif"
    write_field(tiny(), cells(), path, SIZE, seed=1)
    assert not np.array_equal(pixels(path), expected)
    write_field(tiny(), cells(), path, SIZE)
    assert np.array_equal(pixels(path), expected)


def test_the_embeddings_of_a_slide_condition_another(tmp_path):
    "A slide is written, cut by `wsi:`, embedded, and its grid makes a field."
    pytest.importorskip("openslide")
    from skimage.data import immunohistochemistry

    from synth_nb.data.pyramid import write_pyramid

    image, folder = np.tile(immunohistochemistry(), (1, 2, 1)), tmp_path / "slides"
    folder.mkdir()
    path = write_pyramid(folder / "a.tif", lambda a, b, c, d: image[a:b, c:d], image.shape,
                         0.5, "")
    tiles = open_dataset(f"wsi:{folder}", 64, tile=128, mpp=0.5)
    assert len(tiles) > 20
    embedder = load_embedder("efficientnet_lite0@32")
    grid = embed_slide(path, embedder, tile=128)
    assert grid.values.shape == (4, 8, 1280) and grid.embedder == embedder.id
    torch.testing.assert_close(grid.values[:, :4], grid.values[:, 4:], rtol=1e-3, atol=1e-3)
    write_field(tiny(1280, embedder.id), grid, folder / "b.ome.tif", (128, 256))
    with pytest.raises(ValueError, match="was trained with other: embed with that"):
        write_field(tiny(1280, "other"), grid, folder / "c.tif", (128, 256))


def test_parts_in_memory_do_not_grow_with_the_field(tmp_path, monkeypatch):
    "What is read, drawn and written at once of a field of four times the width and height."
    sizes, model = [], tiny()
    layout = dict(widths=(8, 8), layers=1, attends=(False, False), width=8, heads=8, groups=8)
    model.pipeline.unet = unet_from_layout(layout, 8).requires_grad_(False)
    for name, small in dict(ACROSS=2, PART=1, DECODED=(24, 4)).items():
        monkeypatch.setattr(fields, name, small)

    def counted(call, size):
        def counting(*args, **options):
            found = call(*args, **options)
            sizes.append(size(found, *args).nbytes)
            return found
        return counting

    monkeypatch.setattr(fields, "noise_at", counted(fields.noise_at, lambda found, *_: found))
    for name, size in dict(read=lambda found, *_: found, write=lambda _, *args: args[2]).items():
        own = getattr(fields.PixelFile, name)
        monkeypatch.setattr(fields.PixelFile, name, counted(own, size))
    largest = []
    for side in (256, 1024):
        sizes.clear()
        write_field(model, cells(), tmp_path / f"{side}.tif", (side, side), sampling_steps=2,
                    batch_size=2)
        largest.append(max(sizes))
    assert largest[1] <= 1.1 * largest[0], largest
