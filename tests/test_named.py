"Data sets with a name: upright characters, the Hub without a network, and sentences that help."

import gzip
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from synth_nb.core.parameters import ParameterError
from synth_nb.data import DataError
from synth_nb.data.cache import decode_source
from synth_nb.data.readers import named as named_module
from synth_nb.data.readers.named import (
    digits_source,
    emnist_source,
    hub_source,
    kaggle_source,
    read_idx,
)


def noise(n, height=28, width=28):
    return np.random.default_rng(0).integers(0, 256, (n, height, width), dtype=np.uint8)


def idx(array):
    head = bytes([0, 0, 8, array.ndim])
    return head + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def save_emnist(folder, kind, packed=False, first=0, counts=(("train", 30), ("test", 12))):
    "Files as NIST has them: images on their side."
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in counts:
        names = {f"emnist-{kind}-{part}-images-idx3-ubyte": noise(n).transpose(0, 2, 1),
                 f"emnist-{kind}-{part}-labels-idx1-ubyte": np.arange(n) % 10 + first}
        for name, array in names.items():
            content = gzip.compress(idx(array)) if packed else idx(array)
            (folder / f"{name}{'.gz' if packed else ''}").write_bytes(content)
    return folder


# --- digits


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    source, digits = digits_source(28, 28), load_digits()
    assert source.labels == digits.target.tolist() and source.split is None
    images = np.stack([source.content(i) for i in range(0, 1797, 50)]).astype(float)
    small = images.reshape(-1, 4, 7, 4, 7).mean((2, 4))
    expected = digits.images[::50].reshape(-1, 4, 2, 4, 2).mean((2, 4)) / 16 * 255
    assert abs(small - expected).mean() < 8


# --- EMNIST


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inner", ["", "gzip", "raw", "EMNIST/raw"])
def test_files_on_disk(tmp_path, packed, inner):
    save_emnist(tmp_path / inner, "byclass", packed, first=10)
    source = emnist_source(str(tmp_path))
    assert source.classes == list("ABCDEFGHIJ")
    assert source.split == ["train"] * 30 + ["test"] * 12
    assert np.array_equal(source.content(29), noise(30)[29])
    images = decode_source(source, (1, 28, 28)).images
    assert np.array_equal(images[30:, 0], noise(12))


def test_letters_count_from_one(tmp_path):
    source = emnist_source(str(save_emnist(tmp_path, "letters", first=1)))
    assert source.classes == list("abcdefghij") and source.labels[:3] == [0, 1, 2]
    save_emnist(tmp_path, "letters")
    with pytest.raises(DataError, match="labels from 0 to 9, but those of EMNIST letters go"):
        emnist_source(str(tmp_path))


def test_several_selections(tmp_path):
    for kind in ("digits", "mnist"):
        save_emnist(tmp_path, kind)
    with pytest.raises(ParameterError, match="holds digits, mnist of EMNIST: choose one with"):
        emnist_source(str(tmp_path))
    assert len(emnist_source(f"{tmp_path}/mnist")) == 42


def test_one_part_has_no_split(tmp_path):
    source = emnist_source(str(save_emnist(tmp_path, "digits", counts=[("test", 12)])))
    assert source.split is None and len(source) == 12


@pytest.mark.parametrize("upright", ["auto", True, False])
def test_upright(tmp_path, upright):
    save_emnist(tmp_path / "nist", "digits")
    np.savez(tmp_path / "digits.npz", images=noise(30), labels=np.arange(30) % 10)
    stored = noise(30)[3].T if upright is True else noise(30)[3]
    assert np.array_equal(emnist_source(f"{tmp_path}/nist", upright).content(3), stored)
    stored = noise(30)[3].T if upright is False else noise(30)[3]
    assert np.array_equal(emnist_source(f"{tmp_path}/digits.npz", upright).content(3), stored)


