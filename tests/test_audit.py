"What an audit must find, what it must not, and what it writes."

import io
import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance

from synth_nb.core.parameters import ParameterError
from synth_nb.data import DataError, open_dataset
from synth_nb.data.quality.audit import audit
from synth_nb.data.quality.copies import near_by_features, near_by_hash, thumbnail
from synth_nb.data.readers.find import folder_source
from synth_nb.data.readers.sources import GAP, Source, demo_source

DEMO = demo_source(64, 64)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def crop(i):
    return Image.fromarray(DEMO.content(i))


def source(contents, **options):
    "A source of contents named like `split/class/name` or `class/name`."
    keys = sorted(contents)
    classes = sorted({key.split("/")[-2] for key in keys})
    split = [key.split("/")[0] for key in keys] if keys[0].count("/") == 2 else None
    labels = [classes.index(key.split("/")[-2]) for key in keys]
    source = Source("set", keys, classes, labels, None, lambda i: contents[keys[i]], split)
    return replace(source, **options)


def linked(found):
    return {frozenset(pair) for pair in found.pairs[["key_a", "key_b"]].values.tolist()}


# --- what must be found

COPIES = {
    "exact": lambda im: encoded(im),
    "bmp": lambda im: encoded(im, "BMP"),
    "jpeg": lambda im: encoded(im, "JPEG", quality=40),
    "mirrored": lambda im: encoded(im.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "flipped": lambda im: encoded(im.transpose(Image.Transpose.FLIP_TOP_BOTTOM)),
    "turned": lambda im: encoded(im.transpose(Image.Transpose.ROTATE_90)),
    "halved": lambda im: encoded(im.resize((32, 32))),
    "brighter": lambda im: encoded(ImageEnhance.Brightness(im).enhance(1.1)),
    "turned jpeg": lambda im: encoded(im.rotate(180), "JPEG", quality=75),
}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("index", [3, 260, 611])
def test_planted_copy(kind, index):
    contents = {f"train/a/{i}.png": encoded(crop(i)) for i in (index, 100, 300, 500, 700)}
    contents[f"test/a/{kind}"] = COPIES[kind](crop(index))
    found = audit(source(contents))
    assert linked(found) == {frozenset((f"train/a/{index}.png", f"test/a/{kind}"))}
    assert found.findings["leaked"] == [f"test/a/{kind}"]
    assert len(found.findings["across_splits"]) == 1
    assert set(found.pairs["kind"]) == ({"identical"} if kind in ("exact", "bmp") else {"near"})
    assert str(found).startswith("1 of 1 image held out have a copy in `train`")


def test_grey_stored_as_colour_is_the_same_image():
    grey = crop(5).convert("L")
    found = audit(source({"a/1": encoded(grey), "a/2": encoded(grey.convert("RGB"))}))
    assert (found.findings["identical"], found.findings["grey_stored_as_colour"]) == (1, 1)
    assert found.findings["modes"] == {"L": 1, "RGB": 1} and len(found.findings["mean"]) == 1


def test_copy_in_two_classes():
    found = audit(source({"a/x.png": encoded(crop(0)), "b/y.png": encoded(crop(0)),
                          "b/z.png": encoded(crop(200))}))
    assert found.findings["across_classes"] == [["a/x.png", "b/y.png"]]
    assert "1 pair of copies in two classes" in str(found)
    assert found.table["cluster"].tolist() == ["a/x.png", "a/x.png", "b/z.png"]


def test_many_copies_are_one_cluster_and_n_minus_1_pairs():
    contents = {f"{split}/a/{i}": encoded(crop(9)) for split in ("train", "test") for i in range(5)}
    found = audit(source(contents))
    assert len(found.pairs) == 9 and found.findings["identical"] == 9
    assert len(found.findings["leaked"]) == 5 and len(found.findings["across_splits"]) == 5
    assert found.table["cluster"].nunique() == 1


def test_likeness_of_a_copied_image_names_the_pair_across_splits():
    contents = {"test/a/1": encoded(crop(9)), "train/a/2": encoded(crop(9)),
                "test/a/3": encoded(crop(9).rotate(90))}
    found = audit(source(contents))
    assert linked(found) == {frozenset(("test/a/1", "train/a/2")),
                             frozenset(("test/a/3", "train/a/2"))}
    assert found.findings["leaked"] == ["test/a/1", "test/a/3"]


def test_groups_in_two_splits():
    contents = {f"{split}/a/{i}": encoded(crop(i)) for split, i in
                (("train", 0), ("train", 90), ("test", 180), ("test", 270))}
    found = audit(source(contents, groups=["p2", "p3", "p1", "p2"]))
    assert found.findings["groups_across_splits"] == ["p2"] and not found.findings["leaked"]
    assert "1 group in more than one split: p2" in str(found)


def test_a_gap_of_one_stack_hides_no_other():
    contents = {f"{split}/a/{i}": encoded(crop(i)) for split, i in
                (("train", 0), ("train", 90), ("test", 180), ("test", 270))}
    found = audit(replace(source(contents, groups=["stack1", "stack10"] * 2),
                          skipped=[("stack10:3", GAP)]))
    assert found.findings["groups_across_splits"] == ["stack1"]


# --- what must not be found


def shared_area(a, b, side=64):
    "Share of a crop that lies in the other too."
    y, x = np.maximum(side - abs(DEMO.positions[a] - DEMO.positions[b]), 0)
    return y * x / side**2


def test_overlapping_crops_are_no_copies():
    train = [i for i, split in enumerate(DEMO.split) if split == "train"]
    assert len(train) == 493
    shares = [shared_area(a, b) for a, b in itertools.combinations(train[:80], 2)]
    assert 0.7 < max(shares) < 0.9  # they do overlap, and none is nearly the whole of another
    found = audit(DEMO)
    assert found.findings["near"] == 0 and found.findings["identical"] == 0
    assert len(found.table) == 754 and found.findings["problems"] == []


def test_crops_shifted_by_one_pixel_are_near():
    "The overlap test would pass if nothing were ever found."
    section = DEMO.content(0).base
    thumbs = [thumbnail(Image.fromarray(section[y : y + 64, 100:164])) for y in (200, 201)]
    assert len(near_by_hash(np.stack(thumbs))) == 1


def test_blank_images_are_named_and_are_no_near_copies():
    rng = np.random.default_rng(0)
    contents = {f"a/{i}": encoded((240 + rng.integers(0, 3, (64, 64, 3))).astype(np.uint8))
                for i in range(6)}
    found = audit(source(contents | {"a/tissue": encoded(crop(0))}))
    assert found.findings["blank"] == [f"a/{i}" for i in range(6)]
    assert found.findings["near"] == 0


def test_noise_is_no_copy():
    rng = np.random.default_rng(0)
    contents = {f"a/{i:03}": rng.integers(0, 256, (40, 40), np.uint8) for i in range(200)}
    assert audit(source(contents)).findings["near"] == 0


# --- the table and the numbers


def test_statistics_are_those_of_all_pixels():
    contents = {"a/1": DEMO.content(0), "b/2": DEMO.content(300)[:32]}
    found = audit(source(contents))
    pixels = np.concatenate([c.reshape(-1, 3) for c in contents.values()])
    assert found.findings["mean"] == pytest.approx(pixels.mean(0), rel=1e-4)
    assert found.findings["std"] == pytest.approx(pixels.std(0), rel=1e-4)
    assert found.findings["sizes"] == {"32x64": 1, "64x64": 1}
    assert found.findings["small_classes"] == ["a", "b"]
    row = found.table.iloc[1]
    assert (row["height"], row["width"], row["format"], row["bytes"]) == (32, 64, "array", 6144)
    assert row["std_b"] == pytest.approx(contents["b/2"][..., 2].std(), rel=1e-4)


def test_bad_files_are_listed(tmp_path):
    for i in range(4):
        (tmp_path / "a").mkdir(exist_ok=True)
        crop(40 * i).save(tmp_path / "a" / f"{i}.png")
    (tmp_path / "a" / "torn.png").write_bytes((tmp_path / "a" / "0.png").read_bytes()[:2000])
    (tmp_path / "a" / "letter.jpg").write_text("Dear colleague")
    (tmp_path / "a" / "zero.png").touch()
    (tmp_path / "outside.png").write_bytes(b"x")
    found = audit(folder_source(tmp_path))
    assert found.findings["problems"] == [
        ["a/letter.jpg", "not an image"], ["a/torn.png", "truncated"],
        ["a/zero.png", "empty file"], ["outside.png", "outside the class or split folders"]]
    assert (found.findings["images"], found.findings["readable"]) == (8, 4)
    assert "4 of 8 images cannot be used: a/letter.jpg (not an image)" in str(found)
    assert found.table.set_index("key").loc["a/torn.png", "phash"] == ""


def test_nothing_readable():
    with pytest.raises(DataError, match=r"none of the 2 images in set .* the first is a/1"):
        audit(source({"a/1": b"", "a/2": b"x"}))


def test_sixteen_bits_and_transparency():
    deep = Image.fromarray((np.arange(4096, dtype=np.uint16) * 16).reshape(64, 64))
    clear = Image.new("RGBA", (20, 30), (9, 9, 9, 0))
    found = audit(source({"a/deep": encoded(deep), "a/clear": encoded(clear)}))
    rows = found.table.set_index("key")
    assert rows.loc["a/deep", "mode"] == "I;16" and rows.loc["a/deep", "mean_r"] > 100
    assert rows.loc["a/clear", "mean_r"] == 255 and rows.loc["a/clear", "height"] == 30


# --- what is written


def mistakes():
    contents = {f"train/{'ab'[i % 2]}/{i}.png": encoded(crop(20 * i)) for i in range(8)}
    contents |= {f"test/a/{i}.png": encoded(crop(500 + 20 * i)) for i in range(3)}
    return contents | {"test/b/copy.jpg": encoded(crop(40), "JPEG"), "test/a/torn.png": b""}


def test_files_are_whole_and_reproducible(tmp_path):
    found = audit(source(mistakes(), about=dict(licence="CC0")), tmp_path / "one")
    audit(source(mistakes(), about=dict(licence="CC0")), tmp_path / "two")
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert names == ["audit.csv", "card.md", "contact_sheet.png", "duplicates.csv",
                     "duplicates.png", "histograms.png"]
    for name in names:
        first, second = ((tmp_path / run / name).read_bytes() for run in ("one", "two"))
        assert first == second, name
        if name.endswith(".png"):
            assert min(Image.open(tmp_path / "one" / name).size) > 200
    card = (tmp_path / "one" / "card.md").read_text()
    for part in ("# Data: set", "- licence: CC0", "| a | 4 | 3 | 7 |", "torn.png | empty file",
                 "train/a/2.png | test/b/copy.jpg | near"):
        assert part in card
    table = pd.read_csv(tmp_path / "one" / "audit.csv", keep_default_na=False)
    assert table["key"].tolist() == found.table["key"].tolist()
    assert table.columns[-1] == "problem" and (table["problem"] != "").sum() == 1
    pairs = pd.read_csv(tmp_path / "one" / "duplicates.csv")
    assert pairs[["key_a", "key_b"]].values.tolist() == [["train/a/2.png", "test/b/copy.jpg"]]


def test_findings_are_plain():
    findings = audit(source(mistakes())).findings
    assert json.loads(json.dumps(findings)) == findings


def test_no_copies_are_said_and_not_drawn(tmp_path):
    (tmp_path / "duplicates.png").touch()  # of an earlier audit
    found = audit(source({f"a/{i}": encoded(crop(100 * i)) for i in range(3)}), tmp_path)
    assert str(found).startswith("No copies were found.")
    assert 4 <= len(str(found).splitlines()) + 1 <= 8
    assert not (tmp_path / "duplicates.png").exists()
    assert (tmp_path / "histograms.png").exists() and (tmp_path / "duplicates.csv").exists()


def test_many_classes_and_sizes(tmp_path):
    contents = {f"{chr(97 + i % 26)}{i // 26}/{i}": encoded(crop(4 * i).resize((20 + i, 30 + i)))
                for i in range(60)}
    audit(source(contents), tmp_path, near="")
    assert Image.open(tmp_path / "contact_sheet.png").height > 1000


def test_opened_data_set():
    ds = open_dataset("demo", 64).select(range(0, 754, 60))
    found = audit(ds)
    assert found.findings["fingerprint"] == ds.fingerprint
    assert found.table["split"].tolist() == ds.split and set(found.table["format"]) == {"array"}
    assert ds.fingerprint in found.card()
    grey = audit(open_dataset("demo", 64, channels=1).select(range(3)))
    assert set(grey.table["mode"]) == {"L"} and len(grey.findings["mean"]) == 1


def test_masks_are_no_part_of_the_images():
    for channels, mode in ((1, "L"), (3, "RGB")):
        ds = open_dataset("mr_phantom", 64, channels=channels, n=12)
        found = audit(ds).findings
        assert ds.masked and found["modes"] == {mode: 12} and not found["blank"]
        assert np.mean(found["mean"]) == pytest.approx(ds.images.mean(), rel=1e-3)


# --- thresholds and encoders


@pytest.mark.parametrize(("name", "value"), [("bits", -1), ("bits", 40), ("correlation", 0),
                                             ("cosine", 1.5), ("near", "looks"), ("near", None)])
def test_bad_parameter_is_named(name, value):
    with pytest.raises(ParameterError, match=f"`{name}`"):
        audit(source({"a/1": encoded(crop(0))}), **{name: value})


def test_not_a_source():
    with pytest.raises(ParameterError, match="needs a Source"):
        audit("demo")


def test_features_in_blocks_agree():
    features = np.random.default_rng(0).normal(size=(60, 4))
    at_once, blockwise = (near_by_features(features, 0.9, block=b) for b in (10**6, 120))
    assert len(at_once) > 5 and at_once.equals(blockwise)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert len(at_once) == (np.triu(unit @ unit.T, 1) >= 0.9).sum()


def test_encoder_sees_every_readable_image_once():
    seen = []

    def encoder(images):
        assert images.dtype == np.uint8 and images.shape[1:] == (3, 224, 224)
        seen.append(len(images))
        return images[:, :, ::32, ::32].reshape(len(images), -1).astype(np.float32) - 128

    contents = {f"a/{i:02}": encoded(crop(18 * i)) for i in range(40)} | {"a/bad": b""}
    contents["a/again"] = encoded(crop(0), "JPEG")
    found = audit(source(contents), near=encoder, cosine=0.995)
    assert seen == [32, 9]
    assert frozenset(("a/00", "a/again")) in linked(found)
    assert found.pairs["bits"].max() == -1


def test_encoder_must_give_one_row_per_image():
    contents = {f"a/{i}": encoded(crop(90 * i)) for i in range(3)}
    with pytest.raises(ParameterError, match=r"`near` must give one row of features per image"):
        audit(source(contents), near=lambda images: images)
