"Hostile files: each is listed with its reason, or refused in one sentence."

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synth_nb.core.runs import load_model, read_manifest
from synth_nb.data import DataError, open_dataset
from synth_nb.data.readers import budgets, slides, stacks
from synth_nb.segmentation import fit

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 20, 3), dtype=np.uint8)


def encoded(kind="PNG", pixels=PIXELS, **options):
    Image.fromarray(pixels).save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def fill(folder, n=4, **others):
    "A folder of sound images and what else is to lie in it."
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (folder / f"whole {i}.png").write_bytes(encoded(pixels=np.roll(PIXELS, i, 0)))
    for name, content in others.items():
        (folder / name).write_bytes(content)
    return folder


def opened(path, **options):
    "A data set, without what it warns of."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_dataset(path, 16, val_fraction=0, **options)


def header(shape, descr="|u1", cut=None):
    "A .npy file with such a shape in its header, and 64 bytes of numbers."
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text[:cut] + bytes(64 * (cut is None))


def tiff(pages, data=bytes(24 * 20), data_at=None, big=False, step=0, next_at=None):
    """A grey TIFF of many pages; all share one strip. `step`: bytes from one directory to the next.

    `data_at` and `next_at` stand in for the offset of the strip, and of what follows the last page.
    """
    head = b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) if big else b"II*\0" + struct.pack("<I", 8)
    count, entry, link = ("<Q", "<HHQQ", "<Q") if big else ("<H", "<HHII", "<I")
    tags = 8
    size = struct.calcsize(count) + tags * struct.calcsize(entry) + struct.calcsize(link)
    step, body = step or size, b""
    strip = len(head) + pages * step if data_at is None else data_at
    for page in range(pages):
        rows = ((256, 20), (257, 24), (258, 8), (259, 1), (262, 1), (273, strip), (278, 24),
                (279, len(data)))
        after = len(head) + (page + 1) * step if page < pages - 1 else next_at or 0
        entries = b"".join(struct.pack(entry, tag, 4 if tag != 273 or not big else 16, 1, value)
                           for tag, value in rows)
        body += (struct.pack(count, tags) + entries + struct.pack(link, after)).ljust(step, b"\0")
    return head + body + data


def dicom(frames=1, rows=16, vr=b"OW"):
    "A small DICOM file, written by hand."
    def item(group, element, kind, value):
        value += b" " * (len(value) % 2)
        if kind in (b"OB", b"OW", b"SQ", b"UN"):
            return struct.pack("<HH", group, element) + kind + b"\0\0" + struct.pack(
                "<I", len(value)) + value
        return struct.pack("<HH", group, element) + kind + struct.pack("<H", len(value)) + value

    short = struct.Struct("<H").pack
    meta = item(2, 0x10, b"UI", b"1.2.840.10008.1.2.1")
    body = item(8, 0x16, b"UI", b"1.2.840.10008.5.1.4.1.1.7") + item(0x28, 2, b"US", short(1))
    body += item(0x28, 4, b"CS", b"MONOCHROME2") + item(0x28, 8, b"IS", str(frames).encode())
    sides = (0x10, rows), (0x11, 16)
    for element, value in (*sides, (0x100, 8), (0x101, 8), (0x102, 7), (0x103, 0)):
        body += item(0x28, element, b"US", short(value))
    body += item(0x7FE0, 0x10, vr, bytes(range(256)))
    return bytes(128) + b"DICM" + item(2, 0, b"UL", struct.pack("<I", len(meta))) + meta + body


