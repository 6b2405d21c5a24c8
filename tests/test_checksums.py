"""Files that change on the disk: a checkpoint, a model, and whatever lies in the cache.

None is used as if nothing had happened: a checkpoint goes back to the one before, a model is
refused, an entry of the cache is made again.
"""

import copy
import errno
import os
import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from synth_nb.core.checksums import damage
from synth_nb.core.files import atomic_folder, cache_root
from synth_nb.core.runs import load_model, open_run
from synth_nb.training.checkpoints import read_checkpoint
from synth_nb.training.loop import Phase, Trainer, TrainingConfig


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


class Points:
    def __len__(self):
        return 16

    def __getitem__(self, rows):
        x = torch.arange(16.0)[rows, None] / 16
        return dict(x=x, key=list(map(str, rows)))


def trainer(folder: Path, epochs: int = 4) -> Trainer:
    net = nn.Sequential(nn.Linear(1, 32), nn.Dropout(0.2), nn.Linear(32, 1))

    def loss(nets, batch):
        return (nets["net"](batch["x"]) - 1).square().mean()

    phase = Phase(loss, torch.optim.Adam(net.parameters(), 0.1))
    config = TrainingConfig(epochs, 4)
    return Trainer(folder, Points(), dict(net=net), [phase], config, dict(net=0.9))


def same(a, b) -> bool:
    "Whether two states are equal bit for bit, apart from the time they took."
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a.keys() - {"seconds"})
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_flipped_bit_of_a_checkpoint_is_found_or_changes_nothing(tmp_path, capsys):
    first = trainer(tmp_path)
    first.fit()
    newest, wanted = tmp_path / "checkpoints/newest.pt", first.state()
    before = newest.with_name("previous.pt").read_bytes()
    content, moments = newest.read_bytes(), random.Random(0)
    found = 0
    for bit in moments.sample(range(8 * len(content)), 40):
        newest.write_bytes(flipped(content, bit))
        newest.with_name("previous.pt").write_bytes(before)
        capsys.readouterr()
        again = trainer(tmp_path)
        words = capsys.readouterr().out
        fell_back = "is damaged" in words and "from the checkpoint before it, of step 12\n" in words
        assert again.position.step == (12 if fell_back else 16)
        again.fit()
        assert same(again.state(), wanted), bit
        found += fell_back
    assert found > 20  # the others hit what no tensor depends on: padding, dates of the zip


def test_each_byte_of_a_tensor_in_a_checkpoint_is_checked(tmp_path):
    weights = torch.randn(1000)
    torch.save(dict(weights=weights), path := tmp_path / "a.pt")
    content = path.read_bytes()
    at = content.index(weights.numpy().tobytes())
    for byte in range(at, at + 4000, 97):
        path.write_bytes(flipped(content, 8 * byte + byte % 8))
        with pytest.raises(RuntimeError, match="not those that were written; remove it to start"):
            read_checkpoint(path)


def test_two_damaged_checkpoints_are_named(tmp_path):
    trainer(tmp_path).fit()
    for path in (tmp_path / "checkpoints").glob("*.pt"):
        path.write_bytes(random.Random(0).randbytes(5000))
    with pytest.raises(RuntimeError, match=r"previous.pt is damaged: .*; remove it") as error:
        trainer(tmp_path)
    assert "weights_only" not in str(error.value) and "\n" not in str(error.value)


def test_a_training_goes_on_where_a_disk_knows_no_second_names(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    trainer(tmp_path).fit()
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"newest.pt", "previous.pt"}
    (tmp_path / "checkpoints/newest.pt").unlink()  # as a kill between two renamings leaves it
    assert trainer(tmp_path).position.step == 12


# models


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    "The model folder of a run; its loader returns what the file holds."
    def load(folder, device):
        return SimpleNamespace(text=(folder / "w").read_text())

    monkeypatch.setattr("synth_nb.dcgan.model.load", load)
    run = open_run("02_dcgan", dict(outputs=str(tmp_path)), dict(fingerprint="a"),
                   "synth_nb.dcgan.model:load")
    with atomic_folder(run.path("model")) as folder:
        (folder / "w").write_text("first")
    run.finish()
    return run.folder / "model"


