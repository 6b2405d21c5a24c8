"Folders and archives as people have them: masks, splits, labels, brightness, what is not read."

import io
import json
import sys
import tarfile
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from synth_nb.core.parameters import ParameterError
from synth_nb.data import DataError, check_trainable, held_out_of, open_dataset
from synth_nb.data.dataset import with_split
from synth_nb.data.quality.audit import audit
from synth_nb.data.readers import volumes
from synth_nb.data.readers.find import find_source


def texture(*seed, side=24, channels=3):
    rng = np.random.default_rng(zlib.crc32(repr(seed).encode()))
    shape = (6, 6, channels) if channels > 1 else (6, 6)
    small = Image.fromarray(rng.integers(40, 230, shape, dtype=np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BILINEAR))


def disc(seed, side=24, value=255):
    rng = np.random.default_rng(seed)
    cy, cx, r = rng.integers((8, 8, 4), (16, 16, 8))
    y, x = np.mgrid[:side, :side]
    return (((y - cy) ** 2 + (x - cx) ** 2 < r * r) * value).astype(np.uint8)


def encoded(pixels, kind="PNG", **options):
    Image.fromarray(pixels).save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def photo(*seed, **options):
    return encoded(texture(*seed), **options)


def mask(seed, **options):
    return encoded(disc(seed, **options))


def write(tmp_path, files, form="folder"):
    "A data set of these contents, as a folder or an archive."
    if form == "folder":
        for key, content in files.items():
            path = tmp_path / "set" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / "set"
    if form == "zip":
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
            for key, content in files.items():
                file.writestr(key, content)
        return tmp_path / "set.zip"
    with tarfile.open(tmp_path / "set.tar", "w") as file:
        for key, content in files.items():
            info = tarfile.TarInfo(key)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return tmp_path / "set.tar"


def opened(path, **options):
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        ds = open_dataset(path, **dict(image_size=24) | options)
    return ds, [str(w.message) for w in messages]


def counts(ds):
    return ds.describe()["counts"]


FORMS = pytest.mark.parametrize("form", ["folder", "zip", "tar"])


# --- 1. masks counted as images


PAIRS = [
    ("{i}.png", "{i}_mask.png"),
    ("benign ({i}).png", "benign ({i})_mask.png"),
    ("{i}.jpg", "{i}_segmentation.PNG"),
    ("{i}_training.tif", "{i}_manual1.gif"),
    ("{i}.png", "{i}-mask.png"),
    ("{i}.png", "{i}_GT.png"),
    ("{i}.png", "{i}.mask.png"),
    ("{i}.png", "{i} (mask).png"),
    ("img_{i}.png", "mask_{i}.png"),
    ("{i}.png", "{i}Mask.png"),
    ("{i}_image.png", "{i}_label.png"),
    ("{i}.JPG", "{i}_seg.bmp"),
    ("{i}.jpg", "{i}_lesion.png"),
    ("images/{i}.png", "masks/{i}.png"),
    ("image/{i}.png", "label/{i}.png"),
    ("Images/{i}.jpg", "GroundTruth/{i}.png"),
    ("a b/img/{i}.png", "a b/gt/{i}_gt.png"),
    ("train/images/{i}.png", "train/masks/{i}.png"),
    ("x/JPEGImages/{i}.jpg", "x/Annotations/{i}.png"),
    ("images/train/{i}.png", "masks/train/{i}.png"),
    ("train_images/{i}.png", "train_masks/{i}.png"),
    ("imagesTr/{i}.png", "labelsTr/{i}.png"),
    ("lungs/{i}.png", "lungs/masks/{i}.png"),
    ("set/p{i}/images/p{i}.png", "set/p{i}/masks/any {i}.png"),
    ("photos/{i}.jpg", "seg/{i}.png"),
    ("case {i}/image.png", "case {i}/mask.png"),
]


@FORMS
@pytest.mark.parametrize("pair", PAIRS)
def test_pairs_are_images_with_masks(tmp_path, pair, form):
    files = {}
    for i in range(6):
        kinds = [
            {"jpg": "JPEG", "tif": "TIFF", "gif": "GIF", "bmp": "BMP"}.get(name[-3:].lower(), "PNG")
            for name in pair
        ]
        files[pair[0].format(i=i)] = photo(i, kind=kinds[0])
        files[pair[1].format(i=i)] = encoded(disc(i), kinds[1])
    ds, messages = opened(write(tmp_path, files, form))
    assert (len(ds), ds.masked, len(ds.classes)) == (6, True, 1)
    for key, got in zip(ds.keys, ds.masks, strict=True):
        i = int(next(c for c in reversed(key) if c.isdigit()))
        assert (got[0] == disc(i, value=1)).all()
    assert not messages and "6 masks from names" in ds.describe()["about"]["read_as"]
    assert "masks: one for every image" in ds.explain()


@FORMS
def test_masks_inside_classes_and_splits(tmp_path, form):
    files = {}
    for part in ("train", "test"):
        for kind in ("benign", "malignant"):
            for i in range(4):
                files[f"set/{part}/{kind}/images/{i}.png"] = photo(part, kind, i)
                files[f"set/{part}/{kind}/masks/{i}.png"] = mask(i)
    ds, _ = opened(write(tmp_path, files, form))
    assert ds.masked and ds.classes == ["benign", "malignant"]
    assert counts(ds) == {s: {"benign": 4, "malignant": 4} for s in ("train", "test")}


@FORMS
def test_several_masks_of_one_image_are_joined(tmp_path, form):
    files = {f"{i}.png": photo(i) for i in range(5)} | {f"{i}_mask.png": mask(i) for i in range(5)}
    files |= {"3_mask_1.png": mask(33), "3_mask_2.png": mask(34)}
    ds, _ = opened(write(tmp_path, files, form))
    both = np.maximum.reduce([disc(s, value=1) for s in (3, 33, 34)])
    assert (ds.masks[3, 0] == both).all() and "2 joined" in ds.explain()


def test_the_first_of_several_kinds_is_taken(tmp_path):
    files = {}
    for i in range(4):
        files[f"training/images/{i}_training.tif"] = photo(i, kind="TIFF")
        files[f"training/1st_manual/{i}_manual1.gif"] = encoded(disc(i), "GIF")
        files[f"training/mask/{i}_training_mask.gif"] = encoded(disc(50 + i), "GIF")
    ds, messages = opened(write(tmp_path, files))
    assert len(ds) == 4 and (ds.masks[2, 0] == disc(2, value=1)).all()
    assert any("masks of several kinds: manual 1 is taken, mask left out" in m for m in messages)


def test_stacks_of_images_and_masks(tmp_path):
    folder = write(tmp_path, {"notes.txt": b""})
    np.save(folder / "images.npy", np.stack([texture(i) for i in range(10)]))
    np.save(folder / "masks.npy", np.stack([disc(i, value=1) for i in range(10)]))
    ds, _ = opened(folder)
    at = [int(key[-3:]) for key in ds.keys]
    assert ds.masked and (ds.masks[:, 0] == np.stack([disc(i, value=1) for i in at])).all()


@pytest.mark.parametrize("folders", [("", ""), ("Fold 1/images/fold1/", "Fold 1/masks/fold1/")])
def test_masks_of_several_channels_and_images_as_fractions(tmp_path, folders):
    kinds, folder = ["Breast", "Colon", "Bile-duct"], write(tmp_path, {"notes.txt": b""})
    images = np.stack([texture(i) for i in range(12)])  # as PanNuke has them
    masks = np.zeros((12, 24, 24, 6))
    for i in range(12):
        masks[i, ..., i % 5] = disc(i, value=1) * (i + 1)
        masks[i, :3, :3, (i + 1) % 5] = 40
    masks[..., 5] = ~masks.any(-1)
    for top in folders:
        (folder / top).mkdir(parents=True, exist_ok=True)
    np.save(folder / folders[0] / "images.npy", images.astype(float))
    np.save(folder / folders[0] / "types.npy", np.array([kinds[i % 3] for i in range(12)]))
    np.save(folder / folders[1] / "masks.npy", masks)
    ds, messages = opened(folder)
    at = [int(key[-2:]) for key in ds.keys]
    assert (ds.images == images[at].transpose(0, 3, 1, 2)).all() and not messages
    assert (ds.masks[:, 0] == (masks[at, ..., 5] == 0)).all()
    assert [ds.classes[n] for n in ds.labels] == [kinds[i % 3] for i in at]
    for what in ("channel 6 is the ground", "classes from types.npy", "stored as fractions"):
        assert what in ds.explain()


# --- masks from polygons


SQUARE = [[4, 4], [20, 4], [20, 20], [4, 20], [4, 4]]
HOLE = [[8, 8], [12, 8], [12, 12], [8, 12], [8, 8]]
BOW = [[4, 4], [20, 20], [20, 4], [4, 20], [4, 4]]


def annotation(name, *rings, kind="Polygon"):
    label = dict(name=name, color=[200, 0, 0]) if name else None
    rings = [list(rings)] if kind == "MultiPolygon" else list(rings)
    return dict(type="Feature", geometry=dict(type=kind, coordinates=rings),
                properties=dict(objectType="annotation", classification=label))


def geojson(*features):
    return json.dumps(dict(type="FeatureCollection", features=features)).encode()


@FORMS
@pytest.mark.parametrize("name", ["img/{i}.geojson", "annotations/{i}.geojson", "{i}.png.geojson"])
def test_polygons_of_qupath_are_masks(tmp_path, form, name):
    square = np.zeros((24, 24), int)
    square[4:20, 4:20] = 2
    square[8:12, 8:12] = 1
    drawn = geojson(annotation("Stroma", HOLE), annotation("Tumour", SQUARE, kind="MultiPolygon"))
    files = {f"img/{i}.png": photo(i) for i in range(8)}
    files |= {name.format(i=i): drawn for i in range(8)}
    ds, messages = opened(write(tmp_path, files, form))
    assert ds.mask_classes == ["background", "Stroma", "Tumour"] and not messages
    assert (ds.masks == square).all() and "masks of 8 images from polygons" in ds.explain()


