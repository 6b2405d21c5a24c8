"Files that hold many images: what is read, what is refused, and what stays together."

import struct
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from synth_nb.data import DataError, open_dataset
from synth_nb.data.readers.dicom import dicom_stack
from synth_nb.data.readers.find import folder_source
from synth_nb.data.readers.stacks import npz_stack, tiff_stack


def noise(seed, *shape, kind=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(kind).max + 1, shape, dtype=kind)


def save_tiff(path, pages, **options):
    first, *rest = (page if isinstance(page, Image.Image) else Image.fromarray(page)
                    for page in pages)
    first.save(path, save_all=True, append_images=rest, **options)
    return path


def opened(folder, **options):
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        ds = open_dataset(folder, **dict(image_size=16) | options)
    return ds, [str(w.message) for w in messages]


def splits(ds):
    return dict(zip(ds.keys, ds.split, strict=True))


# --- TIFF


def test_pages_are_images_of_one_group(tmp_path):
    save_tiff(tmp_path / "b.tif", noise(0, 12, 16, 16))
    save_tiff(tmp_path / "c.TIFF", noise(1, 2, 16, 16, 3))
    save_tiff(tmp_path / "a.tif", noise(2, 1, 16, 16))
    ds, messages = opened(tmp_path, channels=1, val_fraction=0.4)
    assert ds.keys[:3] == ["a.tif", "b.tif#000", "b.tif#001"] and not messages
    assert ds.keys[-1] == "c.TIFF#001" and len(ds) == 15
    assert np.array_equal(ds.images[1:13, 0], noise(0, 12, 16, 16))
    assert len({split for key, split in splits(ds).items() if key.startswith("b.tif")}) == 1


def test_a_single_page_keeps_its_place_in_the_split(tmp_path):
    for i in range(6):
        save_tiff(tmp_path / f"{i}.tif", noise(i, 1, 16, 16))
    before = splits(opened(tmp_path)[0])
    assert folder_source(tmp_path).groups is None
    save_tiff(tmp_path / "volume.tif", noise(9, 3, 16, 16))
    after = splits(opened(tmp_path)[0])
    assert {key: after[key] for key in before} == before


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_modes_of_pages(tmp_path, mode, compression):
    if mode == "I;16":
        pages = [Image.fromarray(noise(i, 24, 20, kind=np.uint16)) for i in range(3)]
    else:
        pages = [Image.fromarray(noise(i, 24, 20, 3)).convert(mode) for i in range(3)]
    stack = tiff_stack(save_tiff(tmp_path / "x.tif", pages, compression=compression))
    save_tiff(tmp_path / "alone.tif", pages[2:], compression=compression)
    alone = opened(tmp_path, image_size="24x20")[0]
    page = stack.page(2)
    page = page if page.ndim == 3 else np.repeat(page[..., None], 3, axis=2)
    assert np.array_equal(page, alone.images[0].transpose(1, 2, 0))


def test_big_endian(tmp_path):
    pixels = noise(0, 2, 16, 16, kind=np.uint16)
    content, data = b"MM\0*" + struct.pack(">I", 8), b""
    for i in range(2):  # two directories of eight entries, then the pixels
        tags = [(256, 3, 16), (257, 3, 16), (258, 3, 16), (259, 3, 1), (262, 3, 1),
                (273, 4, 8 + 2 * 102 + 512 * i), (278, 3, 16), (279, 4, 512)]
        content += struct.pack(">H", 8)
        for tag, kind, value in tags:
            content += struct.pack(">HHI", tag, kind, 1)
            content += struct.pack(">I", value << 16 if kind == 3 else value)
        content += struct.pack(">I", 8 + 102 if i == 0 else 0)
        data += pixels[i].astype(">u2").tobytes()
    (tmp_path / "x.tif").write_bytes(content + data)
    stack = tiff_stack(tmp_path / "x.tif")
    expected = (pixels[1].astype(int) + 128) // 257
    assert stack.pages == 2 and np.array_equal(stack.page(1), expected)


def test_pages_in_a_circle(tmp_path):
    path = save_tiff(tmp_path / "x.tif", noise(0, 2, 16, 16))
    content = bytearray(path.read_bytes())
    first = struct.unpack_from("<I", content, 4)[0]
    n = struct.unpack_from("<H", content, first)[0]
    struct.pack_into("<I", content, first + 2 + 12 * n, first)
    path.write_bytes(content)
    Image.fromarray(noise(1, 16, 16)).save(tmp_path / "good.png")
    ds, _ = opened(tmp_path)
    assert ds.skipped == [("x.tif", "damaged: its pages run in a circle")]


def test_a_pyramid_is_one_image(tmp_path):
    small = Image.fromarray(noise(1, 8, 8))
    small.encoderinfo = dict(tiffinfo={254: 1})
    save_tiff(tmp_path / "x.tif", [noise(0, 16, 16), small])
    assert folder_source(tmp_path).keys == ["x.tif"]