def test_a_changed_model_is_refused(model):
    assert load_model(model.parent, "cpu").text == "first"
    (model / "w").write_text("fjrst")
    with pytest.raises(ValueError, match=r"the bytes of w are not those .*; copy it again"):
        load_model(model.parent, "cpu")
    (model / "checksums.json").unlink()  # of an older version, or changed on purpose
    assert load_model(model.parent, "cpu").text == "fjrst"


@pytest.mark.parametrize("listed", ['{"../../secret": "1 0"}', "[" * 99_999, "[[1]]", '"w"', "{"])
def test_a_strange_list_of_checksums_is_refused(model, listed):
    (model / "checksums.json").write_text(listed)
    with pytest.raises(ValueError, match="is damaged"):
        load_model(model.parent, "cpu")


def test_a_model_between_two_renamings_is_completed(model):
    killed = model.with_name(".model-abcd1234")
    (killed / "new").mkdir(parents=True)
    (killed / "new/w").write_text("second")
    model.rename(killed / "old")
    assert load_model(model.parent, "cpu").text == "second"
    assert {p.name for p in model.parent.iterdir()} >= {"model"} and not killed.exists()


def test_a_failed_renaming_is_undone(tmp_path, monkeypatch):
    (target := tmp_path / "model").mkdir()
    (target / "w").write_text("first")
    rename = Path.rename

    def fails(path, to):
        if path.name == "new":
            raise OSError(28, "No space left on device")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="No space"), atomic_folder(target) as folder:
        (folder / "w").write_text("second")
    assert (target / "w").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


# the cache


def heads(home):
    from synth_nb.data import open_dataset
    from synth_nb.diffusion.conditions import fit_tuned_head
    from synth_nb.embedders import load_embedder

    train = open_dataset("demo", 32).train.select(slice(0, 24))
    return fit_tuned_head(load_embedder("efficientnet_lite0@32"), train, 4, 3, 1).components


def images(home):
    from synth_nb.data import open_dataset

    return torch.tensor(open_dataset("digits", 8).images)


def classifiers(home):
    from synth_nb.data import open_dataset
    from synth_nb.emnist.classifier import letter_classifier

    digits = open_dataset("digits", 16, channels=1).select(range(0, 1797, 30))
    return letter_classifier(digits, 2, 4, device="cpu").state_dict()


def scales(home):
    from synth_nb.diffusion.latents import cached_array

    return cached_array("scales", "ab", lambda: torch.linspace(0, 1, 100)).clone()


def latents(home):
    from synth_nb.diffusion.latents import growing_array

    rows = [np.full((2, 3), i, np.float32) for i in range(50)]
    return torch.tensor(growing_array(cache_root() / "latents/a.npy", (100, 3), rows, [2] * 50,
                                      lambda some: iter(some)))


def text(home):
    from synth_nb.diffusion.text import fit_text_model

    features = torch.linspace(0, 1, 64).view(8, 8).sin()
    _, encoder, projection = fit_text_model([f"tissue {i % 4}" for i in range(8)], features, 8, 3)
    return encoder.state_dict() | vars(projection)


def autoencoders(home):
    from synth_nb.data import open_dataset
    from synth_nb.diffusion.autoencoder import fit_autoencoder

    digits = open_dataset("digits", 16, channels=1).select(range(0, 1797, 50))
    return fit_autoencoder(digits, 4, batch_size=4, widths=(8, 8), device="cpu").state_dict()


def archives(home):
    from synth_nb.data import open_dataset

    noise = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), dtype=np.uint8)
    if not (home / "a.npz").exists():
        np.savez_compressed(home / "a.npz", images=noise)
    for path in cache_root().glob("images/*"):  # so that the archive is read again
        path.unlink()
    return torch.tensor(open_dataset(home / "a.npz", 16, val_fraction=0).images)


def ranges(home):
    from PIL import Image

    from synth_nb.data import open_dataset

    (folder := home / "deep").mkdir(exist_ok=True)
    for i in range(4):
        values = np.arange(256, dtype=np.uint16).reshape(16, 16) * (10 + i)
        Image.fromarray(values).save(folder / f"{i}.png")
    for path in cache_root().glob("images/*"):
        path.unlink()
    return torch.tensor(open_dataset(folder, 16, channels=1, val_fraction=0).images)