def test_an_outline_that_crosses_itself_is_refused_by_name(tmp_path):
    files = {f"{i}.png": photo(i) for i in range(8)}
    files |= {f"{i}.geojson": geojson(annotation("", BOW if i == 3 else SQUARE)) for i in range(8)}
    ds, [message] = opened(write(tmp_path, files))
    assert len(ds) == 7 and ds.mask_classes == ["background", "foreground"]
    assert "3.png (annotation 1 of 3.geojson crosses itself at x 12, y 12: correct" in message


def test_areas_without_a_class_beside_some_with_one(tmp_path):
    files = {f"{i}.png": photo(i) for i in range(8)}
    both = geojson(annotation("", SQUARE), annotation("cell", HOLE))
    ds, messages = opened(write(tmp_path, files | {f"{i}.geojson": both for i in range(8)}))
    assert ds.mask_classes == ["background", "Unclassified", "cell"] and not messages
    assert np.bincount(ds.masks[0].ravel()).tolist() == [24 * 24 - 256, 256 - 16, 16]


@pytest.mark.parametrize(("outer", "names"), [("a", ["background", "a"]),
                                              ("", ["background", "foreground"])])
def test_areas_of_the_background_are_holes(tmp_path, outer, names):
    files = {f"{i}.png": photo(i) for i in range(8)}
    both = geojson(annotation(outer, SQUARE), annotation("Background", HOLE))
    ds, _ = opened(write(tmp_path, files | {f"{i}.geojson": both for i in range(8)}))
    assert ds.mask_classes == names and ds.masks[0].sum() == 256 - 16


@FORMS
def test_several_folders_that_look_like_masks_are_said_to(tmp_path, form):
    files = {f"raw/{i}.png": photo(i) for i in range(8)}
    for k, name in enumerate(("cells", "walls")):
        files |= {f"{name}/{i}.png": mask(8 * k + i) for i in range(8)}
    ds, messages = opened(write(tmp_path, files, form))
    assert len(ds.classes) == 3
    assert any("cells, walls hold files of two values" in message for message in messages), messages
    files = {f if "raw" in f else f"masks/{f}": content for f, content in files.items()}
    (tmp_path / "b").mkdir()  # what the message says helps
    ds, messages = opened(write(tmp_path / "b", files, form))
    assert ds.mask_classes == ["background", "cells", "walls"]
    assert not any("of two values" in message for message in messages)