def test_one_bad_page(tmp_path):
    path = save_tiff(tmp_path / "x.tif", [noise(0, 16, 16), noise(1, 4, 4), noise(2, 16, 16)])
    ds, messages = opened(tmp_path)
    assert ds.skipped == [("x.tif#001", "too small: 4x4 pixels")] and len(ds) == 2 and messages
    assert path.is_file()


def test_pages_from_many_threads(tmp_path):
    pages = noise(0, 40, 32, 32)
    stack = tiff_stack(save_tiff(tmp_path / "x.tif", pages, compression="tiff_lzw"))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(stack.page, [*range(40)] * 5))
    assert np.array_equal(np.stack(read), np.concatenate([pages] * 5))


def test_misnamed_png_is_still_read(tmp_path):
    Image.fromarray(noise(0, 16, 16)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.tif")
    assert np.array_equal(opened(tmp_path, channels=1)[0].images[0, 0], noise(0, 16, 16))


# --- arrays


BAD_ARRAYS = {
    "object": (np.array([{}, []], object), "Python objects"),
    "int": (np.zeros((2, 16, 16), int), "int64 numbers: save them as uint8"),
    "float": (np.full((2, 16, 16), 254.5), "fractions from 254.5 to 254.5: scale them to 0 … 1"),
    "large": (np.full((2, 16, 16), 256.0), "fractions from 256 to 256: scale them to 0 … 1"),
    "nan": (np.full((2, 16, 16), np.nan), "scale them to 0 … 1"),
    "complex": (np.zeros((2, 16, 16), complex), "complex128 numbers"),
    "none": (np.zeros((0, 16, 16), np.uint8), "an array of shape (0, 16, 16)"),
    "four": (np.zeros((2, 16, 16, 4), np.uint8), "an array of shape (2, 16, 16, 4)"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_array_that_cannot_be_used(tmp_path, name):
    array, why = BAD_ARRAYS[name]
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=r"none of the 1 images .* the first is bad\.npy \("):
        open_dataset(tmp_path)
    np.save(tmp_path / "good.npy", noise(0, 3, 16, 16))
    ds, _ = opened(tmp_path)
    assert len(ds) == 3 and ds.skipped[0][0] == "bad.npy" and why in ds.skipped[0][1]


def test_a_row_of_numbers_is_no_image(tmp_path):
    np.save(tmp_path / "bad.npy", np.zeros(99, np.uint8))
    np.save(tmp_path / "good.npy", noise(0, 3, 16, 16))
    with pytest.warns(UserWarning, match=r"1 file is not read: 1 \.npy"):
        assert len(open_dataset(tmp_path)) == 3


def test_a_late_fraction_out_of_range_refuses_all(tmp_path):
    array = np.zeros((600, 64, 64), np.float32)  # more than one block
    array[-1, -1, -1] = 1.5
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DataError, match=r"fractions from 0 to 1\.5"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("damage", [lambda c: c[:-10], lambda c: c[:60], lambda c: b"", lambda c:
                                    b"no array"])
def test_damaged_array(tmp_path, damage):
    np.save(tmp_path / "bad.npy", noise(0, 3, 16, 16))
    (tmp_path / "bad.npy").write_bytes(damage((tmp_path / "bad.npy").read_bytes()))
    Image.fromarray(noise(1, 16, 16)).save(tmp_path / "good.png")
    [(key, why)] = opened(tmp_path)[0].skipped
    assert key == "bad.npy" and why in ("truncated", "empty file", "not an array of NumPy")


def test_labels_of_an_array_are_classes(tmp_path):
    labels = [10, 9, 10, 2, 9, 9, 2, 10]
    np.savez(tmp_path / "x.npz", images=noise(0, 8, 16, 16), labels=np.array(labels)[:, None])
    ds, messages = opened(tmp_path)
    assert ds.classes == ["2", "9", "10"] and not messages
    assert [ds.classes[i] for i in ds.labels] == [str(label) for label in labels]
    assert ds.groups == ds.hashes and set(ds.split) == {"train", "val"}


def test_groups_of_an_array_stay_together(tmp_path):
    patients = np.repeat(["ann", "bob", "cid", "dee"], 5)
    np.savez(tmp_path / "x.npz", images=noise(0, 20, 16, 16), groups=patients)
    ds, _ = opened(tmp_path)
    assert set(ds.split) == {"train", "val"}
    assert len(set(zip(ds.groups, ds.split, strict=True))) == 4


def test_arrays_beside_class_and_split_folders(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.fromarray(noise(0, 16, 16)).save(tmp_path / split / "cat" / "1.png")
        np.savez(tmp_path / split / "more.npz", images=noise(1, 2, 16, 16), labels=["cat", "dog"])
    np.savez(tmp_path / "lost.npz", images=noise(1, 1, 16, 16), labels=["dog"])
    ds, _ = opened(tmp_path)
    assert ds.classes == ["cat", "dog"]
    assert [ds.classes[i] for i in ds.labels] == ["cat", "cat", "dog"] * 2
    assert ds.split == ["test"] * 3 + ["train"] * 3
    assert ds.skipped == [("lost.npz", "outside the class or split folders")]


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        (dict(images=noise(0, 5, 16, 16), labels=np.arange(4)), "4 labels for 5 images"),
        (dict(images=noise(0, 5, 16, 16), labels=np.ones(5)), "`labels` of type float64"),
        (dict(images=noise(0, 5, 16, 16), labels=np.array([{}] * 5)), "`labels` cannot be read"),
        (dict(a=noise(0, 5, 16, 16), b=noise(0, 5, 16, 16)), "no array called `images`"),
        (dict(labels=np.arange(4)), "no array called `images`"),
        (dict(images=np.array([{}] * 5)), "Python objects, which are not loaded"),
    ],
)
def test_zip_of_arrays_that_cannot_be_used(tmp_path, arrays, why):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError) as error:
        npz_stack(tmp_path / "x.npz")
    assert why in str(error.value)