def embeddings(home):
    from synth_nb.embedders import embed_images, load_embedder

    noise = torch.arange(4 * 3 * 32 * 32).view(4, 3, 32, 32).mul(7).remainder(256).byte()
    return embed_images(load_embedder("efficientnet_lite0@32"), noise)


ENTRIES = [heads, images, classifiers, scales, latents, text, autoencoders, archives, ranges,
           embeddings]


def payload(kind: str) -> list[Path]:
    "Files of a kind of entry that hold what is used."
    files = [p for p in (cache_root() / kind).rglob("*") if p.is_file() and p.stat().st_size]
    files = [p for p in files if p.suffix not in (".lock", ".sum") and p.name != "checksums.json"]
    return [p for p in files if not {"checkpoints", "samples"} & set(p.parts)
            and not p.name.startswith(("metrics", "events"))]  # of a training that is over


@pytest.mark.parametrize("make", ENTRIES, ids=lambda f: f.__name__)
def test_a_damaged_entry_of_the_cache_is_made_again(make, tmp_path):
    torch.manual_seed(0)
    wanted, moments = copy.deepcopy(make(tmp_path)), random.Random(0)  # not mapped from the file
    files = payload(make.__name__)
    assert files and same(make(tmp_path), wanted)
    for path in files:
        content = path.read_bytes()
        assert len(content)
        bits = [moments.randrange(8 * len(content)) for _ in range(2)]
        for changed in [flipped(content, bit) for bit in bits] + [content[: len(content) // 2]]:
            path.write_bytes(changed)
            torch.manual_seed(moments.randrange(1000))  # what is made again asks for none
            assert same(make(tmp_path), wanted), (path.name, len(changed))
    path.unlink()
    assert same(make(tmp_path), wanted)


def test_what_is_made_again_says_so(capsys):
    wanted = scales(None)
    (path,) = payload("scales")
    path.write_bytes(path.read_bytes()[:-4])
    capsys.readouterr()
    assert torch.equal(scales(None), wanted)
    why = "is damaged: its bytes are not those that were written; it is made again\n"
    assert capsys.readouterr().out.endswith(why)
    scales(None)
    assert capsys.readouterr().out == ""


def test_what_a_disk_cannot_read_is_made_again(monkeypatch, capsys):
    wanted, calls = scales(None), []

    def checksum(path):
        calls.append(path)
        if len(calls) < 3:  # before and after the lock is taken
            raise OSError(errno.EIO, "Input/output error")
        return "0 0"

    monkeypatch.setattr("synth_nb.core.checksums.checksum", checksum)
    assert torch.equal(scales(None), wanted)
    assert "it cannot be read (Input/output error); it is made again" in capsys.readouterr().out


def test_a_cache_that_cannot_be_written_is_read(monkeypatch):
    wanted = scales(None)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("synth_nb.core.files.FileLock", refuse)
    assert torch.equal(scales(None), wanted)


def test_leftovers_of_a_killed_process_are_removed(tmp_path, monkeypatch):
    monkeypatch.delenv("IN_TEST")
    start = partial(open_run, "none", dict(outputs=str(tmp_path), run_name="mine"),
                    dict(fingerprint="a"))
    run = start()
    left = ["checkpoints/.newest-abcd1234.pt", ".manifest-ab_d1234.json", ".model-abcd1234/new/w"]
    stay = ["checkpoints/newest.pt", "samples/.hidden-name.npy", "model/w"]
    for name in left + stay:
        run.path(name).write_text("a")
    assert start().folder == run.folder
    assert not any((run.folder / name).exists() for name in left)
    assert all((run.folder / name).exists() for name in stay)
    run.finish()
    scales(None)
    (path,) = payload("scales")
    part = path.with_name(f".{path.stem}-abcd1234.npy")
    part.write_text("half of")
    path.unlink()
    scales(None)
    assert not part.exists() and damage(path, required=True) == ""
