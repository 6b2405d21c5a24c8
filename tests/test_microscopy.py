"Bad stacks, one sentence each; and that chunks, masks and splits belong together."

import warnings

import numpy as np
import pytest
from PIL import Image

from synth_nb.core.parameters import ParameterError
from synth_nb.data.cache import decode_source, parallel_map
from synth_nb.data.readers import microscopy
from synth_nb.data.readers.microscopy import PageReader, em_source, grey_pixels
from synth_nb.data.readers.sources import DataError, ImageError


def section(i, height=64, width=96):
    return np.random.default_rng(i).integers(0, 256, (height, width), dtype=np.uint8)


def mask(i, height=64, width=96):
    return (section(100 + i, height, width) > 200).astype(np.uint8) * 255


def save_stack(path, pages, **options):
    first, *rest = [Image.fromarray(page) for page in pages]
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=rest, **options)
    return path


def save_folder(folder, pages, name="{:02}.png"):
    folder.mkdir(parents=True)
    for i, page in enumerate(pages):
        Image.fromarray(page).save(folder / name.format(i))
    return folder


@pytest.fixture
def stack(tmp_path):
    images = save_stack(tmp_path / "raw.tif", [section(i) for i in range(10)])
    return images, save_stack(tmp_path / "mito.tif", [mask(i) for i in range(10)])


# --- what is found


def test_tiff_folder_and_mixed_give_the_same(stack, tmp_path):
    images = save_folder(tmp_path / "raw", [section(i) for i in range(10)])
    masks = save_folder(tmp_path / "labels", [mask(i) for i in range(10)], "mask-{:03}.tif")
    sources = [em_source(a, b, 32) for a in (stack[0], images) for b in (stack[1], masks)]
    for source in sources:
        assert len(source) == 6 * 9 and source.split.count("val") == 6 * 2
        for i in (0, 17, 53):
            assert np.array_equal(source.content(i), sources[0].content(i))
            assert np.array_equal(source.masks(i), sources[0].masks(i))
    s, (y, x) = 17 // 6, sources[0].positions[17]
    assert np.array_equal(sources[0].content(17), section(s)[y : y + 32, x : x + 32])
    assert np.array_equal(sources[0].masks(17), mask(s)[y : y + 32, x : x + 32])


@pytest.mark.parametrize("layout", ["folders", "stacks"])
def test_several_volumes_are_groups_without_a_split(tmp_path, layout):
    for v in range(3):
        for kind, make in (("raw", section), ("mito", mask)):
            pages = [make(10 * v + i) for i in range(4)]
            if layout == "folders":
                save_folder(tmp_path / kind / f"vol{v}", pages)
            else:
                save_stack(tmp_path / kind / f"vol{v}.tif", pages)
    source = em_source(tmp_path / "raw", tmp_path / "mito", 32)
    assert source.split is None and not source.skipped
    assert [source.groups.count(f"vol{v}") for v in range(3)] == [24] * 3
    last = len(source) - 1
    assert source.keys[last] == "vol2/s003-y032-x064"
    assert np.array_equal(source.content(last), section(23)[32:, 64:])
    assert np.array_equal(source.masks(last), mask(23)[32:, 64:])


def test_numbers_in_names_match_what_order_would_not(tmp_path):
    images = save_folder(tmp_path / "raw", [section(i) for i in range(6)], "{}.png")
    masks = tmp_path / "mito"
    masks.mkdir()
    for i in range(6):  # sorted by name these run backwards
        Image.fromarray(mask(i)).save(masks / f"{'fedcba'[i]}_{i}.png")
    source = em_source(images, masks, 32)
    for i in range(0, len(source), 6):
        number = int(source.keys[i].split("/s")[1][:3])
        assert np.array_equal(source.masks(i), mask(number)[:32, :32])


def test_val_is_the_end_and_nothing_is_next_to_train(stack):
    source = em_source(*stack, 32, val_fraction=0.3, gap=2)
    numbers = {s: {int(k.split("/s")[1][:3]) for k, t in zip(source.keys, source.split, strict=True)
                   if t == s} for s in ("train", "val")}
    assert numbers == {"train": set(range(5)), "val": {7, 8, 9}}
    assert len(source.skipped) == 2 * 6
    assert {why for _, why in source.skipped} == {"gap between train and val"}