HOSTILE = {  # coordinates of one annotation → why it is refused
    "empty": ([], "has no points"), "none": (None, "has no points"),
    "text": ([["ab", "cd", "ef"]], "is no list of points"),
    "two": ([[[1, 2], [3, 4]]], "has 2 points"),
    "huge": ([[[10**400, 1], [3, 4], [5, 6]]], "is no list of points"),
    "infinite": ([[[1e308 * 10, 1], [3, 4], [5, 6]]], "beyond any image"),
    "long": ([[[i % 99 / 9, i / 999] for i in range(20_000)]], "20,000 points, more than 16,384"),
    "beside": ([[[90, 90], [99, 90], [99, 99]]], "lies beside the image of 24x24 pixels"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_polygons_that_are_none(tmp_path, name):
    points, why = HOSTILE[name]
    odd = geojson(dict(type="Feature", geometry=dict(type="Polygon", coordinates=points)))
    files = {f"{i}.png": photo(i) for i in range(8)}
    files |= {f"{i}.geojson": geojson(annotation("a", SQUARE)) for i in range(7)}
    ds, messages = opened(write(tmp_path, files | {"7.geojson": odd}))
    assert len(ds) == 7 and any("7.png (annotation 1 of 7" in m and why in m for m in messages)


def test_an_image_without_polygons_among_others(tmp_path):
    files = {f"{i}.png": photo(i) for i in range(8)}
    files |= {f"{i}.geojson": geojson(annotation("a", SQUARE)) for i in (*range(6), 99)}
    ds, messages = opened(write(tmp_path, files))
    assert (len(ds), ds.masked, len(messages)) == (8, False, 2)
    assert "2 of 8 images have no mask, 6.png first" in messages[0] and "99.geojson" in messages[1]


def coco(n, first=0, **change):
    images = [dict(id=i, file_name=f"{first + i}.png", width=24, height=24) for i in range(n)]
    outline = [x for point in SQUARE[:4] for x in point]
    areas = [dict(id=i, image_id=i, category_id=1 + i % 2, segmentation=[outline], iscrowd=0)
             for i in range(n // 2)]
    categories = [dict(id=1, name="cell"), dict(id=2, name="fat")]
    return json.dumps(dict(images=images, annotations=areas, categories=categories) | change)


@FORMS
def test_polygons_of_coco_are_masks(tmp_path, form):
    files = {f"train/{i}.png": photo(i) for i in range(8)}
    files |= {f"val/{i}.png": photo(i) for i in range(8, 16)}
    files["annotations/instances_train.json"] = coco(8).encode()
    files["annotations/instances_val.json"] = coco(8, 8).encode()
    ds, messages = opened(write(tmp_path, files, form))
    assert (len(ds), ds.mask_classes) == (16, ["background", "cell", "fat"]) and not messages
    at = [int(key.rpartition("/")[2][:-4]) % 8 for key in ds.keys]
    assert [int(m.max()) for m in ds.masks] == [1 + i % 2 if i < 4 else 0 for i in at]
    assert (ds.masks[0, 0, 4:20, 4:20] == ds.masks[0].max()).all()


@pytest.mark.parametrize(("change", "why"), [
    (dict(annotations=[dict(id=7, image_id=0, category_id=1, segmentation=[[1, 2, 3]])]),
     "annotation 7 (cell) of a.json has 1 points"),
    (dict(annotations=[dict(id=7, image_id=0, category_id=1,
                            segmentation=[[90, 90, 99, 90, 99, 99]])]),
     "annotation 7 (cell) of a.json lies beside the image of 24x24 pixels"),
    (dict(annotations=[dict(id=7, image_id=99, category_id=1, segmentation=[[1, 2, 3]])]),
     "no polygons are taken from a.json: a.json is no COCO: KeyError(99)"),
])  # fmt: skip
def test_coco_that_does_not_fit(tmp_path, change, why):
    files = {f"{i}.png": photo(i) for i in range(8)} | {"a.json": coco(8, **change).encode()}
    assert why in " ".join(opened(write(tmp_path, files))[1])


def field_of_view(side=24):
    return ((np.hypot(*np.mgrid[:side, :side] - side / 2) < side * 0.45) * 255).astype(np.uint8)


@FORMS
def test_a_field_of_view_is_not_the_annotation(tmp_path, form):
    files = {}  # as the challenge gives DRIVE: the test images have a field of view alone
    for i in range(16):
        part = "training" if i < 8 else "test"
        files[f"DRIVE/{part}/images/{i:02}_{part}.tif"] = photo(i, kind="TIFF")
        files[f"DRIVE/{part}/mask/{i:02}_{part}_mask.gif"] = encoded(field_of_view(), "GIF")
        if part == "training":
            files[f"DRIVE/{part}/1st_manual/{i:02}_manual1.gif"] = encoded(disc(i), "GIF")
    ds, messages = opened(write(tmp_path, files, form))
    assert (len(ds), ds.masked) == (8, True)
    assert all((got[0] == disc(i, value=1)).all() for i, got in enumerate(ds.masks))
    assert "8 images of test have no mask: left out, as all others have one" in messages
    why = "manual 1 is taken, mask left out; mask covers one region in every image: a field of view"
    assert any(why in message for message in messages) and why in ds.explain()


def test_a_field_of_view_alone_is_said_to_be_one(tmp_path):
    files = {f"images/{i}.png": photo(i) for i in range(8)}
    files |= {f"masks/{i}.png": encoded(field_of_view()) for i in range(8)}
    ds, messages = opened(write(tmp_path, files))
    assert ds.masked and any("cover nearly the same region in every image" in m for m in messages)


def test_a_split_without_masks_is_left_out_where_it_is_the_smaller(tmp_path):
    files = {f"train/images/{i}.png": photo(i) for i in range(8)}
    files |= {f"train/masks/{i}.png": mask(i) for i in range(8)}
    some = files | {f"test/images/{i}.png": photo(9, i) for i in range(8)}
    many = files | {f"test/images/{i}.png": photo(9, i) for i in range(9)}
    (tmp_path / "some").mkdir()
    (tmp_path / "many").mkdir()
    ds, messages = opened(write(tmp_path / "some", some))
    assert (len(ds), ds.masked) == (8, True) and "8 images of test have no mask" in messages[0]
    ds, messages = opened(write(tmp_path / "many", many))
    assert (len(ds), ds.masked) == (17, False) and "9 of 17 images have no mask" in messages[0]


@pytest.mark.parametrize(
    "names",
    [
        ("with_mask/{i}.png", "without_mask/{i}.png"),
        ("mask/{i}.png", "no mask/{i}.png"),
        ("mask/{i}.png", "nomask/{i}.png"),
        ("label 1/{i}.png", "label 2/{i}.png"),
    ],
)
def test_classes_that_speak_of_masks(tmp_path, names):
    files = {name.format(i=i): photo(name, i) for name in names for i in range(8)}
    ds, messages = opened(write(tmp_path, files))
    assert len(ds) == 16 and not ds.masked and len(ds.classes) == 2
    assert all("is a picture" in message for message in messages)


def test_pictures_called_masks_are_images(tmp_path):
    files = {f"{i}{end}.png": photo(i, end) for i in range(8) for end in ("", "_mask")}
    ds, [message] = opened(write(tmp_path, files))
    assert len(ds) == 16 and message.startswith("0_mask.png is called like the mask of 0.png but")


def test_some_images_without_masks(tmp_path):
    files = {f"{i}.png": photo(i) for i in range(8)} | {f"{i}_mask.png": mask(i) for i in range(6)}
    ds, [message] = opened(write(tmp_path, files))
    assert len(ds) == 8 and not ds.masked
    assert message == (
        "2 of 8 images have no mask, 6.png first, while 0_mask.png is the mask of "
        "0.png: masks are left out"
    )
    assert message in ds.describe()["about"]["doubts"]


def test_masks_that_cannot_be_used_are_no_images(tmp_path):
    files = {f"images/{i}.png": photo(i) for i in range(6)}
    files |= {f"masks/{i}.png": mask(i, value=2) for i in range(6)}
    ds, [message] = opened(write(tmp_path, files))
    assert len(ds) == 6 and not ds.masked
    assert "6 masks are left out, masks/0.png of images/0.png first: mask values up to 2" in message


def test_a_mask_of_the_same_name_is_believed_with_a_warning(tmp_path):
    files = {f"{i}.jpg": photo(i, kind="JPEG") for i in range(6)}
    ds, messages = opened(write(tmp_path, files | {f"{i}.png": mask(i) for i in range(6)}))
    assert (len(ds), ds.masked) == (6, True)
    assert any(m.startswith("0.png is taken for the mask of 0.jpg") for m in messages)


def test_the_audit_has_a_row_for_masks(tmp_path):
    files = {f"{i}.png": photo(i) for i in range(6)}
    paired = write(tmp_path / "a", files | {f"{i}_mask.png": mask(i) for i in range(6)})
    assert "Every image has a mask." in str(audit(find_source(paired)))
    odd = write(tmp_path / "b", files | {f"z{i}.png": mask(i) for i in range(3)})
    assert "3 images with two values, as masks have: z0.png, z1.png" in str(audit(find_source(odd)))


# --- 4. structure guessed


SPLITS = [
    ("train_images", "test_images"),
    ("Training_Input", "Testing_Input"),
    ("train_set", "test_set"),
    ("1_train", "2_test"),
    ("train", "dev"),
    ("Train ", "Test "),
    ("TRAIN_DATA", "VAL_DATA"),
    ("trainset", "testset"),
    ("imagesTr", "imagesTs"),
    ("data train", "data eval"),
    ("training_set", "validation_set"),
    ("train-images", "holdout-images"),
]


@FORMS
@pytest.mark.parametrize("names", SPLITS)
@pytest.mark.parametrize("around", ["", "archive/", "a/b/c/"])
def test_split_words_in_names(tmp_path, names, around, form):
    files = {
        f"{around}{part}/{kind}/{i}.png": photo(part, kind, i)
        for part in names
        for kind in "ab"
        for i in range(3)
    }
    ds, messages = opened(write(tmp_path, files, form))
    assert ds.classes == ["a", "b"] and not messages
    assert len(ds.train) == 6 and len(ds.held_out) == 6


@FORMS
@pytest.mark.parametrize("around", ["archive/", "one/two/", "one/two/three/"])
@pytest.mark.parametrize("beside", [{}, {"preview.png": photo("p")}, {"README.md": b"x"}])
def test_folders_around_everything(tmp_path, around, beside, form):
    files = {
        f"{around}{part}/{kind}/{i}.png": photo(part, kind, i)
        for part in ("train", "test")
        for kind in "ab"
        for i in range(4)
    }
    ds, messages = opened(write(tmp_path, files | beside, form))
    assert counts(ds) == {"train": {"a": 4, "b": 4}, "test": {"a": 4, "b": 4}}
    assert len(messages) == ("preview.png" in beside) and "wraps everything" in ds.explain()


@pytest.mark.parametrize(
    "name",
    [
        "{part}/images/{kind}/{i}.png",
        "{part}/{part}_data/{kind}/{i}.png",
        "{kind}/{part}/{i}.png",
        "set/{kind}/{part}/{i}.png",
    ],
)
def test_classes_one_level_further(tmp_path, name):
    files = {
        name.format(part=part, kind=kind, i=i): photo(part, kind, i)
        for part in ("train", "test")
        for kind in "ab"
        for i in range(4)
    }
    ds, _ = opened(write(tmp_path, files))
    assert counts(ds) == {"train": {"a": 4, "b": 4}, "test": {"a": 4, "b": 4}}


@FORMS
def test_domains_of_unpaired_translation(tmp_path, form):
    files = {
        f"h2z/{part}{domain}/{i}.jpg": photo(part, domain, i, kind="JPEG")
        for part in ("train", "test")
        for domain in "AB"
        for i in range(4)
    }
    ds, _ = opened(write(tmp_path, files, form))
    assert counts(ds) == {"train": {"a": 4, "b": 4}, "test": {"a": 4, "b": 4}}


@pytest.mark.parametrize("names", [("normal", "test_tube"), ("train_station", "bridge")])
def test_a_class_that_speaks_of_a_split(tmp_path, names):
    ds, [message] = opened(
        write(tmp_path, {f"{n}/{i}.png": photo(n, i) for n in names for i in range(6)})
    )
    assert sorted(ds.classes) == sorted(names)
    assert "is taken for a class, though its name speaks of t" in message


def test_split_folders_in_some_classes_alone(tmp_path):
    names = ("a/train/{i}.png", "a/test/{i}.png", "b/{i}.png")
    ds, messages = opened(
        write(tmp_path, {n.format(i=i): photo(n, i) for n in names for i in range(5)})
    )
    assert ds.classes == ["a", "b"] and "not taken for splits" in messages[0]


# --- 3. labels that the source carries


ROWS = [(f"{i:03}.png", "ab"[i % 2]) for i in range(8)]
TABLES = {
    "labels.csv": "file,label\n" + "".join(f"{f},{c}\n" for f, c in ROWS),
    "metadata.csv": "file_name,label\n" + "".join(f"images/{f},{c}\n" for f, c in ROWS),
    "metadata.jsonl": "".join(
        json.dumps(dict(file_name=f"images/{f}", label=c)) + "\n" for f, c in ROWS
    ),
    "train.csv": "id_code,diagnosis\n" + "".join(f"{f[:3]},{c}\n" for f, c in ROWS),
    "Tablo.csv": "dosya;sınıf\n" + "".join(f"{f};{c}\n" for f, c in ROWS),
    "windows.csv": "path,class\n"
    + "".join(f"C:\\data\\IMAGES\\{f.upper()},{c}\n" for f, c in ROWS),
    "tabs.tsv": "image\tage\tdx\n" + "".join(f"{f}\t{i}\t{c}\n" for i, (f, c) in enumerate(ROWS)),
    "bare.txt": "".join(f"images/{f} {c}\n" for f, c in ROWS),
    "bare.csv": "".join(f"{f},{c}\n" for f, c in ROWS),
    "hot.csv": "image,a,b\n" + "".join(f"{f[:3]},{c == 'a':.1f},{c == 'b':.1f}\n" for f, c in ROWS),
    "labels.json": json.dumps(dict(ROWS)),
    "list.json": json.dumps([dict(image=f, category=c) for f, c in ROWS]),
    "coco.json": json.dumps(
        dict(
            images=[dict(id=i, file_name=f) for i, (f, _) in enumerate(ROWS)],
            categories=[dict(id=1, name="a"), dict(id=2, name="b")],
            annotations=[
                dict(image_id=i, category_id=1 + (c == "b")) for i, (_, c) in enumerate(ROWS)
            ],
        )
    ),
}


@FORMS
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("around", ["", "my set/"])
def test_a_table_names_the_classes(tmp_path, name, around, form):
    files = {f"{around}images/{f}": photo(f) for f, _ in ROWS}
    ds, messages = opened(write(tmp_path, files | {around + name: TABLES[name].encode()}, form))
    assert ds.classes == ["a", "b"] and not messages
    assert [ds.classes[i] for i in ds.labels] == [c for _, c in ROWS]
    assert f"classes from {around}{name}" in ds.describe()["about"]["read_as"]


@pytest.mark.parametrize("coding", ["utf-8-sig", "cp1254", "utf-16"])
def test_codings_of_tables(tmp_path, coding):
    text = "dosya;tanı\r\n" + "".join(f"{f};{'iyi' if c == 'a' else 'kötü'}\r\n" for f, c in ROWS)
    folder = write(tmp_path, {f: photo(f) for f, _ in ROWS} | {"t.csv": text.encode(coding)})
    assert opened(folder)[0].classes == ["iyi", "kötü"]


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_numbers_of_dataset_json(tmp_path, form):
    files = {f: photo(f) for f, _ in ROWS}
    table = json.dumps(dict(labels=[[f, i % 3] for i, (f, _) in enumerate(ROWS)])).encode()
    ds, _ = opened(write(tmp_path, files | {"dataset.json": table}, form))
    assert ds.classes == ["0", "1", "2"] and ds.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


def test_numbers_that_do_not_fit_are_refused(tmp_path):
    table = json.dumps(dict(labels=[["000.png", 1]])).encode()
    folder = write(tmp_path, {f: photo(f) for f, _ in ROWS} | {"dataset.json": table})
    with pytest.raises(DataError, match=r"1 labels for 8 images, 001\.png has no label"):
        open_dataset(folder)
    (folder / "dataset.json").write_text('{"labels": [["000.png", 1],]}')
    with pytest.raises(
        DataError, match=r"dataset.json in .* is no valid JSON, line 1, column 2.: a com"
    ):
        open_dataset(folder)


def test_train_has_a_table_and_test_has_none(tmp_path):
    files = {f"train_images/{f}": photo(f) for f, _ in ROWS}
    files |= {f"test_images/x{i}.png": photo("x", i) for i in range(3)}
    files["train.csv"] = TABLES["train.csv"].encode()
    files["sample_submission.csv"] = b"id_code,diagnosis\nx0,0\nx1,0\nx2,0\n"
    ds, [message] = opened(write(tmp_path, files))
    assert ds.classes == ["a", "b"] and len(ds) == 8
    assert "skipped 3 of 11 images: test_images/x0.png (no row in train.csv)" in message


@pytest.mark.parametrize(
    "table, why",
    [
        ("file,label\n" + "".join(f"{f},{c}\n" for f, c in ROWS[:5]), "3 of 8 images have no row"),
        (
            "file,age,sex\n" + "".join(f"{f},{i},{'fm'[i % 2]}\n" for i, (f, _) in enumerate(ROWS)),
            "no column of it must be the class",
        ),
        ("file,label\n" + "".join(f"{f},{c}\n{f},z\n" for f, c in ROWS), "two classes"),
    ],
)
def test_a_table_that_is_not_used_is_named(tmp_path, table, why):
    files = {f: photo(f) for f, _ in ROWS} | {"table.csv": table.encode()}
    ds, [message] = opened(write(tmp_path, files))
    assert len(ds.classes) == 1 and message.startswith("table.csv") and why in message


def test_folders_are_believed_before_a_table(tmp_path):
    files = {f"{c}/{f}": photo(f) for f, c in ROWS}
    same = "file,label\n" + "".join(f"{f},{c * 2}\n" for f, c in ROWS)
    ds, messages = opened(write(tmp_path / "a", files | {"t.csv": same.encode()}))
    assert ds.classes == ["a", "b"] and not messages
    other = "file,label\n" + "".join(f"{f},{'xy'[i // 4]}\n" for i, (f, _) in enumerate(ROWS))
    ds, [message] = opened(write(tmp_path / "b", files | {"t.csv": other.encode()}))
    assert ds.classes == ["a", "b"] and "t.csv has a row for 8 images and is not used" in message


def test_patients_and_splits_of_a_table(tmp_path):
    text = "file,label,patient_id,split\n" + "".join(
        f"{f},{c},p{i // 2},{'train' if i < 6 else 'test'}\n" for i, (f, c) in enumerate(ROWS)
    )
    ds, _ = opened(write(tmp_path, {f: photo(f) for f, _ in ROWS} | {"t.csv": text.encode()}))
    assert ds.split == ["train"] * 6 + ["test"] * 2 and ds.groups[:3] == ["p0", "p0", "p1"]


@FORMS
@pytest.mark.parametrize("kind", ["cls", "json"])
def test_a_file_beside_each_image(tmp_path, kind, form):
    content = (
        (lambda c: c.encode()) if kind == "cls" else (lambda c: json.dumps(dict(label=c)).encode())
    )
    files = {f: photo(f) for f, _ in ROWS} | {f.replace("png", kind): content(c) for f, c in ROWS}
    ds, _ = opened(write(tmp_path, files, form))
    assert [ds.classes[i] for i in ds.labels] == [c for _, c in ROWS]


def test_synsets_have_names(tmp_path):
    ids = ("n01440764", "n01443537")
    files = {
        f"ILSVRC/train/{name}/{i}.JPEG": photo(name, i, kind="JPEG")
        for name in ids
        for i in range(4)
    }
    files["LOC_synset_mapping.txt"] = (
        b"n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius\n"
    )
    assert opened(write(tmp_path, files))[0].classes == ["goldfish", "tench"]


@pytest.mark.parametrize(
    "names", [("x", "y"), ("images", "labels"), ("X", "Y"), ("data", "target")]
)
def test_arrays_by_other_names(tmp_path, names):
    images, labels = np.stack([texture(i) for i in range(9)]), np.arange(9) % 3
    np.savez(tmp_path / "a.npz", **{names[0]: images, names[1]: labels})
    ds, _ = opened(tmp_path / "a.npz")
    assert ds.classes == ["0", "1", "2"] and ds.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("form", ["{split}_images {split}_labels", "x_{split} y_{split}"])
def test_arrays_with_splits(tmp_path, form):
    arrays = {}
    for split, n in dict(train=9, val=3, test=6).items():
        images, labels = form.format(split=split).split()
        arrays |= {
            images: np.stack([texture(split, i) for i in range(n)]),
            labels: (np.arange(n) % 3)[:, None].astype(np.uint8),
        }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    ds, _ = opened(tmp_path / "a.npz")
    assert counts(ds) == {
        s: dict.fromkeys("012", n // 3) for s, n in dict(train=9, val=3, test=6).items()
    }


# --- 5. brightness range


def deep(i, bits=12, dtype=np.uint16):
    return (texture(i, channels=1).astype(np.int64) * 2 ** (bits - 8)).astype(dtype)


@FORMS
@pytest.mark.parametrize("bits, kind", [(10, "PNG"), (12, "PNG"), (12, "TIFF"), (14, "TIFF")])
def test_bits_in_sixteen(tmp_path, bits, kind, form):
    files = {f"{i}.{kind[:3].lower()}": encoded(deep(i, bits), kind) for i in range(8)}
    ds, messages = opened(write(tmp_path, files, form), channels=1)
    truth = np.stack([texture(i, channels=1) for i in range(8)])
    assert abs(ds.images[:, 0].astype(int) - truth).max() <= 1 and not messages
    assert f"0 … {2**bits - 1}" in ds.describe()["about"]["intensity"]
    again = opened(write(tmp_path, files, form), channels=1, intensity="dtype")[0]
    assert again.images.max() < 70 and again.fingerprint != ds.fingerprint


def test_the_range_is_one_for_all(tmp_path):
    files = {"dark.png": encoded(deep(0) // 8), "bright.png": encoded(deep(1))}
    files |= {f"{i}.png": photo(i) for i in range(4)}  # of 8 bits: as they are
    ds, _ = opened(write(tmp_path, files), channels=1)
    largest = dict(zip(ds.keys, ds.images.max((1, 2, 3)), strict=True))
    assert largest["dark.png"] < 32 < 150 < largest["bright.png"]
    source = find_source(tmp_path / "set")
    report = audit(with_split(source, ds))
    assert "0 … 4095, stored values go from" in report.card()
    assert report.table["mean_r"].max() > 100  # it looks at what is learnt from


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.int64, np.uint32])
def test_bits_in_an_array(tmp_path, dtype):
    np.save(tmp_path / "x.npy", np.stack([deep(i, 12, dtype) for i in range(10)]))
    ds, _ = opened(tmp_path / "x.npy", channels=1)
    assert abs(ds.images[0, 0].astype(int) - texture(0, channels=1)).max() <= 1
    assert "0 … 4095" in ds.explain()


def test_small_values_in_32_bits(tmp_path):
    files = {f"{i}.tif": encoded(texture(i, channels=1).astype(np.int32), "TIFF") for i in range(6)}
    ds, _ = opened(write(tmp_path, files), channels=1)
    assert (ds.images[2, 0] == texture(2, channels=1)).all()


def test_signed_values(tmp_path):
    values = (np.stack([texture(i, channels=1) for i in range(9)]).astype(np.int16) - 128) * 8
    np.save(tmp_path / "ct.npy", values)
    ds, _ = opened(tmp_path / "ct.npy", channels=1)
    assert (ds.images.min(), ds.images.max()) == (0, 255)
    soft = opened(tmp_path / "ct.npy", channels=1, intensity="-100, 100")[0]
    assert soft.images.std() > ds.images.std()


def test_signed_values_in_files(tmp_path):
    from tifffile import imwrite

    for i in range(8):
        imwrite(tmp_path / f"{i}.tif", texture(i, channels=1).astype(np.int16) * 8 - 1000)
    ds, messages = opened(tmp_path, channels=1)
    assert (ds.images.min(), ds.images.max()) == (0, 255) and not messages
    assert "stored values go from -" in ds.describe()["about"]["intensity"]


def test_a_full_range_stays_as_it_is(tmp_path):
    files = {f"{i}.png": encoded(deep(i, 16)) for i in range(6)}
    ds, _ = opened(write(tmp_path, files), channels=1)
    assert ds.limits is None and "about" not in ds.describe()
    assert opened(tmp_path / "set", channels=1, intensity="dtype")[0].fingerprint == ds.fingerprint


def test_pages_and_sections_of_twelve_bits(tmp_path):
    first, *rest = (Image.fromarray(deep(i)) for i in range(10))
    first.save(tmp_path / "x.tif", save_all=True, append_images=rest)
    for path in (tmp_path / "x.tif", f"em:{tmp_path / 'x.tif'}"):
        options = dict(chunk=24) if str(path).startswith("em:") else {}
        ds, _ = opened(path, channels=1, **options)
        assert abs(ds.images[0, 0].astype(int) - texture(0, channels=1)).max() <= 1


def test_a_parameter_that_is_none(tmp_path):
    folder = write(tmp_path, {"1.png": photo(1)})
    with pytest.raises(
        ParameterError, match="`intensity` must be auto, dtype, window, or two numb"
    ):
        open_dataset(folder, intensity="bright")
    with pytest.raises(ParameterError, match="`demo` has no option `intensity`"):
        open_dataset("demo", intensity="dtype")


def png_of_16_bits(pixels):
    "A PNG of colours, which Pillow writes with 8 bits alone."
    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return len(data).to_bytes(4, "big") + kind + data + check.to_bytes(4, "big")

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    form = bytes([16, {3: 2, 4: 6}[channels], 0, 0, 0])
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + form
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff_of_16_bits(pixels, **options):
    from tifffile import imwrite

    imwrite(file := io.BytesIO(), pixels, photometric="rgb", **options)
    return file.getvalue()


COLOURS = {
    "png": png_of_16_bits,
    "png with alpha": lambda a: png_of_16_bits(np.dstack([a, a[..., :1] * 0 + 65535])),
    "tif": tiff_of_16_bits,
    "tif packed": lambda a: tiff_of_16_bits(a, compression="zlib"),
    "tif of another order": lambda a: tiff_of_16_bits(a, byteorder=">"),
}


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("kind", COLOURS)
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_colours_of_more_than_8_bits(tmp_path, kind, form, bits):
    colours = [texture(i).astype(np.uint16) * 2 ** (bits - 8) for i in range(8)]
    files = {f"{i}.{kind[:3]}": COLOURS[kind](c) for i, c in enumerate(colours)}
    ds, messages = opened(write(tmp_path, files, form))
    truth = np.stack([texture(i) for i in range(8)]).transpose(0, 3, 1, 2)
    assert abs(ds.images.astype(int) - truth).max() <= 1 and not messages
    if bits < 16:
        assert f"0 … {2**bits - 1}" in ds.describe()["about"]["intensity"]
        assert abs(opened(write(tmp_path, files, form), channels=1)[0].images.max() - 200) < 56
    assert "nearly black" not in audit(find_source(write(tmp_path, files, form))).card()


def test_pages_of_deep_colours(tmp_path):
    from tifffile import imwrite

    pages = np.stack([texture(i).astype(np.uint16) * 16 for i in range(10)])
    imwrite(tmp_path / "x.tif", pages, photometric="rgb")
    ds, _ = opened(tmp_path / "x.tif")
    assert abs(ds.images[3].astype(int) - texture(3).transpose(2, 0, 1)).max() <= 1
    np.save(tmp_path / "y.npy", pages)
    assert (opened(tmp_path / "y.npy")[0].images[:5] == ds.images[:5]).all()


# --- 6. files that are not read


@FORMS
@pytest.mark.parametrize(
    "extension, kind",
    [
        ("jfif", "JPEG"),
        ("jpe", "JPEG"),
        ("JFIF", "JPEG"),
        ("ppm", "PPM"),
        ("jp2", "JPEG2000"),
        ("avif", "AVIF"),
    ],
)
def test_more_extensions(tmp_path, extension, kind, form):
    files = {f"normal/{i}.png": photo(i) for i in range(4)}
    files |= {f"tumour/{i}.{extension}": photo("t", i, kind=kind) for i in range(4)}
    ds, messages = opened(write(tmp_path, files, form))
    assert len(ds) == 8 and ds.classes == ["normal", "tumour"] and not messages


@FORMS
def test_what_is_not_read_is_counted(tmp_path, form):
    files = {f"normal/{i}.png": photo(i) for i in range(4)} | {"normal/notes.txt": b"x"}
    files |= {f"tumour/{i}.mha": b"x" for i in range(3)} | {"normal/9.xcf": b"x"}
    ds, [message] = opened(write(tmp_path, files, form))
    assert message.startswith(
        "4 files are not read: 3 .mha, 1 .xcf; nothing is left of tumour; save"
    )
    assert len(ds) == 4


def test_left_behind_by_file_servers(tmp_path):
    files = {f"a/{i}.png": photo(i) for i in range(4)}
    junk = (
        "@eaDir/0.png/SYNOPHOTO_THUMB.jpg",
        "#recycle/a/1.png",
        "$RECYCLE.BIN/1.png",
        ".AppleDouble/1.png",
        "a/.AppleDouble/1.png",
        "a/Thumbs.db",
        "a/@eaDir/x.jpg",
    )
    ds, messages = opened(write(tmp_path, files | {name: photo("j") for name in junk}))
    assert len(ds) == 4 and not messages


# --- 7. one file as a set


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.tif"])
def test_the_end_of_one_file_is_held_out(tmp_path, name):
    pages = np.stack([texture(i) for i in range(40)])
    if name == "x.tif":
        first, *rest = map(Image.fromarray, pages)
        first.save(tmp_path / name, save_all=True, append_images=rest)
    else:
        (np.save if name == "x.npy" else np.savez)(tmp_path / name, pages)
    ds, [message] = opened(tmp_path / name)
    assert ds.split == ["train"] * 31 + ["val"] * 8 and "#031 (gap between train" in message
    assert set(opened(tmp_path / name, val_fraction=0)[0].split) == {"train"}


def film(n=40):
    steps = np.random.default_rng(0).normal(0, 6, (n, 24, 24, 3))
    return np.clip(128 + np.cumsum(steps, 0), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["frame_{i}.png", "{i:04}.png", "vid/f {i}.png"])
def test_the_end_of_a_film_is_held_out(tmp_path, name):
    files = {name.format(i=i): encoded(page) for i, page in enumerate(film())}
    ds, _ = opened(write(tmp_path, files))
    held = sorted(
        int("".join(filter(str.isdigit, ds.keys[i])))
        for i, part in enumerate(ds.split)
        if part == "val"
    )
    assert held == list(range(32, 40)) and len(ds) == 39 and "the end is held out" in ds.explain()


def test_numbered_images_are_no_film(tmp_path):
    ds, _ = opened(write(tmp_path, {f"{i}.png": photo(i) for i in range(40)}))
    assert len(ds) == 40 and "about" not in ds.describe()


# --- 2. too few held-out images


def test_too_few_held_out_images_are_refused_at_once(tmp_path):
    files = {
        f"{part}/{i}.png": photo(part, i)
        for part, n in dict(train=20, val=8, test=14).items()
        for i in range(n)
    }
    ds, _ = opened(write(tmp_path, files))
    with pytest.warns(UserWarning, match="8 images are held out in `val`, too few .* the 14 of"):
        assert len(held_out_of(ds, 12)) == 14
    assert set(ds.held_out.split) == {"val"}  # what does not judge is as it was
    with pytest.raises(DataError, match="8 images are held out in `val`, and 20 are the least"):
        held_out_of(ds, 20)


def test_a_conditional_training_refuses_a_class_without_images(tmp_path):
    files = {f"train/a/{i}.png": photo(i) for i in range(3)} | {"test/b/0.png": photo("b")}
    ds, _ = opened(write(tmp_path, files))
    with pytest.raises(DataError, match="class b has no training image"):
        check_trainable(ds)
    check_trainable(opened(write(tmp_path / "x", {f"a/{i}.png": photo(i) for i in range(9)}))[0])


# --- 9. classes without a training image


@pytest.mark.parametrize(
    "names, why",
    [
        (
            ("NORMAL", "Normal"),
            "Normal has no training image (Normal differs from NORMAL only in case",
        ),
        (("a b", "a  b"), "has no training image (a  b differs from a b only in case or spaces)"),
        (("cats", "dogs"), "class dogs has no training image"),
    ],
)
def test_a_class_without_training_images(tmp_path, names, why):
    files = {f"train/{kind}/{i}.png": photo(kind, i) for kind in (names[0], "x") for i in range(3)}
    files |= {
        f"test/{kind}/{i}.png": photo(kind, i, 1) for kind in (names[1], "x") for i in range(3)
    }
    messages = opened(write(tmp_path, files))[1]
    assert any(why in message for message in messages)


# --- 10. the reason is the first cause


def test_the_mask_and_not_the_gap_is_the_reason(tmp_path):
    files = {f"raw/{i:02}.png": encoded(texture(i, channels=1)) for i in range(12)}
    folder = write(tmp_path, files | {f"masks/{i:02}.png": mask(i, value=2) for i in range(12)})
    with pytest.raises(DataError, match=r"the first is raw/s000.* \(mask values up to 2"):
        opened(f"em:{folder / 'raw'}", masks=str(folder / "masks"), chunk=24)


# --- 11. channels as pages


@pytest.mark.parametrize("axes, kind", [("CYX", "imagej"), ("CYX", "ome"), ("YXS", "imagej")])
def test_channels_as_pages(tmp_path, axes, kind):
    from tifffile import imwrite

    for i in range(8):
        pixels = texture(i) if axes == "YXS" else texture(i).transpose(2, 0, 1)
        imwrite(tmp_path / f"{i}.tif", pixels, metadata=dict(axes=axes), **{kind: True})
    ds, _ = opened(tmp_path)
    assert len(ds) == 8 and (ds.images[3] == texture(3).transpose(2, 0, 1)).all()


# --- what was taken for what


def test_explain_is_short(tmp_path):
    files = {
        f"x/{part}_images/{kind} test/{i}.png": photo(part, kind, i)
        for part in ("train", "val")
        for kind in "abcdefghijkl"
        for i in range(2)
    }
    ds, _ = opened(write(tmp_path, files | {"x/1.mha": b"", "y.png": b""}))
    text = ds.explain()
    assert len(text.splitlines()) <= 10 and "train from train_images" in text
    assert all(name in text for name in ("classes: a test 4", "read as: x/ wraps", "look: "))


# --- 10. advice that is true, and 12. formats that were asked for


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("x.rar", "extract it"),
        ("x.svs", "'wsi:<its folder>'"),
        ("x.mat", "'emnist:<file>'"),
        ("x.csv", "'emnist:<file>'"),
        ("x.json", "needs the images that it names"),
    ],
)
def test_what_to_do_with_other_files(tmp_path, name, why):
    (tmp_path / name).write_bytes(b"x")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises((DataError, NotADirectoryError)) as error:
            open_dataset(path)
        assert why in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("https://huggingface.co/datasets/owner/name", "give 'hub:owner/name'"),
        ("https://www.kaggle.com/datasets/owner/name", "download it there"),
        ("http://example.org/images.zip", "download what is there"),
    ],
)
def test_an_address_is_no_folder(address, why):
    with pytest.raises(ParameterError, match=f"is an address: .*{why}"):
        open_dataset(address)


def test_pcam_in_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    for part, n in dict(train=12, valid=6, test=6).items():
        stem = tmp_path / f"camelyonpatch_level_2_split_{part}"
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file["x"] = np.stack([texture(part, i) for i in range(n)])
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = (np.arange(n) % 2).reshape(n, 1, 1, 1).astype(np.uint8)
    ds, messages = opened(tmp_path)
    expected = dict(train=6, val=3, test=3)
    assert counts(ds) == {part: {"0": n, "1": n} for part, n in expected.items()}
    assert not messages
    alone, _ = opened(f"{stem}_x.h5")
    assert alone.classes == ["0", "1"] and len(alone) == 6


def test_volumes_slice_by_slice(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    for i in range(5):
        values = (
            texture(i, side=24, channels=1).astype(np.float32)[..., None] * np.ones(10) * 8 - 999
        )
        nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 2, 1])), tmp_path / f"p{i}.nii.gz")
    ds, _ = opened(tmp_path, channels=1, spacing=4)
    assert len(ds) == 25 and len(set(ds.groups)) == 5 and ds.images.max() > 200
    assert len(set(zip(ds.groups, ds.split, strict=True))) == 5
    assert len(opened(tmp_path, axis=0)[0]) == 5 * 24


