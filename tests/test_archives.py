"Archives: the same images as in a folder, StyleGAN's labels, and what is refused."

import io
import json
import os
import shutil
import struct
import tarfile
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synth_nb.data import DataError
from synth_nb.data.cache import decode_source
from synth_nb.data.dataset import assemble
from synth_nb.data.readers import archives as archives_module
from synth_nb.data.readers.archives import archive_source, open_archive
from synth_nb.data.readers.find import folder_source


def picture(seed, kind="png", size=16):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), {"png": "PNG", "jpg": "JPEG"}[kind])
    return file.getvalue()


def make_zip(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        for key, content in members.items():
            file.writestr(key, content)
    return path


def make_tar(path, members, kind=tarfile.REGTYPE, link="", mode="w"):
    with tarfile.open(path, mode) as file:
        for key, content in members.items():
            info = tarfile.TarInfo(key)
            info.size, info.type, info.linkname = len(content), kind, link
            file.addfile(info, io.BytesIO(content))
    return path


KEYS = [f"{split}/{kind}/{i}.png" for split in ("train", "test") for kind in ("no", "yes")
        for i in range(3)]
MEMBERS = {key: picture(i) for i, key in enumerate(KEYS)}
MAKERS = {
    "x.zip": make_zip,
    "x.tar": make_tar,
    "x.tar.gz": lambda path, members: make_tar(path, members, mode="w:gz"),
    "x.tgz": lambda path, members: make_tar(path, members, mode="w:gz"),
    "x.tar.bz2": lambda path, members: make_tar(path, members, mode="w:bz2"),
    "x.tar.xz": lambda path, members: make_tar(path, members, mode="w:xz"),
    "no extension": make_zip,
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("around", ["", "my set/", "a/b/"])
def test_an_archive_is_its_folder(tmp_path, name, around):
    for key, content in MEMBERS.items():
        (tmp_path / "set" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / key).write_bytes(content)
    path = MAKERS[name](tmp_path / name, {around + key: MEMBERS[key] for key in MEMBERS})
    datasets = [assemble(source, decode_source(source, (3, 16, 16)), 0, 0.2)
                for source in (folder_source(tmp_path / "set"), archive_source(path))]
    assert datasets[0].fingerprint == datasets[1].fingerprint
    assert datasets[1].keys == sorted(around + key for key in MEMBERS)


def test_nothing_is_extracted(tmp_path):
    for name in ("x.zip", "x.tar"):
        source = archive_source(MAKERS[name](tmp_path / name, MEMBERS))
        assert source.content(0) == MEMBERS[source.keys[0]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.tar", "x.zip"]
    assert not any(Path(os.environ["SYNTH_NB_CACHE"]).iterdir())


def test_a_compressed_tar_is_unpacked_once(tmp_path, monkeypatch):
    path = MAKERS["x.tgz"](tmp_path / "x.tgz", MEMBERS)
    archive_source(path)
    monkeypatch.setattr(archives_module, "DECOMPRESSORS", {b"\x1f\x8b": lambda _: 1 / 0})
    shutil.copy(path, tmp_path / "copy.tgz")
    assert len(archive_source(tmp_path / "copy.tgz")) == len(MEMBERS)


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
def test_many_threads(tmp_path, name):
    members = {f"{i}.png": picture(i, size=40) for i in range(50)}
    source = archive_source(MAKERS[name](tmp_path / name, members))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.content, [*range(50)] * 10))
    assert read == [members[key] for key in source.keys] * 10


def test_a_class_and_its_name(tmp_path):
    flat = archive_source(make_zip(tmp_path / "colon.zip", {"1.png": picture(1)}))
    inside = archive_source(make_zip(tmp_path / "x.zip", {"cats/1.png": picture(1)}))
    doubled = archive_source(MAKERS["x.tar.gz"](tmp_path / "colon.tar.gz", {"1.png": picture(1)}))
    assert [s.classes for s in (flat, inside, doubled)] == [["colon"], ["cats"], ["colon"]]


# --- members that are skipped


def test_what_is_listed_as_skipped(tmp_path):
    stack = [Image.new("L", (16, 16), value) for value in (1, 2, 3)]
    stack[0].save(pages := io.BytesIO(), "TIFF", save_all=True, append_images=stack[1:])
    odd = {"train/no/inner.zip": b"PK", "train/no/inner.tar.gz": b"x", "train/no/a.npy": b"x"}
    path = make_zip(tmp_path / "x.zip", MEMBERS | odd | {
        "train/no/pages.tif": pages.getvalue(), "stray.png": picture(1), "notes.txt": b"",
        "__MACOSX/train/no/._0.png": b"x"})
    images = decode_source(archive_source(path), (3, 16, 16))
    assert dict(images.skipped) == {
        **{key: "holds files itself: extract the archive" for key in odd},
        "stray.png": "outside the class or split folders",
        "train/no/pages.tif": "3 pages in one TIFF: extract the archive"}


def test_inner_links_are_skipped(tmp_path):
    with tarfile.open(make_tar(tmp_path / "x.tar", MEMBERS), "a") as file:
        for key, kind in (("train/no/s.png", tarfile.SYMTYPE), ("train/no/h.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(key)
            info.type = kind
            info.linkname = "0.png" if kind == tarfile.SYMTYPE else "train/no/0.png"
            file.addfile(info)
    assert archive_source(tmp_path / "x.tar").skipped == (
        ("train/no/h.png", "a link, which is not followed"),
        ("train/no/s.png", "a link, which is not followed"))


def test_too_large_a_member(tmp_path, monkeypatch):
    monkeypatch.setattr(archives_module, "MAX_FILE_BYTES", 2000)
    large = {"train/no/large.png": picture(0, size=64)}
    [(key, why)] = archive_source(make_zip(tmp_path / "x.zip", MEMBERS | large)).skipped
    assert key == "train/no/large.png" and why.startswith("too large")


# --- archives that are refused


def refused(path, why):
    with pytest.raises(DataError) as error:
        archive_source(path)
    assert why in str(error.value) and path.name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../up.png", "/root/up.png", "a/../../up.png", "C:/up.png",
                                  "..\\up.png"])
@pytest.mark.parametrize("archive", ["x.zip", "x.tar", "x.tgz"])
def test_a_name_that_leads_out(tmp_path, archive, name):
    refused(MAKERS[archive](tmp_path / archive, MEMBERS | {name: picture(0)}), "leads out of it")
    assert not list(tmp_path.parent.glob("up.png"))


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../x.png", "a/../../../x.png"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_that_leads_out(tmp_path, target, kind):
    make_tar(tmp_path / "x.tar", {"a/1.png": b""}, kind, target)
    refused(tmp_path / "x.tar", "which leads out of it")


def test_declared_to_grow(tmp_path):
    path = make_zip(tmp_path / "x.zip", {"1.png": picture(0)})
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\1\2")
    struct.pack_into("<I", content, at + 24, 2**32 - 2)  # size after unpacking
    path.write_bytes(content)
    refused(path, "x.zip unpacks to 4.3 GB or more")


def test_grows_more_than_declared(tmp_path):
    path = make_zip(tmp_path / "x.zip", {"1.bmp": b"\0" * 10_000_000},
                    compression=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        struct.pack_into("<I", content, content.rindex(signature) + offset, 1000)
    path.write_bytes(content)
    archive = open_archive(path)
    with pytest.raises(DataError, match="damaged: Bad CRC-32"):
        archive.read("1.bmp")
    assert archive.sizes == {"1.bmp": 1000}


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_without_a_bound(tmp_path, method):
    source = archive_source(make_zip(tmp_path / "x.zip", MEMBERS, compression=method))
    with pytest.raises(DataError, match="packed in an unusual way"):
        source.content(0)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tar.bz2", "x.tar.xz"])
def test_a_packed_tar_that_grows(tmp_path, monkeypatch, name):
    monkeypatch.setattr("synth_nb.data.readers.budgets.SAFE_SIZE", 10_000)
    refused(MAKERS[name](tmp_path / name, {"1.bmp": b"\0" * 10_000_000}), "beyond 200 to 1")
    left = Path(os.environ["SYNTH_NB_CACHE"]).rglob("*.*")
    assert not [path for path in left if path.suffix != ".lock"]


def test_no_room_to_unpack(tmp_path, monkeypatch):
    path = MAKERS["x.tgz"](tmp_path / "x.tgz", MEMBERS)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(OSError, match=r"no room to unpack .*set SYNTH_NB_CACHE"):
        archive_source(path)


def test_encrypted(tmp_path):
    path = make_zip(tmp_path / "x.zip", MEMBERS)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    refused(path, "is encrypted: extract it with its password and give the folder")


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.bz2", "x.tar.xz"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_cut_off(tmp_path, name, share):
    path = MAKERS[name](tmp_path / name, {f"{i}.png": picture(i, size=64) for i in range(8)})
    content = path.read_bytes()
    used = len(content) if name != "x.tar" else content.rstrip(b"\0").__len__()
    path.write_bytes(content[: int(used * share)])
    with pytest.raises(DataError, match=r"x\..* (is cut off or damaged|cannot be unpacked)"):
        archive_source(path)


def test_a_damaged_header_does_not_hide_the_rest(tmp_path):
    path = make_tar(tmp_path / "x.tar", MEMBERS)
    content = bytearray(path.read_bytes())
    at = content.index(KEYS[5].encode())
    content[at] ^= 255
    path.write_bytes(content)
    refused(path, "is cut off or damaged")


def test_a_damaged_member_is_skipped(tmp_path):
    path = make_zip(tmp_path / "x.zip", MEMBERS)
    content = bytearray(path.read_bytes())
    content[content.index(MEMBERS["train/no/1.png"]) + 200] ^= 255
    path.write_bytes(content)
    [(key, why)] = decode_source(archive_source(path), (3, 16, 16)).skipped
    assert key == "train/no/1.png" and why.startswith("damaged: Bad CRC-32")


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b no gzip", b"PK\3\4 no zip"])
def test_not_an_archive(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.zip (is|cannot)"):
        archive_source(tmp_path / "x.zip")


def test_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there is no archive {tmp_path}/x.zip"):
        archive_source(tmp_path / "x.zip")
    with pytest.raises(IsADirectoryError, match="is a folder, not an archive"):
        archive_source(tmp_path)
    with pytest.raises(DataError, match=r"holds no images but 1 \.txt; known extensions"):
        archive_source(make_zip(tmp_path / "x.zip", {"a.txt": b""}))


# --- StyleGAN's zip


def stylegan_zip(path, n=12, labels=True, per_folder=5, **changes):
    "As NVIDIA's dataset_tool lays it out: stored PNG, square, dataset.json last."
    names = [f"{i // per_folder:05}/img{i:08}.png" for i in range(n)]
    rows = [[name, i % 3] for i, name in enumerate(names)] if labels else None
    table = changes.get("table", lambda rows: dict(labels=rows))(rows)
    members = {name: picture(i, size=32) for i, name in enumerate(names)}
    return make_zip(path, members | {"dataset.json": json.dumps(table)})


def test_labels_of_stylegan(tmp_path):
    source = archive_source(stylegan_zip(tmp_path / "x.zip"))
    assert source.classes == ["0", "1", "2"] and source.labels == [i % 3 for i in range(12)]
    assert source.keys[11] == "00002/img00000011.png" and source.split is None
    images = decode_source(source, (3, 32, 32))
    with Image.open(io.BytesIO(picture(11, size=32))) as last:
        assert np.array_equal(images.images[11], np.asarray(last).transpose(2, 0, 1))


def test_no_labels(tmp_path):
    source = archive_source(stylegan_zip(tmp_path / "brain.zip", labels=False))
    assert source.classes == ["brain"] and len(source) == 12


def test_many_classes_are_in_the_order_of_numbers(tmp_path):
    def extended(rows):
        return dict(labels=[[name, i] for i, (name, _) in enumerate(rows)])

    source = archive_source(stylegan_zip(tmp_path / "x.zip", table=extended))
    assert source.classes == [str(i) for i in range(12)] and source.labels == list(range(12))


BAD_TABLES = {
    "missing": (lambda r: dict(labels=r[:-2]), "10 labels for 12 images, 00002/img00000010.png"),
    "extra": (lambda r: dict(labels=[*r, ["00009/img.png", 1]]), "there is no 00009/img.png"),
    "twice": (lambda r: dict(labels=[*r, r[0]]), "a name is there twice"),
    "float": (lambda r: dict(labels=[[name, 0.5] for name, _ in r]), "the label 0.5: only whole"),
    "bool": (lambda r: dict(labels=[[name, True] for name, _ in r]), "the label True: only whole"),
    "vector": (lambda r: dict(labels=[[name, [0, 1]] for name, _ in r]), "the label [0, 1]"),
    "no pair": (lambda r: dict(labels=[name for name, _ in r]), "where a name and a label belong"),
    "no list": (lambda r: dict(labels=3), "has no readable list `labels`"),
    "no labels": (lambda r: dict(names=r), "has no readable list `labels`"),
    "a list": (lambda r: r, "has no readable list `labels`"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_labels_that_do_not_fit(tmp_path, name):
    table, why = BAD_TABLES[name]
    refused(stylegan_zip(tmp_path / "x.zip", table=table), why)


def test_stylegan_zips_have_one_size(tmp_path):
    members = {f"00000/img{i:08}.png": picture(i, size=32 if i < 7 else 48) for i in range(9)}
    path = make_zip(tmp_path / "x.zip", members | {"dataset.json": json.dumps(dict(labels=None))})
    message = r"x.zip is a StyleGAN zip of two sizes, 32x32 \(.*\) and 48x48 \(.*\): write"
    with pytest.raises(DataError, match=message) as error:
        decode_source(archive_source(path), (3, 32, 32))
    assert "\n" not in str(error.value)
    folder = {f"a/{i}.png": content for i, content in enumerate(members.values())}
    found = archive_source(make_zip(tmp_path / "y.zip", folder))  # another archive may have any
    assert len(decode_source(found, (3, 8, 8)).indices) == 9


def test_warnings_of_zipfile_stay_inside(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(archive_source(stylegan_zip(tmp_path / "x.zip"))) == 12