def test_16_bits(tmp_path):
    deep = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    path = save_stack(tmp_path / "deep.tif", [deep] * 3)
    content = em_source(path, chunk=64).content(0)
    assert np.array_equal(content, (deep.astype(int) + 128) // 257)


# --- reading


def test_a_page_is_decoded_once_for_all_chunks_and_threads(stack, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    decoded = []

    def convert(image):
        decoded.append(image.tell())
        return grey_pixels(image)

    reader = PageReader(convert)
    pages = list(parallel_map(lambda i: reader(stack[0], i // 12), 120))  # a section has 12 chunks
    assert sorted(decoded) == list(range(10))
    assert all(np.array_equal(page, section(i // 12)) for i, page in enumerate(pages))
    assert len(reader.pages) == 4


def test_through_the_cache(stack):
    source = em_source(*stack, 32)
    images = decode_source(source, (1, 32, 32))
    assert len(images.indices) == len(source)
    assert np.array_equal(images.images[20, 0], source.content(20))


def test_a_damaged_section_is_left_out_and_named(tmp_path):
    folder = save_folder(tmp_path / "raw", [section(i) for i in range(8)])
    (folder / "02.png").write_bytes(b"dear diary")
    content = (folder / "04.png").read_bytes()
    (folder / "04.png").write_bytes(content[: len(content) // 2])
    source = em_source(folder, chunk=32)
    assert source.skipped[0] == ("raw/s002", "not an image")
    assert not any("s002" in key for key in source.keys)
    bad = source.keys.index("raw/s004-y000-x000")
    with pytest.raises(ImageError, match="truncated"):
        source.content(bad)
    assert np.array_equal(source.content(bad - 1), section(3)[32:, 64:])
    assert ("raw/s004-y000-x032", "truncated") in decode_source(source, (1, 32, 32)).skipped


def test_a_truncated_tiff_is_refused(stack):
    content = stack[0].read_bytes()
    stack[0].write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"none of the sections in .*raw\.tif can be read"):
        em_source(stack[0], chunk=32)


# --- refusals


def test_another_number_of_masks(stack, tmp_path):
    odd = save_stack(tmp_path / "odd.tif", [mask(i) for i in range(9)])
    with pytest.raises(DataError, match=r"^raw has 10 sections, its masks 9$"):
        em_source(stack[0], odd, 32)


@pytest.mark.parametrize("first", [0, 2])
def test_masks_whose_numbers_are_shifted(tmp_path, first):
    "By order each section would get its neighbour's mask, or its own: names cannot say."
    images = save_folder(tmp_path / "raw", [section(i) for i in range(5)][1:], "s{}.png")
    for path in sorted(images.iterdir(), reverse=True):  # 1 to 4
        path.rename(images / f"s{int(path.stem[1:]) + 1}.png")
    masks = tmp_path / "mito"
    masks.mkdir()
    for i in range(first, first + 4):
        Image.fromarray(mask(i)).save(masks / f"s{i}.png")
    lone = {0: 0, 2: 1}[first]
    with pytest.raises(DataError, match=f"^raw: only one side .* has number {lone}; rename them"):
        em_source(images, masks, 32)


def test_numbers_that_have_nothing_in_common_go_by_order(tmp_path):
    images = save_folder(tmp_path / "raw", [section(i) for i in range(4)])
    masks = tmp_path / "mito"
    masks.mkdir()
    for i in range(4):
        Image.fromarray(mask(i)).save(masks / f"m{100 + i}.png")
    assert np.array_equal(em_source(images, masks, 32).masks(0), mask(0)[:32, :32])


def test_another_number_of_volumes(stack, tmp_path):
    for v in range(2):
        save_stack(tmp_path / "masks" / f"{v}.tif", [mask(i) for i in range(10)])
    with pytest.raises(DataError, match=r"there are 1 volumes and 2 of masks in .*masks"):
        em_source(stack[0], tmp_path / "masks", 32)


def test_a_mask_of_another_size(tmp_path, stack):
    pages = [mask(i) for i in range(10)]
    pages[6] = mask(6, 64, 64)
    wrong = save_stack(tmp_path / "wrong.tif", pages)
    sentence = r"the mask page 7 of .*wrong\.tif has 64x64 pixels, the section 64x96"
    with pytest.raises(DataError, match=sentence):
        em_source(stack[0], wrong, 32)


def test_object_labels_are_no_mask(tmp_path, stack):
    labels = save_stack(tmp_path / "labels.tif", [mask(i) // 255 * 40 for i in range(10)])
    source = em_source(stack[0], labels, 32)
    with pytest.raises(ImageError, match="mask values up to 40: neither 0 and 1 nor 0 and 255"):
        source.masks(0)


def test_object_labels_beyond_the_middle_are_no_mask(tmp_path):
    "A threshold would keep the objects from 128 and lose the others."
    labels = np.zeros((64, 96), np.uint8)
    for k in range(60):
        labels[k // 10 * 8 :, k % 10 * 8 :][:5, :5] = 100 + k
    images = save_stack(tmp_path / "raw.tif", [section(0)] * 3)
    source = em_source(images, save_stack(tmp_path / "labels.tif", [labels] * 3), 32)
    with pytest.raises(ImageError, match="areas of 100 and values up to 159, as objects are numb"):
        source.masks(0)


def test_a_transparent_ground_is_no_object(tmp_path):
    painted = np.zeros((64, 96, 4), np.uint8)
    painted[8:24, 8:24] = 255
    images = save_folder(tmp_path / "raw", [section(i) for i in range(3)])
    masks = save_folder(tmp_path / "mito", [painted] * 3)
    assert em_source(images, masks, 32).masks(0).mean() == 255 / 4


@pytest.mark.parametrize("chunk", [0, 4, -32, 32.5, True, "32"])
def test_impossible_chunk(stack, chunk):
    with pytest.raises(ParameterError, match="parameter `chunk` must be a number of pixels from 8"):
        em_source(stack[0], chunk=chunk)


def test_chunk_beyond_the_section(stack):
    with pytest.raises(ParameterError, match=r"`chunk` 65 is too large: page 1 of .* has 64x96"):
        em_source(stack[0], chunk=65)


def test_what_is_cut_off_is_said_once(stack):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = em_source(stack[0], chunk=40)
    assert len(source) == 2 * 9 and len(caught) == 1
    end = "24 pixels at the bottom and 16 at the right are cut off"
    assert str(caught[0].message).endswith(end)


def test_nothing_there(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(DataError, match="empty holds no sections: `images` takes TIFF"):
        em_source(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"there is no .*gone: `images` takes a TIFF or"):
        em_source(tmp_path / "gone")


def test_sections_beside_folders(tmp_path):
    folder = save_folder(tmp_path / "raw", [section(i) for i in range(3)])
    save_folder(folder / "more", [section(i) for i in range(3)])
    with pytest.raises(DataError, match="raw holds sections and folders of sections"):
        em_source(folder)


def test_a_stack_among_sections(tmp_path):
    "Each section would be a volume of its own, and its neighbours on both sides of the split."
    folder = save_folder(tmp_path / "raw", [section(i) for i in range(5)], "{}.tif")
    save_stack(folder / "3.tif", [section(3), section(3)])
    with pytest.raises(DataError, match=r"raw/3\.tif has 2 pages, 0\.tif has 1: a folder holds"):
        em_source(folder, chunk=32)
    (folder / "3.tif").write_bytes(b"dear diary")
    assert len(microscopy.list_volumes(folder)) == 1
    for i in (0, 1, 2, 4):
        (folder / f"{i}.tif").unlink()
    save_stack(folder / "3.tif", [section(i) for i in range(5)])
    assert [len(v.pages) for v in microscopy.list_volumes(folder)] == [5]


def test_too_few_sections(tmp_path):
    path = save_stack(tmp_path / "two.tif", [section(0), section(1)])
    with pytest.raises(ParameterError, match="the volume has 2 sections: 1 to hold out and 1 betw"):
        em_source(path, chunk=32)
    assert set(em_source(path, chunk=32, val_fraction=0).split) == {"train"}


def test_listing_reads_no_pixels(stack, monkeypatch):
    monkeypatch.setattr(microscopy, "to_mode", None)
    assert len(em_source(*stack, 32)) == 54