def test_dicom_by_its_mark(tmp_path):
    pytest.importorskip("pydicom")
    from test_stacks import save_dicom

    for i, name in enumerate(("IM0001", "1.2.840.1", "scan.IMA", "x.dcm", "README")):
        if name != "README":
            save_dicom(tmp_path / name, texture(i, channels=1), 8, PatientID=f"p{i}")
    (tmp_path / "README").write_text("no scan")
    ds, messages = opened(tmp_path, channels=1)
    assert len(ds) == 4 and not messages


def test_sixteen_bits_of_dicom_without_a_window(tmp_path):
    pytest.importorskip("pydicom")
    from test_stacks import save_dicom

    for i in range(6):
        save_dicom(tmp_path / f"{i}.dcm", deep(i), 16, PatientID=f"p{i}")
    ds, _ = opened(tmp_path, channels=1)
    assert abs(ds.images[2, 0].astype(int) - texture(2, channels=1)).max() <= 1
    assert opened(tmp_path, channels=1, intensity="dtype")[0].images.max() < 20
    with pytest.raises(DataError, match="no window in it"):
        open_dataset(tmp_path, 24, intensity="window")


# --- the shapes of public sets, with drawn pixels


def of_kaggle(part, word="_set"):
    return {
        f"{part}{word}/{part}{word}/{c}/{i}.jpg": photo(part, c, i, kind="JPEG")
        for c in ("cats", "dogs")
        for i in range(4)
    }