DAMAGED = {
    "BigTIFF, strip beyond 2^63": ("bad.tif", tiff(1, big=True, data_at=2**63 + 8)),
    "BigTIFF, page beyond 2^63": ("bad.tif", tiff(2, big=True, next_at=2**63 + 8)),
    "BigTIFF, directory beyond 2^63": (
        "bad.tif", b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**63 + 8)),
    ".npy, header cut": ("bad.npy", header("(4, 16, 16)", cut=-9)),
    ".npy, shape 2^70": ("bad.npy", header(f"(4, {2**70}, 16)")),
    ".npy, product of the shape 2^64": ("bad.npy", header(f"({2**32}, {2**16}, {2**16})")),
    ".npy, negative shape": ("bad.npy", header("(-4, 16, 16)")),
    ".npy, deep header": ("bad.npy", header("(" * 3000 + ")" * 3000)),
    ".npy, no numbers": ("bad.npy", header("(1, 8, 8)", descr="|V1")),
    "DICOM, odd value representation": ("bad.dcm", dicom(vr=b"QQ")),
    "DICOM, frames that are no number": ("bad.dcm", dicom(frames="many")),
    "DICOM, negative number of frames": ("bad.dcm", dicom(frames=-3)),
    "TIFF, a hundred directories of one strip": ("bad.tif", tiff(100, data=bytes(2**20))),
    "TIFF, a hundred directories in one another": ("bad.tif", tiff(100, step=12)),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_listed_and_the_others_are_read(tmp_path, case):
    name, content = DAMAGED[case]
    ds = opened(fill(tmp_path / "in", **{name: content}))
    assert len(ds) == 4, ds.keys
    [(key, why)] = {(key.split("#")[0], why) for key, why in ds.skipped}
    assert key == name and why and "\n" not in why and len(why) < 200


def test_memory_that_runs_out_is_one_file_s_fault(tmp_path, monkeypatch):
    def greedy(content, *options):
        if len(content) == 77:
            raise MemoryError
        return opens(content, *options)

    opens = sources_module().open_image
    monkeypatch.setattr(sources_module(), "open_image", greedy)
    ds = opened(fill(tmp_path / "in", **{"bad.png": bytes(77)}))
    assert [key for key, _ in ds.skipped] == ["bad.png"] and "memory" in ds.skipped[0][1]


def sources_module():
    from synth_nb.data.readers import sources

    return sources


METADATA = {
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep value": '{"file_name": "whole 0.png", "mask_file_name": ' + "[" * 900 + "]" * 900 + "}",
    "number as a name": '{"file_name": 5, "mask_file_name": "m.png"}',
    "number as a mask": '{"file_name": "whole 0.png", "mask_file_name": 5}',
    "list as a name": '{"file_name": ["whole 0.png"], "mask_file_name": "m.png"}',
    "no object": "3",
    "number of 5000 digits": '{"file_name": "whole 0.png", "mask_file_name": ' + "9" * 5000 + "}",
    "parent": '{"file_name": "whole 0.png", "mask_file_name": "../secret.png"}',
    "parent in the middle": '{"file_name": "whole 0.png", "mask_file_name": "a/../../secret.png"}',
    "absolute": '{"file_name": "whole 0.png", "mask_file_name": "SECRET"}',
    "image of a parent": '{"file_name": "../secret.png", "mask_file_name": "whole 1.png"}',
}


@pytest.mark.parametrize("case", METADATA)
def test_a_table_of_masks_that_is_none_is_refused(tmp_path, case):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(pixels=np.where(PIXELS[..., 0] > 99, 255, 0).astype(np.uint8)))
    text = METADATA[case].replace("SECRET", str(secret))
    rows = "\n".join(json.dumps(dict(file_name=f"whole {i}.png", mask_file_name="whole 0.png"))
                     for i in range(1, 4))
    fill(tmp_path / "in", **{"metadata.jsonl": f"{text}\n{rows}\n".encode()})
    with pytest.raises(DataError, match=r"metadata\.jsonl") as error:
        opened(tmp_path / "in")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def zipped(members):
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name or "n", content)
            archive.filelist[-1].filename = name
    return file.getvalue()


def test_a_zip_whose_mask_is_not_there_lists_the_image(tmp_path):
    mask = encoded(pixels=np.where(PIXELS[..., 0] > 99, 255, 0).astype(np.uint8))
    rows = [dict(file_name=f"{i}.png", mask_file_name="m.png" if i else "gone.png")
            for i in range(4)]
    members = {f"{i}.png": encoded(pixels=np.roll(PIXELS, i, 0)) for i in range(4)}
    table = "\n".join(map(json.dumps, rows))
    (tmp_path / "a.zip").write_bytes(zipped(members | {"m.png": mask, "metadata.jsonl": table}))
    ds = opened(tmp_path / "a.zip")
    assert ds.skipped == [("0.png", "its mask gone.png is not there")] and len(ds) == 3


