"Every form opens again with the same pixels, is the same file twice, and leaves others' files be."

import json
import os
import re
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from synth_nb.core.parameters import ParameterError
from synth_nb.data import open_dataset, to_uint8
from synth_nb.data.quality.audit import audit
from synth_nb.data.quality.export import export, folder_names
from synth_nb.data.readers.find import folder_source
from synth_nb.data.readers.sources import DataError


def images(n=7, channels=3, height=32, width=32, seed=0):
    shape = (n, channels, height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def as_stored(array):
    "(N, H, W, 3) or (N, H, W)"
    return array[:, 0] if array.shape[1] == 1 else array.transpose(0, 2, 3, 1)


LABELS, CLASSES = [0, 1, 2, 0, 1, 2, 0], ["normal", "grade 1/2", "test"]
NAMED = dict(labels=LABELS, classes=CLASSES)


def listing(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- class folders


@pytest.mark.parametrize("channels", [1, 3])
def test_folders_open_again(tmp_path, channels):
    array = images(channels=channels)
    folder = export(array, tmp_path / "set", **NAMED)
    rows = rows_of(folder / "metadata.jsonl")
    assert list(rows[0]) == ["file_name", "label", "class", "key"]
    assert [row["label"] for row in rows] == LABELS
    assert [row["class"] for row in rows] == [CLASSES[k] for k in LABELS]
    for row, pixels in zip(rows, as_stored(array), strict=True):
        assert np.array_equal(np.asarray(Image.open(folder / row["file_name"])), pixels)
    again = folder_source(folder)
    assert again.classes == ["class 2", "grade 1_2", "normal"] and len(again) == 7
    assert set(again.keys) == {row["file_name"] for row in rows} and again.skipped == ()


def test_opened_data_set_with_splits(tmp_path):
    ds = open_dataset("demo", 64).select(range(0, 754, 50))
    folder = export(ds, tmp_path / "set")
    again = open_dataset(folder, 64)
    assert np.array_equal(again.images, ds.images) and again.split == ds.split
    keys = [row["key"] for split in ("train", "val")
            for row in rows_of(folder / split / "metadata.jsonl")]
    assert keys == ds.keys
    assert (folder / "README.md").read_text().startswith("# Real images: demo\n")


def test_folders_without_classes(tmp_path):
    folder = export(images(3), tmp_path / "set")
    assert listing(folder) == ["00000000.png", "00000001.png", "00000002.png", "README.md",
                               "metadata.jsonl"]


def test_masks_lie_beside_their_images(tmp_path):
    masks = images(7, 1, seed=1)[:, 0] > 99
    folder = export(images(), tmp_path / "set", masks=masks, **NAMED)
    for row, mask in zip(rows_of(folder / "metadata.jsonl"), masks, strict=True):
        assert row["mask_file_name"] == row["file_name"].replace("images/", "masks/", 1)
        written = np.asarray(Image.open(folder / row["mask_file_name"]))
        assert np.array_equal(written, mask * 255) and written.ndim == 2
    assert len(folder_source(folder / "images")) == 7


@pytest.mark.parametrize("name", ["set", "set.zip"])
def test_masks_are_read_as_masks(tmp_path, name):
    array, masks = images(), images(7, 1, seed=1)[:, 0] > 99
    again = open_dataset(export(array, tmp_path / name, masks=masks, **NAMED), 32)
    table = export(array, tmp_path / "table", masks=masks, **NAMED) / "metadata.jsonl"
    files = [row["file_name"] for row in rows_of(table)]
    at = [files.index(key) for key in again.keys]
    assert again.masked and sorted(at) == list(range(7))
    assert again.classes == ["class 2", "grade 1_2", "normal"]
    assert np.array_equal(again.images, array[at])
    assert np.array_equal(again.masks.reshape(7, 32, 32) > 0, masks[at])

    split = ["train", "val"] * 3 + ["train"]
    cut = export(replace(again, split=split), tmp_path / f"cut{name[3:]}")
    once_more = open_dataset(cut, 32)
    assert once_more.split == ["train"] * 4 + ["val"] * 3
    assert once_more.classes == again.classes
    order = [*range(0, 7, 2), *range(1, 7, 2)]
    assert np.array_equal(once_more.masks, again.masks[order])


def test_masks_that_do_not_fit_their_images(tmp_path):
    folder = export(images(), tmp_path / "set", masks=images(7, 1, seed=1)[:, 0] > 99)
    Image.fromarray(as_stored(images(1))[0]).save(folder / "images" / "more.png")
    with pytest.raises(DataError, match=r"more.png has no mask in `metadata.jsonl`"):
        folder_source(folder)
    (folder / "metadata.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"metadata.jsonl of .* is damaged"):
        folder_source(folder)


def test_folders_in_an_archive(tmp_path):
    target = export(images(), tmp_path / "set.zip", **NAMED)
    with zipfile.ZipFile(target) as archive:
        archive.extractall(tmp_path / "out")
    export(images(), tmp_path / "set", **NAMED)
    assert listing(tmp_path / "out") == listing(tmp_path / "set")
    for name in listing(tmp_path / "out"):
        both = [(tmp_path / top / name).read_bytes() for top in ("out", "set")]
        assert both[0] == both[1]


@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize("with_splits", [False, True])
def test_hugging_face_reads_it(tmp_path, monkeypatch, with_masks, with_splits):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    datasets.disable_progress_bars()
    array = images()
    source, options = array, dict(NAMED)
    if with_splits:
        source, options = open_dataset("demo", 64).select(range(0, 754, 90)), {}
        array = np.array(source.images)
    masks = images(len(array), 1, *array.shape[2:], seed=2) if with_masks else None
    folder = export(source, tmp_path / "set", masks=masks, **options)
    cache = str(tmp_path / "cache")
    read = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=cache)
    assert set(read) == ({"train", "validation"} if with_splits else {"train"})
    rows = [row for part in read.values() for row in part]
    columns = ["image", "label", "class", "key"] + ["mask"] * with_masks
    assert list(rows[0]) == columns and len(rows) == len(array)
    for i, (row, pixels) in enumerate(zip(rows, as_stored(array), strict=True)):
        assert np.array_equal(np.asarray(row["image"]), pixels)
        if with_masks:
            assert np.array_equal(np.asarray(row["mask"]), masks[i, 0])
    if not with_splits:
        assert [row["label"] for row in rows] == LABELS
        assert [row["class"] for row in rows] == [CLASSES[k] for k in LABELS]


@pytest.mark.parametrize("name", ["..", "a/b", "con:1", ".hidden", "Train", "masks", "", "x" * 300])
def test_folder_names_are_safe(name):
    [safe] = folder_names([name])
    assert re.fullmatch(r"[\w\- ][\w.\- ]{0,90}", safe)
    assert safe.lower() not in ("train", "masks")


def test_folder_names_differ():
    names = ["a:b", "a?b", "A_B", "a_b 2", "a|b"]
    assert len({name.lower() for name in folder_names(names)}) == 5


# --- StyleGAN


def test_stylegan_archive(tmp_path):
    array = images(1003, 1, 8, 8)
    labels = [i % 3 for i in range(1003)]
    target = export(array, tmp_path / "set.zip", "stylegan", labels=labels)
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        entries = archive.infolist()
        assert {e.compress_type for e in entries} == {zipfile.ZIP_STORED}
        assert {e.external_attr >> 16 & 0o777 for e in entries} == {0o644}
        names = sorted(n for n in archive.namelist() if n.endswith(".png"))
        assert names[0] == "00000/img00000000.png" and names[-1] == "00001/img00001002.png"
        pairs = json.loads(archive.read("dataset.json"))["labels"]
        assert pairs == [[name, k] for name, k in zip(names, labels, strict=True)]
        for i in (0, 31, 32, 1002):
            with archive.open(names[i]) as file:
                image = Image.open(file)
                assert image.format == "PNG" and np.array_equal(np.asarray(image), array[i, 0])


def test_stylegan_without_labels(tmp_path):
    target = export(images(2), tmp_path / "set.zip", "stylegan")
    with zipfile.ZipFile(target) as archive:
        assert json.loads(archive.read("dataset.json")) == {"labels": None}


def test_stylegan_wants_squares_and_says_what_the_networks_want(tmp_path):
    with pytest.raises(ParameterError, match="square images, got 32x40"):
        export(images(width=40), tmp_path / "set.zip", "stylegan")
    target = export(images(2, 3, 48, 48), tmp_path / "set.zip", "stylegan")
    with zipfile.ZipFile(target) as archive:
        assert "power of two, which 48 is not" in archive.read("README.md").decode()
    target = export(images(2, 3, 64, 64), tmp_path / "two.zip", "stylegan")
    with zipfile.ZipFile(target) as archive:
        assert "power of two" not in archive.read("README.md").decode()


# --- NumPy


@pytest.mark.parametrize("channels", [1, 3])
def test_numpy_archive(tmp_path, channels):
    array, masks = images(100, channels), images(100, 1, seed=3)
    keys = [f"Größe {i}" for i in range(100)]
    target = export(array, tmp_path / "set.npz", "npz", labels=[0, 1] * 50, classes=["ä", "b"],
                   keys=keys, masks=masks)
    read = np.load(target, allow_pickle=False)
    assert np.array_equal(read["images"], as_stored(array)) and read["images"].dtype == np.uint8
    assert np.array_equal(read["masks"], masks[:, 0])
    assert read["labels"].tolist() == [0, 1] * 50 and read["keys"].tolist() == keys
    assert read["classes"].tolist() == ["ä", "b"]
    assert read["README.md"].decode().startswith("# Synthetic images")


def test_numpy_archive_of_a_data_set(tmp_path):
    ds = open_dataset("demo", 64).select(range(0, 754, 90))
    read = np.load(export(ds, tmp_path / "set.npz", "npz"))
    assert np.array_equal(read["images"], ds.images.transpose(0, 2, 3, 1))
    assert read["split"].tolist() == ds.split and read["keys"].tolist() == ds.keys


# --- all forms

FORMS = [("imagefolder", ""), ("imagefolder", ".zip"), ("stylegan", ".zip"), ("npz", ".npz")]


def content(target):
    if target.is_file():
        return target.read_bytes()
    return [(name, (target / name).read_bytes()) for name in listing(target)]


@pytest.mark.parametrize(("form", "extension"), FORMS)
def test_same_images_same_bytes_and_a_newer_one_replaces(tmp_path, form, extension):
    target = tmp_path / f"set{extension}"
    first = content(export(images(), target, form, **NAMED))
    assert content(export(torch.from_numpy(images()), target, form, **NAMED)) == first
    assert content(export(images(3), target, form)) != first
    assert sorted(p.name for p in tmp_path.iterdir()) == [target.name]


@pytest.mark.parametrize(("form", "extension"), FORMS)
def test_floats_are_rounded_and_clipped(tmp_path, form, extension):
    samples = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    target = export(samples.requires_grad_(), tmp_path / f"a{extension}", form)
    other = export(to_uint8(samples), tmp_path / f"b{extension}", form)
    assert content(target) == content(other)


@pytest.mark.parametrize(("form", "extension"), FORMS)
def test_failure_leaves_what_was_there(tmp_path, form, extension, monkeypatch):
    target = export(images(), tmp_path / f"set{extension}", form)
    before = content(target)
    bad = torch.zeros(50, 3, 16, 16)
    bad[-1, 0, 0, 0] = float("nan")
    with pytest.raises(ParameterError, match="not numbers"):
        export(bad, target, form)
    assert content(target) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [target.name]


@pytest.mark.parametrize(("form", "extension"), FORMS)
def test_other_peoples_files_stay(tmp_path, form, extension):
    target = tmp_path / f"set{extension}"
    if extension:
        target.write_bytes(b"thesis")
    else:
        target.mkdir()
        (target / "thesis.txt").write_text("thesis")
    before = content(target)
    with pytest.raises(FileExistsError, match="is not an unchanged export"):
        export(images(), target, form)
    assert content(target) == before


def test_an_export_with_files_added_stays(tmp_path):
    folder = export(images(), tmp_path / "set")
    (folder / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="is not an unchanged export"):
        export(images(), folder)


def test_a_file_stands_where_a_folder_should_be(tmp_path):
    (tmp_path / "set").write_text("x")
    with pytest.raises(FileExistsError):
        export(images(), tmp_path / "set")
    (tmp_path / "set.zip").mkdir()
    with pytest.raises(FileExistsError):
        export(images(), tmp_path / "set.zip", "stylegan")


def test_few_images_are_in_memory(tmp_path):
    "A memory-mapped array is read a few images at a time, each once."
    sizes = []

    class Counting(np.ndarray):
        def __getitem__(self, rows):
            part = np.asarray(self).__getitem__(rows)
            if isinstance(rows, slice):
                sizes.append(len(part))
            return part

    export(images(100).view(Counting), tmp_path / "set.npz", "npz")
    assert max(sizes) <= 32 and 100 <= sum(sizes) <= 103


# --- what does not fit

WRONG = [
    (dict(form="tfrecord"), "`form`"),
    (dict(images=images()[0]), "`images`"),
    (dict(images=images(channels=2)), "`images`"),
    (dict(images=images(0)), "`images`"),
    (dict(images=images().astype(np.float32)), "`images` as a NumPy array must be uint8"),
    (dict(images=torch.zeros(2, 3, 8, 8, dtype=torch.int64)), "`images`"),
    (dict(images="demo"), "`images`"),
    (dict(labels=[0]), "`labels` needs one entry for each of the 7"),
    (dict(labels=[0, 1, 2, 3, 0, 0, 0], classes=CLASSES), "`labels` must be 0 … 2"),
    (dict(labels=[-1] * 7), "`labels`"),
    (dict(classes=CLASSES), "`classes` needs `labels`"),
    (dict(keys=["a"] * 7), "`keys` has 'a' more than once"),
    (dict(masks=np.ones((7, 32, 33), bool)), "`masks`"),
    (dict(masks=np.ones((7, 32, 32), np.uint8)), "`masks` holds 0 and 1"),
    (dict(masks=np.ones((7, 32, 32), np.float32)), "`masks` must be bool"),
    (dict(target="set.npz"), "written to a folder or a file that ends in .zip"),
]


@pytest.mark.parametrize(("wrong", "match"), WRONG, ids=[m for _, m in WRONG])
def test_what_does_not_fit_is_named(tmp_path, wrong, match):
    call = dict(images=images(), target="set") | wrong
    with pytest.raises(ParameterError, match=re.escape(match)):
        export(**call | dict(target=tmp_path / call["target"]))
    assert os.listdir(tmp_path) == []


# --- the card


def test_card_says_what_made_it(tmp_path):
    ds = open_dataset("demo", 64).select(range(0, 754, 90))
    about = dict(name="tissue", model="outputs/x", seed=3, licence="CC0", audit=audit(ds).findings)
    folder = export(images(), tmp_path / "set", about=about, **NAMED)
    lines = (folder / "README.md").read_text().splitlines()
    assert lines[0] == "# Synthetic images, made by a model: tissue"
    for line in ("- images: 7, 32x32 pixels, RGB, 8 bits", "- model: outputs/x", "- seed: 3",
                 "- licence: CC0", "| grade 1/2 | 2 |", "- audited: demo",
                 "- 0 images outside `train` have a copy in it"):
        assert line in lines


def test_a_folder_of_synthetic_images_can_say_so(tmp_path):
    ds = open_dataset("demo", 64).select(range(3))
    first = (export(ds, tmp_path / "a", synthetic=True) / "README.md").read_text()
    assert first.startswith("# Synthetic images") and "licence: not stated" in first
    array = export(images(), tmp_path / "b", synthetic=False)
    assert (array / "README.md").read_text().startswith("# Real images\n")


def squares(n, size=24):
    "Class maps of three classes with areas, holes and corners that touch."
    maps = np.kron(np.random.default_rng(1).integers(0, 3, (n, 1, size // 4, size // 4)),
                   np.ones((4, 4), int)).astype(np.uint8)  # fmt: skip
    maps[:, :, 5:11, 5:11], maps[:, :, 7:9, 7:9] = 1, 0
    return maps


OTHER_FORMS = [(form, channels) for form in ("nnunet", "coco", "geojson", "nifti", "dicom")
               for channels in (1, 3) if (form, channels) != ("nifti", 3)]  # fmt: skip


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("form, channels", OTHER_FORMS)
def test_other_programs_forms_open_again(tmp_path, form, channels, classes):
    pytest.importorskip({"nifti": "nibabel", "dicom": "pydicom"}.get(form, "numpy"))
    images = np.random.default_rng(0).integers(0, 256, (6, channels, 24, 24), dtype=np.uint8)
    masks = squares(6).clip(0, classes - 1)
    if form == "coco":
        masks[2] = 0  # an image without any area
    names = ["background", "stroma", "gland"][:classes]
    export(images, tmp_path / "set", form, masks=masks, mask_classes=names)
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        ds = open_dataset(tmp_path / "set", 24, channels)
    assert np.array_equal(ds.images, images) and np.array_equal(ds.masks, masks)
    assert ds.mask_classes == names and not ds.skipped
    assert not [m for m in messages if "mask" in str(m.message)]
    card = (tmp_path / "set" / "README.md").read_text()
    assert f"Numbers in masks: 0 {names[0]}, 1 {names[1]}" in card and "Synthetic" in card
    export(images, tmp_path / "set", form, masks=masks, mask_classes=names)  # it may be replaced


def test_what_is_synthetic_says_so_in_its_header(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    images = np.zeros((2, 1, 16, 16), np.uint8)
    for synthetic in (True, False):
        folder = export(images, tmp_path / f"{synthetic}", "dicom", synthetic=synthetic)
        header = pydicom.dcmread(folder / "images" / "00000001.dcm")
        words = f"{header.PatientName} {header.SeriesDescription} {header.ImageComments}".lower()
        assert ("synthetic" in words) == synthetic and header.InstanceNumber == 2
        assert header.SOPClassUID.name == "Secondary Capture Image Storage"
    assert len(open_dataset(folder, 16, 1)) == 2


def test_nnunet_reads_what_it_wants(tmp_path):
    ds = open_dataset("em_phantom", 32, 1, n=8)
    folder = export(ds, tmp_path / "Dataset001_x", "nnunet")
    table = json.loads((folder / "dataset.json").read_text())
    assert table["labels"] == {"background": 0, "foreground": 1} and table["numTraining"] == 8
    assert table["file_ending"] == ".png" and table["channel_names"] == {"0": "grey"}
    names = sorted(p.name for p in (folder / "imagesTr").iterdir())
    assert names == [f"case_{i:08}_0000.png" for i in range(8)]
    label = np.asarray(Image.open(folder / "labelsTr" / "case_00000003.png"))
    assert np.array_equal(label, ds.masks[3, 0])


def test_forms_refuse_what_they_cannot_hold(tmp_path):
    images, masks = np.zeros((3, 3, 16, 16), np.uint8), np.full((3, 16, 16), 4, np.uint8)
    for form, options, message in (
        ("coco", {}, "this form is for images with masks"),
        ("geojson", dict(masks=masks, mask_classes=["a", "b"]), "of the 2 `mask_classes`, got"),
        ("nifti", dict(masks=masks > 0), "holds grey images"),
        ("dicom", dict(also=dict(age=[1, 2, 3])), "leave `also` out"),
        ("voc", {}, "parameter `form` must be one of"),
    ):
        with pytest.raises(ParameterError, match=message):
            export(images, tmp_path / "set", form, **options)
        assert not (tmp_path / "set").exists()


def test_classes_in_an_image_folder(tmp_path):
    masks, images = squares(5), np.random.default_rng(0).integers(0, 256, (5, 3, 24, 24), np.uint8)
    names = ["ground", "stroma", "gland"]
    export(images, tmp_path / "set", masks=masks, mask_classes=names)
    ds = open_dataset(tmp_path / "set", 24)
    assert ds.mask_classes == names and np.array_equal(ds.masks, masks)
    export(ds, tmp_path / "again")  # the data set's own masks and names
    again = open_dataset(tmp_path / "again", 24)
    assert again.mask_classes == names and np.array_equal(again.masks, masks)


def test_the_card_says_what_masks_hold(tmp_path):
    maps = images(3, 1, seed=1)[:, 0] % 3
    export(images(3), tmp_path / "set", masks=maps, mask_classes=["glass", "tissue", "nuclei"])
    card = (tmp_path / "set" / "README.md").read_text(encoding="utf-8")
    assert "masks (numbers of classes)" in card and "0 or 255" not in card