def two_kinds_of_masks():
    names = ("images", "infection masks", "lung masks")
    return {
        f"{c}/{name}/{i}.png": photo(c, i) if name == "images" else mask(i)
        for c in ("COVID", "Normal")
        for name in names
        for i in range(4)
    }


def in_numbered_parts():
    files = {f"images_part_{1 + i % 2}/ISIC_{i:04}.jpg": photo(i, kind="JPEG") for i in range(8)}
    rows = [f"L{i},ISIC_{i:04},{'nv' if i % 4 else 'mel'},histo,{'fm'[i % 2]}\n" for i in range(8)]
    table = "lesion_id,image_id,dx,dx_type,sex\n" + "".join(rows)
    return files | {"metadata.csv": table.encode()}


def of_tiny_imagenet():
    ids = ("n01440764", "n01443537")
    files = {f"t/train/{n}/images/{n}_{i}.JPEG": photo(n, i, kind="JPEG")
             for n in ids for i in range(4)}  # fmt: skip
    files |= {f"t/val/images/val_{i}.JPEG": photo(i, kind="JPEG") for i in range(4)}
    rows = [f"val_{i}.JPEG\t{ids[i % 2]}\t0\t0\t62\t62\n" for i in range(4)]
    words = "n01440764\ttench, Tinca tinca\nn01443537\tgoldfish, Carassius\n"
    tables = {"t/val/val_annotations.txt": "".join(rows), "t/words.txt": words}
    return files | {name: text.encode() for name, text in tables.items()}