def nameless(kind):
    "An archive with a member that has no name, or one that is longer than any file's."
    name = "" if kind == "none" else "a" * 300 + ".png"
    return {name: encoded(), **{f"{i}.png": encoded(pixels=np.roll(PIXELS, i, 0))
                                for i in range(4)}}


@pytest.mark.parametrize("kind", ["none", "long"])
def test_a_member_without_a_name_is_listed(tmp_path, kind):
    (tmp_path / "a.zip").write_bytes(zipped(nameless(kind)))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in nameless(kind).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    for name in ("a.zip", "a.tar"):
        ds = opened(tmp_path / name)
        assert len(ds) == 4 and [why for _, why in ds.skipped] == [
            "no name" if kind == "none" else "a name of 304 bytes: a file's has at most 255"]


@pytest.mark.parametrize("shape", [(2**31, 2**31, 4), (2**32 - 1,) * 3, (2**30, 8, 8), (0, 28, 28)])
def test_idx_files_of_impossible_shapes(tmp_path, shape):
    big = b"".join(struct.pack(">I", side) for side in shape)
    (tmp_path / "emnist-letters-train-images-idx3-ubyte").write_bytes(
        bytes([0, 0, 8, len(shape)]) + big + bytes(4 * 784))
    (tmp_path / "emnist-letters-train-labels-idx1-ubyte").write_bytes(
        bytes([0, 0, 8, 1]) + struct.pack(">I", 4) + bytes([1, 2, 3, 4]))
    with pytest.raises(DataError, match=r"cut off|does not fit"):
        opened(f"emnist:{tmp_path}")


def test_names_of_five_thousand_digits(tmp_path):
    rows = "".join(f"whole {i}.png,{'9' * 5000},{'ab'[i % 2]}\n" for i in range(4))
    ds = opened(fill(tmp_path / "in", **{"labels.csv": f"{'9' * 5000},x,y\n{rows}".encode()}))
    assert len(ds) == 4


@pytest.mark.parametrize("name", ["em", "folder", "archive"])
def test_postscript_named_png_reaches_no_interpreter(tmp_path, monkeypatch, name):
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
    called = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: called.append(a))
    fill(tmp_path / "in", **{"bad.png": program})
    (tmp_path / "in.zip").write_bytes(zipped({p.name: p.read_bytes()
                                              for p in (tmp_path / "in").iterdir()}))
    source, options = dict(em=(f"em:{tmp_path / 'in'}", dict(chunk=16)),
                           folder=(tmp_path / "in", {}), archive=(tmp_path / "in.zip", {}))[name]
    ds = opened(source, **options)
    assert not called and "not an image" in dict(ds.skipped).values()


def test_a_cut_section_is_decoded_once(tmp_path, monkeypatch):
    from synth_nb.data.readers import microscopy

    folder = fill(tmp_path / "in", n=0)
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (128, 128), dtype=np.uint8)
        content = encoded(pixels=pixels)
        (folder / f"{i}.png").write_bytes(content[:9000] if i == 1 else content)
    decoded = []
    convert = microscopy.grey_pixels
    monkeypatch.setattr(microscopy, "grey_pixels", lambda image, **k: (
        decoded.append(image.filename), convert(image, **k))[1])
    ds = opened(f"em:{folder}", chunk=16, gap=0)
    assert len(ds.skipped) == 64 and sum("1.png" in name for name in decoded) == 1, len(decoded)


