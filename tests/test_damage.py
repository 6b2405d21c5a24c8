"Some hundreds of damaged files: each is read, skipped with a reason, or refused in one sentence."

import io
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from synth_nb.data import DataError, open_dataset

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 20, 3), dtype=np.uint8)


def encoded(kind, **options):
    "An image file's bytes."
    Image.fromarray(PIXELS).save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def several_pages():
    pages = [Image.fromarray(PIXELS[..., i]) for i in range(3)]
    pages[0].save(file := io.BytesIO(), "TIFF", save_all=True, append_images=pages[1:])
    return file.getvalue()


def array(save, *args, **kwargs):
    save(file := io.BytesIO(), *args, **kwargs)
    return file.getvalue()


def zipped():
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(4):
            archive.writestr(f"ab{i % 2}/{i}.png", encoded("PNG"))
        archive.writestr("dataset.json", '{"labels": null}')
    return file.getvalue()


def tarred(mode):
    with tarfile.open(fileobj=(file := io.BytesIO()), mode=mode) as archive:
        for i in range(4):
            content = encoded("PNG")
            entry = tarfile.TarInfo(f"a/{i}.png")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


INTACT = {
    "png": encoded("PNG"),
    "jpg": encoded("JPEG"),
    "webp": encoded("WEBP"),
    "bmp": encoded("BMP"),
    "gif": encoded("GIF"),
    "tif": several_pages(),
    "npy": array(np.save, np.stack([PIXELS] * 3)),
    "npz": array(np.savez_compressed, images=np.stack([PIXELS] * 3), labels=np.arange(3)),
    "zip": zipped(),
    "tar": tarred("w"),
    "tar.gz": tarred("w:gz"),
}


def damaged(content, draw):
    "Cut off, overwritten in places, or with a piece missing or doubled."
    data, kind = bytearray(content), draw.integers(4)
    at = int(draw.integers(len(data)))
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        for position in draw.integers(0, len(data), 1 + int(draw.integers(20))):
            data[position] = draw.integers(256)
        return bytes(data)
    width = int(draw.integers(1, 64))
    return bytes(data[:at] + data[at + width :] if kind == 2 else data[: at + width] + data[at:])


@pytest.mark.parametrize("extension", INTACT)
def test_damaged_files_are_refused_in_one_sentence(tmp_path, extension):
    for number in range(40):
        content = damaged(INTACT[extension], np.random.default_rng([len(extension), number]))
        path = tmp_path / f"damaged {number}.{extension}"
        path.write_bytes(content)
        alone = extension in ("zip", "tar", "tar.gz", "npy", "npz")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ds = open_dataset(path if alone else tmp_path, 16, val_fraction=0)
                assert ds.images.shape[1:] == (3, 16, 16)
            except (DataError, OSError) as e:
                assert "\n" not in str(e) and (path.name in str(e) or "images in" in str(e)), e
        path.unlink()


def test_damaged_files_among_whole_ones_are_listed(tmp_path):
    draw = np.random.default_rng(1)
    for i in range(60):
        (tmp_path / f"whole {i}.png").write_bytes(encoded("PNG"))
    for i, extension in enumerate(["png", "jpg", "webp", "bmp", "gif", "tif", "npy", "npz"] * 5):
        (tmp_path / f"damaged {i}.{extension}").write_bytes(damaged(INTACT[extension], draw))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = open_dataset(tmp_path, 16)
    keys = {key.split("#")[0] for key in ds.keys}
    assert {f"whole {i}.png" for i in range(60)} <= keys
    listed = {key.split("#")[0] for key, why in ds.skipped if why and "\n" not in why}
    assert keys | listed == {p.name for p in tmp_path.iterdir()}
    assert len(listed) > 5