def test_arrays(tmp_path):
    np.savez(tmp_path / "some letters.npz", images=noise(26), labels=np.arange(26) + 1)
    assert emnist_source(str(tmp_path)).classes == list("abcdefghijklmnopqrstuvwxyz")
    shutil.move(tmp_path / "some letters.npz", tmp_path / "x.npz")
    assert emnist_source(f"{tmp_path}/byclass").classes == list("123456789ABCDEFGHIJKLMNOPQ")
    np.savez(tmp_path / "x.npz", images=noise(26))
    with pytest.raises(DataError, match=r"x\.npz has no `labels`"):
        emnist_source(str(tmp_path))
    np.savez(tmp_path / "x.npz", images=noise(26), labels=["a"] * 26)
    with pytest.raises(DataError, match=r"x\.npz has labels like 'a': save the numbers"):
        emnist_source(str(tmp_path))


DAMAGE = {
    "cut": (lambda c: c[:-1], "is cut off: remove it"),
    "head": (lambda c: c[:9], "is cut off: remove it"),
    "empty": (lambda c: b"", "is not an IDX file"),
    "text": (lambda c: b"no images", "is not an IDX file"),
    "floats": (lambda c: c[:2] + b"\x0d" + c[3:], "is not an IDX file of bytes"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files(tmp_path, name, packed):
    damage, why = DAMAGE[name]
    content = damage(idx(noise(5)))
    path = tmp_path / f"x-ubyte{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=f"x-ubyte.* {why}"):
        read_idx(path)


def test_files_that_do_not_fit(tmp_path):
    save_emnist(tmp_path, "digits")
    (tmp_path / "emnist-digits-test-labels-idx1-ubyte").write_bytes(idx(np.arange(5)))
    with pytest.raises(DataError, match="does not fit its labels"):
        emnist_source(str(tmp_path))
    (tmp_path / "emnist-digits-test-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="lies there without emnist-digits-test-labels-idx1-ubyte"):
        emnist_source(str(tmp_path))


def test_packed_file_that_is_cut(tmp_path):
    (tmp_path / "x-ubyte.gz").write_bytes(gzip.compress(idx(noise(5)))[:-50])
    with pytest.raises(DataError, match=r"x-ubyte\.gz cannot be unpacked"):
        read_idx(tmp_path / "x-ubyte.gz")


def test_a_download_that_fails(monkeypatch):
    from torchvision.datasets import EMNIST

    def download(self):
        raise URLError("Name or service not known")

    monkeypatch.setattr(EMNIST, "download", download)
    by_hand = r"by hand, unpack it, and give 'emnist:<that folder>/balanced'"
    with pytest.raises(DataError, match=rf"service not known\): fetch https://.*\.zip {by_hand}"):
        emnist_source("balanced")


def test_a_download_happens_once(monkeypatch):
    from torchvision.datasets import EMNIST

    calls = []

    def download(self):  # puts its files where torchvision does
        calls.append(self.split)
        save_emnist(Path(self.raw_folder), "digits")

    monkeypatch.setattr(EMNIST, "download", download)
    first, second = emnist_source("digits"), emnist_source("digits")
    assert calls == ["digits"] and len(first) == len(second) == 42
    assert first.name == "emnist:digits" and np.array_equal(first.content(3), noise(30)[3])
    assert Path(os.environ["SYNTH_NB_CACHE"], "downloads/EMNIST/raw").is_dir()


def test_nothing_there(tmp_path):
    for what in ("", "numbers", str(tmp_path / "x")):
        with pytest.raises(FileNotFoundError, match="'emnist:' takes a folder or one of byclass"):
            emnist_source(what)
    with pytest.raises(DataError, match=r"holds no files emnist-….* and not one \.npz"):
        emnist_source(str(tmp_path))


# --- the Hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A data set as it lies on the Hub, in Parquet, loaded by `datasets` from disk."
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["even", "odd"])
    kinds = datasets.Features(dict(notes=datasets.Value("string"), scan=datasets.Image(),
                                   target=names))
    folder = tmp_path / "data set"
    folder.mkdir()
    for part, n in (("train", 20), ("test", 6)):
        table = dict(notes=["x"] * n, scan=[Image.fromarray(image) for image in noise(n)],
                     target=[i % 2 for i in range(n)])
        dataset = datasets.Dataset.from_dict(table, kinds)
        dataset.to_parquet(folder / f"{part}-00000-of-00001.parquet")

    def load(name, config, revision):
        return datasets.load_dataset(str(folder), config, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(named_module, "load_hub", load)
    monkeypatch.setattr(named_module, "hub_info", lambda *_: {})
    return folder


def test_images_labels_and_splits(hub):
    source = hub_source("owner/numbers")
    assert source.classes == ["even", "odd"] and source.labels[:20] == [0, 1] * 10
    assert source.split == ["train"] * 20 + ["test"] * 6 and source.name == "hub:owner/numbers"
    assert isinstance(source.content(0), bytes)
    images = decode_source(source, (1, 28, 28)).images
    assert np.array_equal(images[:20, 0], noise(20)) and np.array_equal(images[20:, 0], noise(6))
    assert source.about == dict(origin="https://huggingface.co/datasets/owner/numbers")


def test_a_table_without_images(hub):
    import datasets

    for path in hub.iterdir():
        path.unlink()
    datasets.Dataset.from_dict(dict(text=["a"])).to_parquet(hub / "train.parquet")
    with pytest.raises(DataError, match="owner/text has no column of images; its columns are text"):
        hub_source("owner/text")


def test_without_labels_and_with_odd_splits(monkeypatch, hub):
    loaded = named_module.load_hub("", None, None)
    parts = {"north": loaded["train"].remove_columns("target"),
             "south": loaded["test"].remove_columns("target")}
    monkeypatch.setattr(named_module, "load_hub", lambda *_: parts)
    source = hub_source("owner/numbers")
    assert source.classes == ["numbers"] and source.split is None and len(source) == 26
    monkeypatch.setattr(named_module, "load_hub", lambda *_: parts | {"train": parts["north"]})
    source = hub_source("owner/numbers")
    assert set(source.split) == {"train"} and source.about["left_out"] == ["north", "south"]


def test_a_config_that_is_not_there(hub):
    with pytest.raises(DataError, match=r"choose with 'hub:owner/numbers/<config>', of \['def"):
        hub_source("owner/numbers/large")


def test_no_network(monkeypatch):
    pytest.importorskip("datasets")
    import datasets.load

    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'owner/x' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets.load, "dataset_module_factory", unreachable)
    with pytest.raises(DataError, match="owner/x cannot be reached: connect, or download it from"):
        hub_source("owner/x")


def test_gated_unknown_and_anything_else(monkeypatch):
    pytest.importorskip("datasets")
    from datasets.exceptions import DatasetNotFoundError

    for error, why in (
        (DatasetNotFoundError("Dataset 'a/b' is a gated dataset.\nAsk"), "accept its terms"),
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub"), "cannot be found"),
        (RuntimeError("Dataset scripts are no longer\nsupported"), "cannot be loaded"),
    ):
        def load(*_, error=error):
            raise error

        monkeypatch.setattr(named_module, "load_hub", load)
        with pytest.raises(DataError, match=f"^a/b .*{why}") as raised:
            hub_source("a/b")
        assert "\n" not in str(raised.value)


def test_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"the Hub needs datasets: pip install 'synth_nb\[hub\]'"):
        hub_source("owner/x")


def test_revision_from_the_files():
    urls = {f"hf://datasets/a/b@{'0f' * 20}/data/train.parquet": {}}
    part = SimpleNamespace(info=SimpleNamespace(download_checksums=urls))
    assert named_module.loaded_revision(dict(train=part)) == dict(revision="0f" * 20)


# --- Kaggle


def test_kaggle():
    with pytest.raises(DataError, match=r"kaggle\.com/datasets/a/b-c by hand, extract it"):
        kaggle_source("a/b-c")
    with pytest.raises(ParameterError, match="must be 'kaggle:owner/name'"):
        kaggle_source("../x/y")