def test_pipes_devices_and_links_in_a_folder(tmp_path):
    folder = fill(tmp_path / "in", n=12)
    for name in ("pipe", "7", "labels.csv", "metadata.csv", "a.npy", "a.tif", "a.dcm"):
        os.mkfifo(folder / name)
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "up").symlink_to(tmp_path)
    (folder / "circle").symlink_to(folder)
    (tmp_path / "other.png").write_bytes(encoded())
    (folder / ("x" * 251 + ".png")).write_bytes(encoded(pixels=PIXELS[::-1]))
    try:
        with limited(20):
            ds = opened(folder)
    except KeyboardInterrupt as hung:
        pytest.fail(str(hung))
    assert len(ds) == 13 and {"zero.png", "a.npy", "a.tif", "a.dcm"} <= {*dict(ds.skipped)}
    for name in ("metadata.jsonl", "dataset.json"):  # these decide what an image is
        os.mkfifo(folder / name)
        with limited(20), pytest.raises(DataError, match="cannot be read: not a file"):
            opened(folder)
        (folder / name).unlink()


@pytest.fixture(scope="module")
def bills(tmp_path_factory):
    "What each case of bills.py took."
    folder = tmp_path_factory.mktemp("bills")
    script = [sys.executable, str(Path(__file__).with_name("bills.py")), str(folder)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=1200, check=True)
    shutil.rmtree(folder)  # half a gigabyte
    return {row["case"]: row for row in map(json.loads, done.stdout.splitlines())}


BILLS = {  # case → what is said of it, megabytes at most
    "a pickle of doubling lists": ("more than 10,000 values", 50),
    "a pickle that holds itself": ("or each other", 50),
    "a pickle with a far memo": ("puts a thing number 2,147,483,647 aside", 50),
    "a pickle of empty lists": ("more than 2,000,000 steps", 50),
    "a pickle that repeats its bytes": ("bytes are to be made of it", 50),
    "a pickle with a tensor of stride 0": ("a tensor of 805,306,368 numbers that has 1", 50),
    "exported weights of stride 0": ("declares 3,221,225,472 bytes, and has 4", 50),
    "exported weights in a zip that grows": ("it declares 838,", 50),
    "a segmenter of width 20,000": ("model is damaged: `down.0.first.weight` is", 100),
    "a segmenter of 100,000 levels": ("`widths` has 100,000 entries", 100),
    "2 GiB of labels for 4 images": ("`labels` has 2,147,483,776 bytes, more than", 100),
    "200 MiB of dataset.json": ("dataset.json has 21", 300),
    "DICOM of 100,000 frames": ("a.dcm: declares 12,800,000 bytes, and has", 100),
    "DICOM of 2^31 frames": ("a.dcm: 2,147,483,648 frames, where 1 to 4,194,304 are", 100),
    "a zip that grows": ("1.7 GB or more from 1.6 MB, beyond 200 to 1", 50),
    "a table in a zip that grows": ("dataset.json has 188,743,681 bytes, more than", 600),
    "an image of a terabyte": ("huge.png: too large: 1,099,511,627,776 bytes", 50),
    "an array of 10^7 pages": ("huge.npy: 10,000,000 pages, where 1 to 4,194,304 are", 100),
    "HDF5 of 10^9 pages, and one outside of its file": (
        "1,000,000,000 pages, where 1 to 4,194,304 are read; outside.h5: the array /x lies", 100),
    "a JPEG of 100,000 scans": ("huge.jpg: a JPEG of more than 100 scans", 100),
    "a PNG of 3,000,000 pieces": ("huge.png: a PNG of more than 131,072 pieces", 100),
    "88 million colours of 16 bits": ("5 read; ", 2000),
}


@pytest.mark.parametrize("case", BILLS)
def test_a_small_file_has_a_small_bill(bills, case):
    row, (words, megabytes) = bills[case], BILLS[case]
    assert words in row["said"] and "\n" not in row["said"], row["said"]
    assert row["error"] in ("", "DataError", "CheckpointError", "ValueError")
    assert row["megabytes"] < megabytes and row["seconds"] < 20, row