def of_patients():
    return {f"train/patient{p:03}/study1/view{v}.jpg": photo(p, v, kind="JPEG")
            for p in range(6) for v in (1, 2)}  # fmt: skip


def with_flat_names():
    return {
        f"{part}_{i}{end}.bmp": encoded(disc(i) if end else texture(part, i), "BMP")
        for part in ("train", "testA")
        for i in range(1, 5)
        for end in ("", "_anno")
    }


PUBLIC = {
    "cats and dogs": (of_kaggle("training") | of_kaggle("test"), ["cats", "dogs"], 16, False),
    "intel": (of_kaggle("seg_train", "") | of_kaggle("seg_test", ""), ["cats", "dogs"], 16, False),
    "covid": (two_kinds_of_masks(), ["COVID", "Normal"], 8, True),
    "ham": (in_numbered_parts(), ["mel", "nv"], 8, False),
    "tiny imagenet": (of_tiny_imagenet(), ["goldfish", "tench"], 12, False),
    "chexpert": (of_patients(), ["set"], 12, False),
    "glas": (with_flat_names(), ["set"], 8, True),
}


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("name", PUBLIC)
def test_shapes_of_public_sets(tmp_path, name, form):
    files, classes, n, masked = PUBLIC[name]
    ds, _ = opened(write(tmp_path, files, form))
    assert (ds.classes, len(ds), ds.masked) == (classes, n, masked)
    assert len(set(ds.split)) == 2 and ds.describe()["about"]["read_as"]
    if name == "chexpert":
        assert len(set(ds.groups)) == 6
        assert len(set(zip(ds.groups, ds.split, strict=True))) == 6


