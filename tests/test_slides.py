"Slides at a chosen µm per pixel: the right tiles, the right pixels, complete or not at all."

import csv
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from synth_nb.core.parameters import ParameterError
from synth_nb.data import open_dataset
from synth_nb.data.cache import decode_source
from synth_nb.data.readers.find import folder_source
from synth_nb.data.readers.slides import find_slides, open_slide, slide_mpp, write_tiles, wsi_source
from synth_nb.data.readers.sources import DataError

pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")


def write_slide(path, pixels, mpp=0.25, levels=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path, bigtiff=True) as f:
        for i in range(levels):
            size = dict(resolution=(1e4 / (mpp or 1) / 2**i,) * 2, resolutionunit="CENTIMETER")
            f.write(pixels, tile=(256, 256), photometric="rgb", compression="zlib",
                    subfiletype=int(i > 0), **(size if mpp else {}))
            pixels = pixels.reshape(len(pixels) // 2, 2, -1, 2, 3).mean((1, 3)).astype(np.uint8)
    return path


def tissue(y=512, x=512, height=1024, width=1024, side=2048):
    "Stained epithelium in a rectangle, on glass."
    from skimage.data import immunohistochemistry

    pixels = np.full((side, side, 3), 242, np.uint8)
    part = np.tile(immunohistochemistry()[:256, :256], (side // 256, side // 256, 1))
    pixels[y : y + height, x : x + width] = part[:height, :width]
    return pixels


@pytest.fixture
def folder(tmp_path):
    write_slide(tmp_path / "slides" / "a.tif", tissue())
    write_slide(tmp_path / "slides" / "b.tif", tissue(0, 1024, 512, 512), mpp=0.5, levels=2)
    return tmp_path / "slides"


def table(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


# --- what is cut


@pytest.mark.parametrize(("tile", "mpp", "expected"), [
    (128, 0.25, {(y, x) for y in range(512, 1536, 128) for x in range(512, 1536, 128)}),
    (128, 0.5, {(y, x) for y in range(512, 1536, 256) for x in range(512, 1536, 256)}),
    (128, 1.0, {(y, x) for y in range(512, 1536, 512) for x in range(512, 1536, 512)}),
    (512, 0.25, {(512, 512), (512, 1024), (1024, 512), (1024, 1024)}),
    (1024, 0.25, set()),
])
def test_positions_cover_exactly_the_tissue(folder, tile, mpp, expected):
    (folder / "b.tif").unlink()
    if not expected:  # four tiles, each with a quarter of tissue
        with pytest.raises(DataError, match=r"none of the 1 slides .* \(no tissue\)"):
            wsi_source(folder, tile, mpp)
        assert len(wsi_source(folder, tile, mpp, tissue=0.2)) == 4
        return
    source = wsi_source(folder, tile, mpp)
    assert {tuple(p) for p in source.positions.tolist()} == expected
    assert set(source.groups) == {"a"} and len(source) == len(expected)


def test_the_level_follows_from_the_pixel_size(folder):
    "At 0.5 µm one slide is read at its second level, the other at its first."
    source = wsi_source(folder, 128, 0.5)
    for name, level in (("a", 1), ("b", 0)):
        i = source.groups.index(name)
        y, x = source.positions[i].tolist()
        with open_slide(folder / f"{name}.tif") as slide:
            direct = slide.read_region((x, y), level, (128, 128)).convert("RGB")
        assert np.array_equal(source.content(i), np.asarray(direct))
    assert source.about["mpp"] == {"a": 0.5, "b": 0.5}
    assert source.about["side_of_tile"] == {"a": 256.0, "b": 128.0}


def test_between_levels_the_finer_one_is_resized(folder):
    (folder / "b.tif").unlink()
    source = wsi_source(folder, 128, 0.75)
    y, x = source.positions[3].tolist()
    with open_slide(folder / "a.tif") as slide:
        finer = slide.read_region((x, y), 1, (192, 192)).convert("RGB")
    expected = finer.resize((128, 128), Image.Resampling.BILINEAR)
    assert np.array_equal(source.content(3), np.asarray(expected))


def test_folders_are_classes_and_splits(tmp_path):
    for i, inner in enumerate(("train/normal", "train/tumor", "test/tumor")):
        write_slide(tmp_path / "set" / inner / f"{i}.tif", tissue())
    source = wsi_source(tmp_path / "set", 256, 0.5)
    assert source.classes == ["normal", "tumor"]
    assert source.labels == [1] * 4 + [0] * 4 + [1] * 4
    assert source.split.count("test") == 4
    assert {g for g, s in zip(source.groups, source.split, strict=True) if s == "test"} == {
        "test/tumor/2"}


def test_links_to_slides_and_to_folders_of_them_are_followed(folder, tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "scans").symlink_to(folder)
    (tmp_path / "project" / "gone.svs").symlink_to(tmp_path / "nowhere")
    found = find_slides(tmp_path / "project")
    assert list(found) == [f"scans/{name}" for name in find_slides(folder)]


def test_tiles_of_several_sizes_make_one_set(folder):
    "Every size is cut as alone, its name has the size, and a slide stays in its group."
    source = wsi_source(folder, [128, 256, 512], 0.5)
    alone = {size: wsi_source(folder, size, 0.5) for size in (128, 256)}
    assert len(source) == sum(map(len, alone.values())) + 1  # one of 512, of slide b
    for size, one in alone.items():
        for i, key in enumerate(one.keys):
            at = source.keys.index(key.replace("/", f"/t{size:04}/"))
            assert source.positions[at].tolist() == one.positions[i].tolist()
            assert np.array_equal(source.content(at), one.content(i))
            assert source.groups[at] == one.groups[i] == key.split("/")[0]
    assert [k for k in source.keys if "/t0512/" in k] == ["b/t0512/y000000-x001024"]
    assert source.skipped == (("a/t0512", "no tissue"),)
    assert source.about["tile"] == [128, 256, 512] and source.about["mpp"]["b/t0512"] == 0.5
    images = open_dataset(source, image_size=64)  # as large as no tile is in its slide
    [large] = [i for i, key in enumerate(images.keys) if "/t0512/" in key]
    inside = [i for i, key in enumerate(images.keys) if key.startswith("b/") and i != large
              and images.positions[i, 0] < 512 and 1024 <= images.positions[i, 1] < 1536]
    assert len(inside) > 4 and np.flatnonzero(images.overlaps()[large]).tolist() == inside
    of_a_size = [i for i, key in enumerate(images.keys) if "/t0128/" in key]
    assert not images.select(of_a_size).overlaps().any()


def test_a_slide_and_a_patient_stay_on_one_side_of_a_split(tmp_path):
    for patient, node in ((1, 0), (1, 1), (2, 0), (3, 0), (4, 0)):
        write_slide(tmp_path / "set" / f"patient_{patient:03}_node_{node}.tif", tissue())
    options = dict(image_size=32, tile=[128, 256], mpp=0.5, val_fraction=0.4)
    for pattern, width in (("", 18), (r"patient_\d+", 11)):
        sides = {}
        ds = open_dataset(f"wsi:{tmp_path / 'set'}", group_by=pattern, **options)
        for key, side in zip(ds.keys, ds.split, strict=True):
            sides.setdefault(key[:width], set()).add(side)
        assert len(ds) == 5 * (16 + 4) and ds.image_size == (32, 32)
        assert all(len(one) == 1 for one in sides.values())
        assert set().union(*sides.values()) == {"train", "val"}


def test_so_many_tiles_of_each_size_from_a_slide(folder):
    "Drawn by the seed; a slide that comes later changes nothing of those that were there."
    every = wsi_source(folder, [64, 128], 0.5)
    some = wsi_source(folder, [64, 128], 0.5, tiles_per_slide=10)
    counts = {head: sum(k.startswith(head) for k in some.keys) for head in
              ("a/t0064", "a/t0128", "b/t0064", "b/t0128")}
    assert counts == {"a/t0064": 10, "a/t0128": 10, "b/t0064": 10, "b/t0128": 10}
    assert set(some.keys) < set(every.keys)
    at = some.keys.index(next(k for k in some.keys if k.startswith("b/t0064")))
    assert np.array_equal(some.content(at), every.content(every.keys.index(some.keys[at])))
    assert wsi_source(folder, [64, 128], 0.5, tiles_per_slide=10, seed=1).keys != some.keys
    write_slide(folder / "0.tif", tissue())
    later = wsi_source(folder, [64, 128], 0.5, tiles_per_slide=10)
    assert [k for k in later.keys if not k.startswith("0/")] == some.keys


def test_what_no_size_can_be_cut_from_is_named_once(folder):
    (folder / "c.svs").write_bytes(b"dear diary")
    source = wsi_source(folder, [128, 4096], 0.25)
    assert all("/t0128/" in key for key in source.keys)  # though no other size is there
    small = "smaller than a tile of 4096 pixels at 0.25 µm/px"
    coarse = "0.5 µm/px, coarser than the 0.25 that are wanted"
    assert source.skipped == (("a/t4096", small), ("b", coarse), ("c", "not a whole-slide image"))


def test_threads_read_the_same(folder):
    source = wsi_source(folder, 128, 0.5)
    alone = [source.content(i) for i in range(len(source))]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(source.content, range(len(source))))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    images = decode_source(source, (3, 128, 128))
    assert np.array_equal(images.images[7], alone[7].transpose(2, 0, 1))


# --- slides that cannot be used


def test_a_damaged_slide_is_left_out_and_named(folder, tmp_path):
    content = (folder / "b.tif").read_bytes()
    (folder / "c.tif").write_bytes(content[: len(content) // 2])
    (folder / "d.svs").write_bytes(b"dear diary")
    Image.new("RGB", (64, 64)).save(folder / "e.tif")
    source = wsi_source(folder, 128, 0.5)
    assert set(source.groups) == {"a", "b"}
    left_out = dict(source.skipped)
    assert left_out.keys() == {"c", "d", "e"} and left_out["d"] == "not a whole-slide image"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = write_tiles(folder, tmp_path / "out", 128, 0.5)
    assert sorted(str(w.message)[:16] for w in caught) == [f"left out slide {x}" for x in "cde"]
    assert {row["slide"] for row in table(path)} == {"a", "b"}


def test_damage_that_shows_later(folder, tmp_path):
    "The coarse level is sound, so the slide is planned; its tiles are not."
    with tifffile.TiffFile(folder / "a.tif") as f:
        spots = [(o, n) for page in f.pages[:2]
                 for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    content = bytearray((folder / "a.tif").read_bytes())
    for offset, count in spots:
        content[offset : offset + count] = b"\xff" * count
    (folder / "a.tif").write_bytes(content)
    source = wsi_source(folder, 128, 0.5)
    images = decode_source(source, (3, 128, 128))
    assert len(images.indices) == source.groups.count("b")
    assert all(key.startswith("a/") and why.startswith("damaged") for key, why in images.skipped)
    with pytest.warns(UserWarning, match=r"left out slide a \(damaged"):
        path = write_tiles(folder, tmp_path / "out", 128, 0.5)
    assert {row["slide"] for row in table(path)} == {"b"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == ["b"]


def test_a_slide_without_a_pixel_size(tmp_path):
    write_slide(tmp_path / "set" / "plain.tif", tissue(), mpp=None)
    with pytest.raises(DataError, match=r"^plain does not say how many µm .*: give `mpp_of_slide`"):
        wsi_source(tmp_path / "set", 128)
    source = wsi_source(tmp_path / "set", 128, 0.5, mpp_of_slide=0.25)
    assert len(source) == 16


def test_what_the_slide_says_goes_first(folder):
    with open_slide(folder / "a.tif") as slide:
        assert slide_mpp(slide, "a", 7.0) == pytest.approx(0.25)


def test_a_slide_that_is_too_coarse_or_small(folder):
    source = wsi_source(folder, 128, 0.25)
    assert source.skipped == (("b", "0.5 µm/px, coarser than the 0.25 that are wanted"),)
    with pytest.raises(DataError, match=r"none of the 2 slides .*smaller than a tile of 4096"):
        wsi_source(folder, 4096, 1.0)


def test_refusals(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no slides; known extensions are \.svs"):
        wsi_source(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        wsi_source(tmp_path / "gone")
    page = r"download slides of CAMELYON16 .*https://gigadb.org/dataset/100439 and put it there"
    with pytest.raises(FileNotFoundError, match=page):
        wsi_source(tmp_path / "camelyon16")
    for name, value in (("tile", 8), ("tile", 224.0), ("mpp", 0), ("tissue", 0), ("tissue", 1.5),
                        ("mpp_of_slide", -1), ("tile", []), ("tile", [224, 224]),
                        ("tile", [224, 8]), ("tiles_per_slide", -1)):
        with pytest.raises(ParameterError, match=f"parameter `{name}` must"):
            wsi_source(folder, **{name: value})


def test_without_openslide(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(ImportError, match=r"needs openslide: pip install 'synth_nb\[wsi\]'"):
        wsi_source(folder)


# --- tiles as files


def test_files_hold_the_pixels_and_the_table_their_places(folder, tmp_path, capsys):
    source = wsi_source(folder, 96, 0.6)
    path = write_tiles(folder, tmp_path / "out", 96, 0.6)
    rows = table(path)
    assert len(rows) == len(source)
    for i, row in enumerate(rows):
        assert [int(row["y"]), int(row["x"])] == source.positions[i].tolist()
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / row["file"])),
                              source.content(i))
        assert 0.5 <= float(row["tissue"]) <= 1 and row["tile"] == "96"
        assert float(row["mpp"]) == pytest.approx(0.6, rel=0.006)
    assert "slide 1 of 2, a:" in capsys.readouterr().out
    assert len(folder_source(tmp_path / "out")) == len(rows)


killed = """
    import os, signal, sys
    from PIL import Image
    from synth_nb.data.readers.slides import write_tiles
    save, done = Image.Image.save, []
    def counted(image, path, **options):
        done.append(path)
        if len(done) == 30:  # in the second slide
            os.kill(os.getpid(), signal.SIGKILL)
        save(image, path, **options)
    Image.Image.save = counted
    write_tiles(sys.argv[1], sys.argv[2], 128, 0.25, workers=1)
"""


def test_goes_on_after_a_kill(tmp_path):
    for name in "ab":
        write_slide(tmp_path / "set" / f"{name}.tif", tissue(512, 512, 512, 768))
    out = tmp_path / "out"
    command = [sys.executable, "-c", textwrap.dedent(killed), str(tmp_path / "set"), str(out)]
    assert subprocess.run(command, env=dict(os.environ)).returncode == -signal.SIGKILL
    assert (out / "a").is_dir() and not (out / "b").exists() and not (out / "tiles.csv").exists()
    assert len(list(out.glob(".b-*/new/*.png"))) > 0
    stamp = max(p.stat().st_mtime_ns for p in (out / "a").iterdir())
    time.sleep(0.01)
    rows = table(write_tiles(tmp_path / "set", out, 128, 0.25))
    assert max(p.stat().st_mtime_ns for p in (out / "a").iterdir()) == stamp
    assert [row["slide"] for row in rows] == ["a"] * 24 + ["b"] * 24
    assert not list(out.glob(".b-*"))
    for row in rows:
        Image.open(out / row["file"]).load()


def test_other_settings_are_refused(folder, tmp_path):
    write_tiles(folder, tmp_path / "out", 128, 0.5)
    with pytest.raises(ParameterError, match=r"tiles with tile=128, mpp=0\.5.*give another `out`"):
        write_tiles(folder, tmp_path / "out", 256, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_tiles(folder, tmp_path / "out", 128, 0.5)


def test_tiles_of_two_scales_do_not_come_together(folder, tmp_path):
    write_tiles(folder, tmp_path / "out", 128, 0.5)  # these slides say their own
    write_slide(folder / "c.tif", tissue(), mpp=None)
    with pytest.raises(DataError, match="give `mpp_of_slide`"):
        write_tiles(folder, tmp_path / "out", 128, 0.5)
    write_tiles(folder, tmp_path / "out", 128, 0.5, mpp_of_slide=0.25)
    with pytest.raises(ParameterError, match=r"mpp_of_slide=0\.25, not .*mpp_of_slide=0\.5"):
        write_tiles(folder, tmp_path / "out", 128, 0.5, mpp_of_slide=0.5)
    assert len(table(write_tiles(folder, tmp_path / "out", 128, 0.5))) == 16 + 16 + 16


def test_one_process_at_a_time(folder, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock", is_singleton=False):
        with pytest.raises(RuntimeError, match="another process is writing"):
            write_tiles(folder, tmp_path / "out", 128, 0.5)


def test_nothing_to_write(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.svs").write_bytes(b"dear diary")
    with pytest.raises(DataError, match=r"none of the 1 slides .* a \(not a whole-slide image\)"):
        write_tiles(tmp_path / "set", tmp_path / "out")
    assert not (tmp_path / "out" / "tiles.csv").exists()