def test_honest_data_of_any_size_passes(tmp_path):
    budgets.check_entries(1_280_000, "members")  # ImageNet
    budgets.check_table(60 * 700_000, 700_000, "dataset.json")
    with open(tmp_path / "epfl.tif", "wb") as file:  # 2 GB and more, the pages' directories first
        size, pages, tags = 2048 * 1536, 1065, 7
        step = 2 + 12 * tags + 4
        file.write(b"II*\0" + struct.pack("<I", 8))
        for page in range(pages):
            strip = 8 + pages * step + page * size
            rows = ((256, 2048), (257, 1536), (258, 8), (259, 1), (262, 1), (273, strip),
                    (279, size))
            after = 8 + (page + 1) * step if page < pages - 1 else 0
            file.write(struct.pack("<H", tags) + b"".join(
                struct.pack("<HHII", tag, 4, 1, value) for tag, value in rows)
                + struct.pack("<I", after))
        file.truncate(8 + pages * (step + size))
    stack = stacks.tiff_stack(tmp_path / "epfl.tif")
    assert stack.pages == pages and stack.page(pages - 1).shape == (1536, 2048)
    with open(tmp_path / "eight.npy", "wb") as file:  # GB
        shape = dict(descr="|u1", fortran_order=False, shape=(2_000_000, 64, 64))
        np.lib.format.write_array_header_1_0(file, shape)
        file.truncate(file.tell() + 2_000_000 * 64 * 64)
    stack = stacks.npy_stack(tmp_path / "eight.npy")
    assert stack.pages == 2_000_000 and stack.page(1_999_999).shape == (64, 64)
    with open(tmp_path / "slide.svs", "wb") as file:
        file.truncate(50_000_000)
    slides._check_pixels((200_000, 100_000), tmp_path / "slide.svs")
    slides._check_pixels((40_000, 40_000), Path(__file__))


def test_a_slide_that_no_file_could_hold(tmp_path):
    (tmp_path / "slide.svs").write_bytes(bytes(1000))
    with pytest.raises(DataError, match=r"1000000x1000000 pixels, more than the 4,294,967,296"):
        slides._check_pixels((10**6, 10**6), tmp_path / "slide.svs")


def a_run(folder, loader="synth_nb.segmentation.fit:load", **changes):
    (model := folder / "model").mkdir(parents=True)
    fit.save(fit.Segmenter(fit.ResidualUNet(widths=(4, 8))), model)
    (folder / "manifest.json").write_text(json.dumps(dict(loader=loader) | changes))
    return model


@pytest.mark.parametrize("size", [0, 7, 8, 300, 5000])
def test_a_cut_model_is_one_of_two_errors(tmp_path, size):
    path = a_run(tmp_path / "run") / "unet.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="model") as error:
        load_model(tmp_path / "run", "cpu")
    assert "\n" not in str(error.value) and type(error.value) is ValueError


@pytest.mark.parametrize("text", [
    "", "[1]", "[" * 50_000, "{}", '{"channels": "a", "widths": 3}',
    '{"channels": 1, "widths": []}', '{"channels": -1, "widths": [4]}'])
def test_a_damaged_configuration_is_one_of_two_errors(tmp_path, text):
    (a_run(tmp_path / "run") / "segmenter.json").write_text(text)
    with pytest.raises(ValueError, match="model") as error:
        load_model(tmp_path / "run", "cpu")
    assert "\n" not in str(error.value) and type(error.value) is ValueError


@pytest.mark.parametrize("parameters", [dict(symmetry=5), dict(symmetry=[1]), dict(mode=[1]),
                                        dict(prediction_type=["v"]), dict(eval_embedders={})])
def test_odd_parameters_of_a_manifest_are_read(tmp_path, parameters):
    (tmp_path / "manifest.json").write_text(json.dumps(dict(parameters=parameters)))
    assert read_manifest(tmp_path)["parameters"]


class limited:
    "Ends what hangs."
    def __init__(self, seconds):
        self.seconds = seconds

    def __enter__(self):
        def stop(*_):
            raise KeyboardInterrupt(f"it still runs after {self.seconds} s")  # nothing catches it

        self.before = signal.signal(signal.SIGALRM, stop)
        signal.alarm(self.seconds)

    def __exit__(self, *_):
        signal.alarm(0)
        signal.signal(signal.SIGALRM, self.before)