def test_what_is_nearly_black_is_said(tmp_path):
    files = {f"{i}.png": encoded(texture(i) // 16) for i in range(6)}
    assert any(
        "nearly black, the largest value is 1" in m for m in opened(write(tmp_path, files))[1]
    )


def test_fractions_in_a_given_range(tmp_path):
    values = [texture(i, channels=1).astype(np.float32) for i in range(6)]
    folder = write(tmp_path, {f"{i}.tif": encoded(v, "TIFF") for i, v in enumerate(values)})
    with pytest.raises(DataError, match="give their range as `intensity`"):
        open_dataset(folder, 24, 1)
    ds, _ = opened(folder, channels=1, intensity="0, 255")
    assert (ds.images[3, 0] == texture(3, channels=1)).all()


def test_train_among_vehicles_is_a_class(tmp_path):
    files = {f"{c}/{i}.png": photo(c, i) for c in ("car", "plane", "train") for i in range(5)}
    ds, messages = opened(write(tmp_path, files))
    assert ds.classes == ["car", "plane", "train"]
    assert messages[0].startswith("the folder train is taken for a class")


def test_dev_validates_and_eval_tests(tmp_path):
    names = ("train", "dev", "eval")
    ds, _ = opened(write(tmp_path, {f"{s}/{i}.png": photo(s, i) for s in names for i in range(3)}))
    assert counts(ds) == {s: {"set": 3} for s in ("train", "val", "test")}


# --- more shapes of public sets: folders on two levels, masks that number, lists, sides


def objects(seed, dtype=np.uint8, first=1):
    "Squares on a ground of zero, numbered anew in every picture: four to six of them."
    found = np.zeros((24, 24), dtype)
    places = np.random.default_rng(seed).permutation(16)[: 4 + seed % 3]
    for k, (y, x) in enumerate(np.stack(np.divmod(places, 4), 1) * 6):
        found[y : y + 5, x : x + 5] = k + first
    return found


def grid(form, **names):
    "A photo at each place of a form: `{a}/{b}/{i}.png`."
    keys = [{}]
    for word, values in names.items():
        keys = [key | {word: value} for key in keys for value in values]
    return {form.format(**key): photo(form.format(**key)) for key in keys}


def rows(head, lines):
    return "\n".join([head, *(",".join(map(str, line)) for line in lines)]).encode()


DIAGNOSES, FOUR, EIGHT = ("no", "yes"), range(4), range(8)
LEVELS = {
    # form of the files: classes, images, groups (0: every image alone), what is warned of
    "hospitals": (
        grid("hospital_{h}/{c}/{i}.png", h="AB", c=DIAGNOSES, i=FOUR), DIAGNOSES, 16, 2, ""),
    "folds": (grid("fold{h}/{c}/{i}.png", h=(1, 2, 3), c=DIAGNOSES, i=FOUR), DIAGNOSES, 24, 3, ""),
    "idc": (grid("{p}/{c}/{p}_{i}.png", p=(8863, 8912, 9004), c="01", i=FOUR), "01", 24, 3, ""),
    "patients in classes": (
        grid("{c}/patient{p}/{i}.png", c=DIAGNOSES, p=FOUR, i=FOUR), DIAGNOSES, 32, 4, ""),
    "numbers in classes": (
        grid("{c}/{p:03}/{i}.png", c=DIAGNOSES, p=range(9), i=(1, 2)), DIAGNOSES, 36, 9, ""),
    "lgg": (grid("k/TCGA_CS_{p}_1996/TCGA_CS_{p}_1996_{i}.png", p=range(4941, 4945), i=FOUR),
            ("k",), 16, 4, ""),
    "parts": (grid("images_{p:03}/{i}{p}.png", p=(1, 2), i=EIGHT), ("set",), 16, 0, ""),
    "colours": (grid("{v}/{c}/{i}.png", v=("color", "grey"), c=DIAGNOSES, i=FOUR),
                ("color", "grey"), 16, 0, "two levels, color, grey hold no, yes each"),
    "organs": (grid("{c}/{c}_{s}/{i}.png", c=("colon", "lung"), s=DIAGNOSES, i=FOUR),
               ("colon", "lung"), 16, 0, "the class colon holds folders colon_no, colon_yes"),
    "digits": (grid("{c}/{i}.png", c=FOUR, i=EIGHT), tuple(map(str, FOUR)), 32, 0, ""),
    "numbers": (grid("{c}/{i}.png", c=(101, 205), i=EIGHT), ("101", "205"), 16, 0,
                "101, 205 differ by numbers alone"),
    "runs": (grid("run{c}/{i}.png", c=(1, 2), i=EIGHT), ("run1", "run2"), 16, 0,
             "run1, run2 differ by numbers alone"),
    "a copy inside": (
        grid("{c}/{i}.png", c=DIAGNOSES, i=FOUR) | grid("all/{c}/{i}.png", c=DIAGNOSES, i=FOUR),
        DIAGNOSES, 8, 0, "all/ holds no, yes as they lie beside it"),
    "previews": (grid("a/{i}.png", i=EIGHT) | grid("a/small/{i}.png", i=EIGHT), ("a",), 8, 0,
                 "8 images lie beside the folder small"),
    "yolo": (grid("{s}/images/{i}.png", s=("train", "valid"), i=EIGHT)
             | {f"{s}/labels/{i}.txt": b"0 .5 .5 .1 .1\n"
                for s in ("train", "valid") for i in EIGHT},
             ("set",), 16, 0, "16 .txt are called like images"),
    "without a class": (grid("{c}/{i}.png", c=("no", "pred", "yes"), i=FOUR), ("no", "pred", "yes"),
                        12, 0, "pred is taken for a class, though it may hold images without"),
    "class in the name": (grid("{c}.{i}.png", c=("cat", "dog"), i=FOUR), ("set",), 8, 0,
                          "names begin with cat, dog"),
    "eyes": (grid("{p}_{s}.png", p=EIGHT, s=("left", "right")), ("set",), 16, 8, ""),
    "breasts": (grid("{c}/{p:02}{s}.png", c=DIAGNOSES, p=EIGHT, s="LR"), DIAGNOSES, 32, 16, ""),
    "two formats": (grid("PNG/{i}.png", i=EIGHT)
                    | {f"TIF/{i}.tif": photo(i, kind="TIFF") for i in EIGHT},
                    ("set",), 16, 0, "PNG/0.png and TIF/0.tif have one name"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("name", LEVELS)
def test_folders_on_two_levels(tmp_path, name, form):
    files, classes, n, groups, why = LEVELS[name]
    ds, messages = opened(write(tmp_path, files, form))
    assert (ds.classes, len(ds)) == (sorted(classes), n)
    assert len(set(ds.groups)) == (groups or n)
    assert len(set(zip(ds.groups, ds.split, strict=True))) == (groups or n)
    if why:
        assert any(why in message for message in messages)
    else:
        assert not [m for m in messages if "no training image" not in m]
    assert not groups or ds.describe()["about"]["read_as"]


def test_a_set_that_is_held_out_beside_the_others(tmp_path):
    parts = ("NCT-100K", "CRC-VAL-7K")
    ds, _ = opened(write(tmp_path, grid("{p}/{c}/{i}.png", p=parts, c=DIAGNOSES, i=FOUR)))
    assert counts(ds) == {part: {"no": 4, "yes": 4} for part in ("train", "val")}


def test_folders_of_a_numbered_list(tmp_path):
    files = {}
    for part, n in (("a. Training Set", 8), ("b. Testing Set", 4)):
        files |= grid(f"1. Originals/{part}/I_{{i}}.jpg", i=range(n))
        table = [(f"I_{i}", "xy"[i % 2]) for i in range(n)]
        files[f"2. Truth/{part.replace('Set', 'labels')}.csv"] = rows("name,grade", table)
    ds, messages = opened(write(tmp_path, files))
    assert counts(ds) == {"train": {"x": 4, "y": 4}, "test": {"x": 2, "y": 2}} and not messages


NUMBERED = {
    "glas": ("x/{i}.bmp", "x/{i}_anno.bmp", objects),
    "cellpose": ("{i}_img.png", "{i}_masks.png", lambda i: objects(i, dtype=np.uint16, first=300)),
    "pannuke": ("f/images/{i}.png", "f/masks/{i}.png", lambda i: objects(i, first=125)),
    "ctc": ("x/01/t{i:03}.tif", "x/01_ST/SEG/man_seg{i:03}.tif",
            lambda i: objects(i, dtype=np.uint16)),
    "cityscapes": ("leftImg8bit/b/b_{i}_000019_leftImg8bit.png",
                   "gtFine/b/b_{i}_000019_gtFine_ids.png", objects),
}  # fmt: skip


@FORMS
@pytest.mark.parametrize("name", NUMBERED)
def test_masks_that_number_objects(tmp_path, name, form):
    image, mask_of, draw = NUMBERED[name]
    kind = {"bmp": "BMP", "tif": "TIFF"}.get(image[-3:], "PNG")
    files = {image.format(i=i): encoded(texture(i), kind) for i in EIGHT}
    files |= {mask_of.format(i=i): encoded(draw(i), kind) for i in EIGHT}
    ds, messages = opened(write(tmp_path, files, form))
    assert (len(ds), ds.masked, len(ds.classes)) == (8, True, 1)
    assert (ds.masks[3, 0] == (draw(3) > 0)).all()
    assert any("masks number areas" in message for message in messages)


def test_masks_in_colours_of_a_palette(tmp_path):
    files = {f"JPEGImages/{i}.jpg": photo(i, kind="JPEG") for i in EIGHT}
    for i in EIGHT:
        picture = Image.fromarray(objects(i)).convert("L")
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128] + [9] * 753)
        picture.save(file := io.BytesIO(), "PNG")
        files[f"SegmentationClass/{i}.png"] = file.getvalue()
    ds, messages = opened(write(tmp_path, files))
    assert ds.masked and (ds.masks[3, 0] == (objects(3) > 0)).all() and len(messages) == 1


def test_masks_that_cover_everything_are_left_out(tmp_path):
    files = {f"images/{i}.png": photo(i) for i in EIGHT}
    files |= {f"mask/{i}.bmp": encoded(255 - disc(i, value=127), "BMP") for i in EIGHT}
    ds, [message] = opened(write(tmp_path, files))
    assert len(ds) == 8 and not ds.masked and "they cover all of the image" in message


@pytest.mark.parametrize("sides", ["xy", ("trainX", "trainY"), ("photo", "zeta")])
def test_masks_that_no_name_tells(tmp_path, sides):
    files = {f"{sides[0]}/{i}.png": photo(i) for i in EIGHT}
    ds, [message] = opened(write(tmp_path, files | {f"{sides[1]}/{i}.png": mask(i) for i in EIGHT}))
    assert (len(ds), ds.masked) == (8, True) and (ds.masks[3, 0] == disc(3, value=1)).all()
    assert f"{sides[1]}/0.png is taken for the mask of {sides[0]}/0.png" in message


def test_masks_that_find_no_image_are_said(tmp_path):
    files = grid("a/{i}.png", i=range(20)) | {f"b/z{i}.png": mask(i) for i in range(9)}
    messages = opened(write(tmp_path, files))[1]
    assert any("have two values, as masks have (b/z0.png, b/z1.png, …" in m for m in messages)


def test_a_mask_of_several_images(tmp_path):
    files = grid("p{p:03}/p{p:03}_{m}.png", p=FOUR, m=("t1", "t2", "flair"))
    files |= {f"p{p:03}/p{p:03}_seg.png": mask(p) for p in FOUR}
    ds, _ = opened(write(tmp_path, files))
    assert (len(ds), ds.masked, len(set(ds.groups))) == (12, True, 4)
    assert (ds.masks[4, 0] == disc(1, value=1)).all()


def test_the_mask_of_each_folder_for_itself(tmp_path):
    files = grid("s/IMD{i:03}/IMD{i:03}_Dermoscopic_Image/IMD{i:03}.png", i=EIGHT)
    files |= {f"s/IMD{i:03}/IMD{i:03}_lesion/IMD{i:03}_lesion.png": mask(i) for i in EIGHT}
    ds, messages = opened(write(tmp_path / "ph2", files))
    assert (len(ds), ds.masked) == (8, True) and not messages
    files = grid("Slide_{s:02}/{s:02}_{i}.png", s=(1, 2), i=FOUR)
    files |= {f"GT_{s:02}/{s:02}_{i}.png": mask(s, ) for s in (1, 2) for i in FOUR}
    ds, messages = opened(write(tmp_path / "tnbc", files))
    assert (len(ds), ds.masked, len(set(ds.groups))) == (8, True, 2)


def test_overlays_are_neither_images_nor_masks(tmp_path):
    names = ("tissue images", "mask binary", "label masks", "overlay")
    files = {
        f"{organ}/{name}/{i}.png": photo(organ, name, i) if name[0] in "to" else mask(i)
        for organ in ("bladder", "brain") for name in names for i in FOUR
    }  # fmt: skip
    ds, [message] = opened(write(tmp_path, files))
    assert (ds.classes, len(ds), ds.masked) == (["bladder", "brain"], 8, True)
    assert "mask binary is taken, label masks, overlay left out" in message


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_lists_of_splits(tmp_path, kind):
    parts = dict(train=range(10), test=range(10, 16))
    files = grid("images/{i:03}.png", i=range(16))
    files |= {f"lists/{part}.{kind}": "\n".join(f"{i:03}.png" for i in own).encode()
              for part, own in parts.items()}  # fmt: skip
    ds, messages = opened(write(tmp_path, files))
    assert counts(ds) == {"train": {"set": 10}, "test": {"set": 6}} and not messages
    (tmp_path / f"set/lists/test.{kind}").write_text("010.png\n011.png\n012.png")
    ds, [message] = opened(tmp_path / "set")
    assert "lists of splits" in message and "3 images are in none" in message


def test_tables_of_splits_with_classes(tmp_path):
    files = grid("images/{i:03}.png", i=range(16))
    for part, own in dict(train=range(8), val=range(8, 12), test=range(12, 16)).items():
        files[f"{part}.csv"] = rows("image,label", [(f"{i:03}", "ab"[i % 2]) for i in own])
    ds, messages = opened(write(tmp_path, files))
    assert counts(ds) == {s: {"a": n, "b": n} for s, n in dict(train=4, val=2, test=2).items()}
    assert not messages


def test_tables_that_speak_of_groups_beside_class_folders(tmp_path):
    files = grid("{c}/{c}{i}.png", c=DIAGNOSES, i=EIGHT)
    table = [(key, i // 4) for i, key in enumerate(sorted(files))]
    ds, messages = opened(write(tmp_path, files | {"t.csv": rows("file,patient_id", table)}))
    assert ds.classes == ["no", "yes"] and len(set(ds.groups)) == 4 and not messages
    assert len(set(zip(ds.groups, ds.split, strict=True))) == 4


@pytest.mark.parametrize(
    "head, values",
    [
        ("file,sequence_id", lambda i: i // 4),
        ("file,EncodedPixels", lambda i: ("-1", "3 4 5 6")[i % 2]),
        ("file,lesion_id", lambda i: f"L{i // 2}"),
    ],
)
def test_columns_that_are_no_classes(tmp_path, head, values):
    files = grid("images/{i:03}.png", i=range(16))
    table = rows(head, [(f"{i:03}.png", values(i)) for i in range(16)])
    ds, _ = opened(write(tmp_path, files | {"t.csv": table}))
    assert len(ds.classes) == 1 and "t.csv" in str(ds.describe()["about"])


def test_a_table_without_names_of_files(tmp_path):
    table = rows("patient,tumor,split", [(i // 3, i % 2, 0) for i in range(12)])
    files = grid("patches/x{i}_y.png", i=range(100, 112)) | {"metadata.csv": table}
    [message] = opened(write(tmp_path, files))[1]
    assert "metadata.csv has a row for each of 12 images" in message


def test_a_list_with_columns_between_spaces(tmp_path):
    files = grid("images/{b}_{i}.png", b=("Abyssinian", "beagle"), i=FOUR)
    lines = ["#Image CLASS-ID SPECIES"]
    lines += [f"{b}_{i} {k} 1" for k, b in enumerate(("Abyssinian", "beagle")) for i in FOUR]
    ds, _ = opened(write(tmp_path, files | {"annotations/list.txt": "\n".join(lines).encode()}))
    assert ds.labels.tolist() == [0] * 4 + [1] * 4


# --- tables of images on disk


def of_rows(n, label="label", values=("a", "b")):
    cells = [dict(bytes=photo(i), path=f"{i}.png") for i in range(n)]
    return dict(image=cells) | ({label: [values[i % 2] for i in range(n)]} if label else {})


@pytest.mark.parametrize("values", [("a", "b"), (3, 11)])
@pytest.mark.parametrize(
    "name", ["data/{part}-00000-of-00001.parquet", "default/{part}/0000.parquet"]
)
def test_tables_of_another_program(tmp_path, name, values):
    pytest.importorskip("datasets")
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    for part, n in dict(train=8, test=4).items():
        path = tmp_path / "set" / name.format(part=part)
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table(of_rows(n, values=values)), path)
    (tmp_path / "set/README.md").write_text("x")
    ds, messages = opened(tmp_path / "set")
    assert ds.classes == [str(v) for v in values] and not messages
    assert counts(ds)["test"] == dict.fromkeys(ds.classes, 2) and len(ds) == 12
    assert (ds.images[0] == texture(0).transpose(2, 0, 1)).all()


def test_tables_that_name_no_class(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict(of_rows(8, "grading"))
    table.to_parquet(tmp_path / "x.parquet")
    ds, [message] = opened(tmp_path)
    assert len(ds) == 8 and "none of the columns grading is taken for the class" in message
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "saved")
    ds, _ = opened(tmp_path / "saved")
    assert counts(ds) == {"train": {"saved": 8}, "test": {"saved": 8}}


def test_tables_without_images(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict(dict(text=["a", "b"])).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no column of images; its columns are text"):
        open_dataset(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"tables in .* cannot be read"):
        open_dataset(tmp_path)


def test_heic_is_read_with_its_plugin_and_asks_for_it(tmp_path, monkeypatch):
    content = b"\0\0\0\x18ftypheic" + bytes(64)
    files = {f"h{i}.heic": content for i in range(3)} | {f"{i}.png": photo(i) for i in range(6)}
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    [message] = opened(write(tmp_path, files))[1]
    assert "HEIC needs a plugin: pip install 'synth_nb[heif]'" in message
    monkeypatch.delitem(sys.modules, "pillow_heif")
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    for i in range(3):
        Image.fromarray(texture(i, side=64)).save(tmp_path / f"set/h{i}.heic", "HEIF", quality=100)
    ds, messages = opened(tmp_path / "set")
    assert len(ds) == 9 and not messages


@pytest.mark.parametrize(
    "names", [("X_{s}", "y_{s}"), ("{s}_images", "{s}_labels"), ("x-{s}", "y-{s}")]
)
def test_arrays_with_labels_beside(tmp_path, names):
    for part, n in dict(train=12, test=6).items():
        images, labels = (tmp_path / f"{name.format(s=part)}.npy" for name in names)
        np.save(images, np.stack([texture(i) for i in range(n)]))
        np.save(labels, np.arange(n) % 3)
    ds, messages = opened(tmp_path)
    assert ds.classes == ["0", "1", "2"] and not messages
    assert counts(ds) == {s: dict.fromkeys("012", n) for s, n in dict(train=4, test=2).items()}
    alone, _ = opened(tmp_path / f"{names[0].format(s='test')}.npy")
    assert alone.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_images_of_8_and_of_12_bits_are_no_pairs(tmp_path):
    files = {f"a/{i}.png": encoded(texture("a", i, channels=1)) for i in range(8)}
    ds, _ = opened(write(tmp_path, files | {f"b/{i}.png": encoded(deep(i)) for i in range(8)}))
    assert len(ds) == 16 and not ds.masked and ds.classes == ["a", "b"]


def test_a_third_folder_beside_images_and_masks(tmp_path):
    files = {f"{d}/{i}.png": photo(i) if d == "images" else mask(i)
             for d in ("images", "masks", "edges") for i in range(8)}  # fmt: skip
    ds, [message] = opened(write(tmp_path, files))
    assert (len(ds), ds.masked) == (8, True)
    assert "edges/ holds files called like the images: left out" in message


def tissue(seed):
    "A class map of three classes; class 1 in two pieces, as numbered objects are not."
    found = np.zeros((24, 24), np.uint8)
    found[2:8, 2:8] = found[14:20, 3:9] = 1
    found[5:18, 12 + seed % 4 : 20] = 2
    return found


def paletted(numbers):
    picture = Image.fromarray(numbers)
    picture.putpalette([0, 0, 0, 200, 0, 0, 0, 160, 0])
    picture.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


PARTS = ("gland", "stroma")
CLASS_MASKS = {
    "numbers": lambda i: {f"{i}_mask.png": encoded(tissue(i))},
    "grey": lambda i: {f"{i}_mask.png": encoded(tissue(i) * 127)},
    "16 bits": lambda i: {f"{i}_mask.tif": encoded(tissue(i).astype(np.uint16) * 9, "TIFF")},
    "palette": lambda i: {f"SegmentationClass/{i}.png": paletted(tissue(i))},
    "void": lambda i: {f"{i}_label.png": encoded(np.where(tissue(i), tissue(i), 255 * (i == 1)))},
    "colours": lambda i: {f"{i}_gt.png": encoded(np.array(
        [(0, 0, 0), (0, 0, 255), (255, 9, 0)], np.uint8)[tissue(i)])},
    "suffix": lambda i: {f"{i}_mask_{c}.png": encoded((tissue(i) == k) * np.uint8(255))
                         for k, c in enumerate(PARTS, 1)},
    "folder": lambda i: {f"masks/{c}/{i}.png": encoded((tissue(i) == k) * np.uint8(255))
                         for k, c in enumerate(PARTS, 1)},
    "folders": lambda i: {f"{c}_masks/{i}.png": encoded((tissue(i) == k) * np.uint8(255))
                          for k, c in enumerate(PARTS, 1)},
}  # fmt: skip


@FORMS
@pytest.mark.parametrize("name", CLASS_MASKS)
def test_masks_of_several_classes(tmp_path, name, form):
    apart = name in ("palette", "folder", "folders")
    files = {(f"images/{i}.png" if apart else f"{i}.png"): photo(i) for i in EIGHT}
    for i in EIGHT:
        files |= CLASS_MASKS[name](i)
    ds, messages = opened(write(tmp_path, files, form))
    assert (len(ds), ds.channels, len(ds.mask_classes)) == (8, 3, 3)
    assert (ds.masks[3, 0] == tissue(3)).all() and not ds.skipped
    named = name in ("suffix", "folder", "folders")
    assert not named or [n.removesuffix("_masks") for n in ds.mask_classes[1:]] == [*PARTS]
    assert f"{ds.mask_classes[2]} {(ds.masks == 2).mean():.1%}" in ds.explain()
    assert [bool(messages), "borders" in "".join(messages)] == [name == "void"] * 2
    half = open_dataset(tmp_path / ("set" if form == "folder" else f"set.{form}"), image_size=12)
    assert half.fingerprint != ds.fingerprint and set(np.unique(half.masks)) <= {0, 1, 2}


def test_names_of_mask_classes(tmp_path):
    files = {f"{i}.png": photo(i) for i in EIGHT}
    files |= {f"{i}_mask.png": encoded(tissue(i) if i < 7 else tissue(i) * 3) for i in EIGHT}
    files["mask_classes.json"] = b'["ground", "gland", "stroma"]'
    ds, [message] = opened(write(tmp_path, files))
    assert ds.mask_classes == ["ground", "gland", "stroma"] and len(ds) == 7
    assert "its mask has the value 3, which is none of the 3 classes (ground, gland" in message
    (tmp_path / "set" / "mask_classes.json").write_bytes(b'["ground"]')
    with pytest.raises(DataError, match="must be a list of 2 … 32 different names"):
        opened(tmp_path / "set")


def test_soft_masks_and_objects_stay_binary(tmp_path):
    files = {f"{i}.png": photo(i) for i in EIGHT}
    soft = np.array([0, 128, 255], np.uint8)
    for i in EIGHT:
        inner = disc(i) > 0
        ring = inner & ~ndimage.binary_erosion(inner)
        files[f"{i}_mask.png"] = encoded(soft[inner.astype(int) * 2 - ring])
    ds, _ = opened(write(tmp_path, files))
    assert ds.mask_classes == ["background", "foreground"] and set(np.unique(ds.masks)) == {0, 1}


def test_a_table_of_another_extension(tmp_path):
    files = {f"images/{f}": photo(f) for f, _ in ROWS}
    table = "file,label\n" + "".join(f"{f[:3]}.jpg,{c}\n" for f, c in ROWS)
    assert opened(write(tmp_path, files | {"t.csv": table.encode()}))[0].classes == ["a", "b"]


def test_volumes_leave_the_memory(tmp_path, monkeypatch):
    nibabel = pytest.importorskip("nibabel")
    pixels = np.random.default_rng(0).integers(0, 900, (6, 16, 16, 9), np.int16)
    for i, values in enumerate(pixels):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{i}.nii.gz")
    loaded = [volumes.Volume(path, volumes.Slices()) for path in sorted(tmp_path.glob("*.gz"))]
    monkeypatch.setattr(volumes, "MOST_UNPACKED", 2 * pixels[0].nbytes)
    for i in range(9):  # from one to the next, and back again
        for one, values in zip(loaded, pixels, strict=True):
            assert np.array_equal(one(i), np.rot90(values[..., i]))
            assert sum(v.values is not None for v in loaded) <= 2