def test_zip_of_arrays_that_would_fill_the_disk(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((99, 200, 200), np.uint8))
    monkeypatch.setattr("synth_nb.data.readers.budgets.SAFE_SIZE", 1000)
    with pytest.raises(DataError, match=r"unpacks to .* beyond 200 to 1: it is not opened"):
        npz_stack(tmp_path / "x.npz")


# --- DICOM


def save_dicom(path, stored, bits=12, kind="MONOCHROME2", **fields):
    pydicom = pytest.importorskip("pydicom")
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.SOPClassUID = pydicom.uid.CTImageStorage
    ds.SOPInstanceUID = pydicom.uid.generate_uid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.set_pixel_data(np.asarray(stored), kind, bits)
    for name, value in fields.items():
        setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def test_full_range_of_signed_values(tmp_path):
    stored = np.linspace(-2048, 2047, 256).astype(np.int16).reshape(16, 16)
    page = dicom_stack(save_dicom(tmp_path / "x.dcm", stored)).page(0)
    assert page[0, 0] == 0 and page[-1, -1] == 255
    assert abs(page.ravel().astype(int) - np.arange(256)).max() <= 1


def test_rescaled_values_in_a_window(tmp_path):
    stored = np.full((16, 16), 1064, np.uint16)
    fields = dict(RescaleSlope=2, RescaleIntercept=-2088, WindowCenter=40.5, WindowWidth=101)
    path = save_dicom(tmp_path / "x.dcm", stored, **fields)
    assert set(np.unique(dicom_stack(path).page(0))) == {128}  # 2 · 1064 - 2088 = 40
    path = save_dicom(tmp_path / "x.dcm", stored + 25, **fields)
    assert set(np.unique(dicom_stack(path).page(0))) == {255}
    path = save_dicom(tmp_path / "x.dcm", stored - 25, kind="MONOCHROME1", **fields)
    assert set(np.unique(dicom_stack(path).page(0))) == {255}


def test_windows_per_frame(tmp_path):
    pydicom = pytest.importorskip("pydicom")

    def group(centre):
        window, outer = pydicom.Dataset(), pydicom.Dataset()
        window.WindowCenter, window.WindowWidth = centre, 200
        outer.FrameVOILUTSequence = [window]
        return outer

    path = save_dicom(tmp_path / "x.dcm", np.full((2, 16, 16), 500, np.uint16),
                      PerFrameFunctionalGroupsSequence=[group(1000), group(100)])
    stack = dicom_stack(path)
    assert [int(stack.page(i).max()) for i in range(2)] == [0, 255]


def test_colour(tmp_path):
    path = save_dicom(tmp_path / "x.dcm", noise(0, 16, 20, 3), 8, "RGB")
    assert np.array_equal(dicom_stack(path).page(0), noise(0, 16, 20, 3))


def test_patients_stay_together_and_unnamed(tmp_path):
    for i in range(12):
        save_dicom(tmp_path / f"{i:02}.dcm", noise(i, 16, 16), 8, PatientID=f"ID{i // 3}",
                   PatientName="Roe^Jane")
    source = folder_source(tmp_path)
    assert len(set(source.groups)) == 4
    messages = str((source.groups, source.keys, source.about))
    assert "ID" not in messages and "Roe" not in messages
    ds, _ = opened(tmp_path)
    assert len(set(zip(ds.groups, ds.split, strict=True))) == 4


def test_damaged_dicom_among_good_ones(tmp_path):
    for i in range(3):
        save_dicom(tmp_path / f"{i}.dcm", noise(i, 16, 16), 8)
    (tmp_path / "1.dcm").write_bytes((tmp_path / "1.dcm").read_bytes()[:-100])
    (tmp_path / "text.dcm").write_text("no scan")
    (tmp_path / "zero.dcm").touch()
    for i in range(4, 8):
        Image.fromarray(noise(i, 16, 16)).save(tmp_path / f"{i}.png")
    ds, _ = opened(tmp_path)
    skipped = dict(ds.skipped)
    assert skipped["text.dcm"] == "not a DICOM file" and skipped["zero.dcm"] == "empty file"
    assert "1.dcm" in skipped and len(ds) == 6


def test_without_pydicom(tmp_path, monkeypatch):
    (tmp_path / "x.dcm").write_text("x")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r"reading DICOM needs pydicom: pip install 'synth_nb\["):
        open_dataset(tmp_path)
