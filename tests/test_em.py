"Electron micrographs: what is refused, what must not leak, what survives a kill."

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from synth_nb.core.parameters import ParameterError
from synth_nb.data import DataError
from synth_nb.segmentation.predict import check_threshold, predict_blended, predict_sections
from synth_nb.segmentation.protocol import Cells, Protocol, effects, run_protocol, synthetic_pairs
from synth_nb.segmentation.sections import open_sections, split_in_three


def write_stack(path: Path, pages: list[np.ndarray]):
    images = [Image.fromarray(page) for page in pages]
    images[0].save(path, save_all=True, append_images=images[1:])


@pytest.fixture
def stacks(tmp_path):
    "Six sections and masks, and how to open them."
    rng = np.random.default_rng(0)
    write_stack(tmp_path / "raw.tif", list(rng.integers(0, 255, (6, 48, 64), np.uint8)))
    mask = np.zeros((6, 48, 64), np.uint8)
    mask[:, 8:30, 8:30] = 255
    write_stack(tmp_path / "mask.tif", list(mask))

    def opened(raw="raw.tif", masks="mask.tif", **options):
        return open_sections(f"em:{tmp_path / raw}", str(tmp_path / masks), **options)

    return tmp_path, mask, opened


def test_stacks_open_by_path(stacks):
    _, mask, opened = stacks
    found = opened()
    assert found.images.shape == (6, 1, 48, 64)
    assert (found.masks[:, 0] * 255 == mask).all()
    assert len(split_in_three(found).train) == 2


def test_masks_of_another_size(stacks):
    folder, mask, opened = stacks
    write_stack(folder / "small.tif", list(mask[:, :40]))
    with pytest.raises(DataError, match="40x64 pixels, the section 48x64"):
        opened(masks="small.tif")


def test_masks_of_another_range(stacks):
    folder, mask, opened = stacks
    write_stack(folder / "labels.tif", list(mask // 255 * 7))
    with pytest.raises(DataError, match="mask values up to 7: neither 0 and 1 nor 0 and 255"):
        opened(masks="labels.tif")


def test_masks_of_another_mode(stacks):
    "One bit, and antialiased grey: both are cut at 127."
    folder, mask, opened = stacks
    images = [Image.fromarray(page).convert("1") for page in mask]
    images[0].save(folder / "bits.tif", save_all=True, append_images=images[1:])
    soft = mask.astype(int)
    soft[:, 8, 8:30], soft[:, 29, 8:30] = 120, 130
    write_stack(folder / "soft.tif", list(soft.astype(np.uint8)))
    assert (opened(masks="bits.tif").masks == opened().masks).all()
    assert (opened(masks="soft.tif").masks[:, 0] * 255 == (soft > 127) * 255).all()


def test_empty_masks(stacks):
    folder, mask, opened = stacks
    write_stack(folder / "empty.tif", list(mask * 0))
    with pytest.raises(DataError, match="are empty: there is nothing to learn"):
        opened(masks="empty.tif")


def test_a_damaged_page(stacks):
    "A page that cannot be read is left out with its mask, and named."
    folder, _, opened = stacks
    rng = np.random.default_rng(1)
    (folder / "raw").mkdir()
    (folder / "mask").mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (48, 64), np.uint8)).save(folder / f"raw/{i}.tif")
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(folder / f"mask/{i}.png")
    bytes_ = (folder / "raw/3.tif").read_bytes()
    (folder / "raw/3.tif").write_bytes(bytes_[: len(bytes_) // 2])
    with pytest.warns(UserWarning, match=r"skipped 1 sections, the first is .*3\.tif"):
        found = opened("raw", "mask")
    assert found.numbers == [0, 1, 2, 4, 5]


def test_a_volume_with_one_section(stacks):
    _, _, opened = stacks
    with pytest.raises(DataError, match="has 1 section: training, validation and test need"):
        split_in_three(opened().select([0]))


def test_a_section_smaller_than_a_window(stacks):
    import torch

    from synth_nb.segmentation.networks import ResidualUNet

    net = ResidualUNet(widths=(4, 8)).eval()
    small = torch.zeros(1, 48, 64, dtype=torch.uint8)
    with pytest.raises(ParameterError, match="`window` 64 is larger than the section, 48x64"):
        predict_blended(net, small, 64, 8)
    assert predict_sections(net, small[None]).shape == (1, 1, 48, 64)  # tiles take any size


def test_sides_that_a_network_cannot_halve(tmp_path):
    "A sentence instead of an error about tensors; a crop that fits is found for the notebook."
    from synth_nb.segmentation.fit import Pairs, crop_for, fit_segmenter

    images = np.zeros((4, 1, 100, 60), np.uint8)
    masks = np.zeros_like(images)
    masks[:, :, 5:20, 5:20] = 1
    with pytest.raises(ParameterError, match="multiples of 8, got 100x60 pixels: give a `chunk`"):
        fit_segmenter(tmp_path, Pairs(images, masks), (images, masks), 2, device="cpu")
    assert Pairs(images, masks, crop_for(100, (100, 60), 8))[[0, 1]]["image"].shape[2:] == (56, 56)


@pytest.mark.parametrize("value", [-0.1, 1.5, True, float("nan"), None, [0.5]])
def test_a_threshold_that_is_none(value):
    with pytest.raises(ParameterError, match="`threshold` must be 0 … 1"):
        check_threshold(value)


@pytest.mark.parametrize("name", ["s{}.png", "part/{}.png"])
def test_serial_images_without_groups_are_one_volume(tmp_path, name):
    "Neighbours, in the order of their numbers, do not sit on both sides of the split."
    table, rng = [], np.random.default_rng(0)
    for i in range(12):
        grey, mask = rng.integers(20 * i, 20 * i + 9, (32, 32), np.uint8), np.eye(32, dtype=bool)
        for kind, pixels in dict(images=grey, masks=mask).items():
            path = tmp_path / kind / name.format(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        pair = {"file_name": f"images/{name.format(i)}",
                "mask_file_name": f"masks/{name.format(i)}"}
        table.append(json.dumps(pair) + "\n")
    (tmp_path / "metadata.jsonl").write_text("".join(table))
    found = open_sections(str(tmp_path), image_size=32)
    assert len(set(found.volumes)) == 1 and found.numbers == list(range(12))
    assert (np.diff(found.images.mean((1, 2, 3))) > 0).all()
    split = split_in_three(found, gap=3)
    assert [len(getattr(split, k)) for k in ("train", "val", "test")] == [3, 1, 2]


def line_of(notebook: str, start: str) -> str:
    "The one line of a notebook's code that begins so."
    path = Path(__file__).parents[1] / "nbs" / f"{notebook}.ipynb"
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    (found,) = [one for c in cells for one in c["source"] if one.startswith(start)]
    return found


def test_copies_are_searched_in_all_training_chunks():
    "Overlapping chunks too: a copy of one is a copy."
    from synth_nb.evaluation import ImageSet

    chunks = np.zeros((5, 1, 16, 16), np.uint8)
    real = dict(train=(chunks[:2], 0, []))
    names = dict(ImageSet=ImageSet, train_chunks=(chunks, chunks), real=real)
    exec(line_of("06_em_ddpm", "train_set ="), names)
    assert len(names["train_set"].images) == 5


def test_several_processes_on_gpus_keep_their_precision(monkeypatch):
    "Precision is chosen for the GPU that will be used, not for the CPU of this process."
    import torch

    from synth_nb.core.devices import pick_device, pick_precision

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for precision in ("auto", "bf16", "fp16"):
        names = dict(pick_device=pick_device, pick_precision=pick_precision, precision=precision,
                     device="cuda", num_processes=2, num_nodes=1)
        exec(line_of("06_em_ddpm", "precision ="), names)
        assert names["precision"] == precision


def test_sections_that_are_no_squares_turn_without_distortion():
    "A square stays one at every angle."
    import torch

    from synth_nb.segmentation.fit import random_warps, warp_pair

    mask = torch.zeros(8, 1, 64, 128)
    mask[..., 22:42, 54:74] = 1
    torch.manual_seed(0)
    maps = random_warps(8, (64, 128), scale=0, shear=0, bend=0)
    turned = warp_pair(mask, mask, maps)[1][:, 0, 10:54, 42:86].numpy()  # without mirrored ones
    for one in turned:
        variances = np.linalg.eigvalsh(np.cov(np.argwhere(one).T))
        assert variances[1] / variances[0] < 1.05 and abs(one.sum() - 400) < 20


def test_where_pairs_are_made_is_no_part_of_what_they_are():
    "A protocol goes on where another device stopped it."
    from synth_nb.em.training import PairGenerator, PairTrainingConfig

    one, two = (PairGenerator(PairTrainingConfig(device=device)).id for device in ("auto", "cpu"))
    assert one == two


@pytest.mark.parametrize(("message", "options"), [
    ("`levels` 4 halves 12x12 pixels of the latent 3 times", dict(widths=(16, 32, 64, 64))),
    ("`width` must be a multiple of 16, got 24", dict(widths=(24, 48))),
    ("`chunk` must be a multiple of 16, got 40x40", dict(side=40, vae_downsampling=2)),
    ("`vae_downsampling` must be 1, 2, 4 or 8", dict(vae_downsampling=3)),
])
def test_a_network_that_does_not_fit_is_refused_before_anything_is_trained(
        tmp_path, message, options):
    from synth_nb.em.training import PairTrainer, PairTrainingConfig

    images = np.zeros((4, 1, *[options.pop("side", 48)] * 2), np.uint8)
    config = PairTrainingConfig(vae_steps=1, vae_width=8, device="cpu", **options)
    with pytest.raises(ParameterError, match=message):
        PairTrainer(tmp_path, config, images, images + 1)
    assert not list(tmp_path.iterdir())


class Noisy:
    "Labelled pairs again, with noise: stands in for a generator."

    id = "noisy"

    def __call__(self, images, masks, labelled, n, seed, folder, shared):
        rng = np.random.default_rng(seed)
        rows = rng.choice(labelled, n)
        pixels = images[rows] + rng.normal(0, 9, images[rows].shape)
        return pixels.clip(0, 255).astype(np.uint8), masks[rows]


SMALL = dict(fractions=(0.5,), seeds=2, arms=("R", "S"), chunk=32, steps=4, batch_size=4,
             widths=(4, 8), n_synthetic=8)


def split_of_phantom():
    return split_in_three(open_sections("demo", image_size=64, n=48))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    "A small protocol, run once: its split, its folder, its rows."
    split, folder = split_of_phantom(), tmp_path_factory.mktemp("plain")
    return split, folder, run_protocol(folder, split, Noisy(), Protocol(**SMALL))


def weights(folder: Path) -> dict[str, str]:
    "What every cell learnt."
    return {p.name: json.loads(p.read_text())["weights"] for p in (folder / "cells").glob("*.json")}


def pairs(folder: Path) -> list[bytes]:
    found = [np.load(p) for p in sorted((folder / "samples").glob("*.npz"))]
    return [a.tobytes() for one in found for a in (one["images"], one["masks"])]


def test_test_sections_change_no_weight(plain, tmp_path):
    "Other test sections change scores, but no weight and no synthetic pixel."
    split, folder, one = plain
    test = replace(split.test, images=split.test.images[::-1].copy())
    two = run_protocol(tmp_path, replace(split, test=test), Noisy(), Protocol(**SMALL))
    assert weights(folder) == weights(tmp_path)
    assert pairs(folder) == pairs(tmp_path)
    assert not one["dice"].equals(two["dice"])


def test_masks_outside_the_fraction_teach_nothing(plain, tmp_path):
    "Inverted masks of chunks that count as unlabelled change no weight and no synthetic pixel."
    (split, folder, _), how = plain, Protocol(**SMALL)
    cells = Cells(tmp_path / "c", split, Noisy(), how)
    used = {int(i) for seed in range(2) for i in cells.labelled(0.5, seed)}
    masks = split.train.masks.copy()
    across = masks.shape[3] // 32
    # only where there is an object: the draw sees to it that one labelled chunk shows one
    others = [i for i in range(len(cells.masks)) if i not in used and cells.masks[i].any()]
    for chunk in others:
        cell, section = divmod(chunk, len(masks))
        y, x = cell // across * 32, cell % across * 32
        masks[section, :, y : y + 32, x : x + 32] ^= 1
    other = replace(split, train=replace(split.train, masks=masks))
    changed = Cells(tmp_path, other, Noisy(), how).masks != cells.masks
    assert others and changed[others].all() and not changed[sorted(used)].any()
    run_protocol(tmp_path / "b", other, Noisy(), how)
    assert weights(folder) == weights(tmp_path / "b")
    assert pairs(folder) == pairs(tmp_path / "b")


@pytest.mark.parametrize("mode", ["joint", "mask_conditioned"])
def test_the_real_generator_sees_only_the_fraction(tmp_path, mode):
    "The same pairs, whatever the masks of unlabelled images hold."
    from synth_nb.em.training import PairGenerator, PairTrainingConfig

    data = open_sections("demo", image_size=64, n=16)
    rows = np.flatnonzero(data.masks.any((1, 2, 3)))[:4]
    other = data.masks.copy()
    other[np.setdiff1d(np.arange(16), rows)] ^= 1
    config = PairTrainingConfig(mode, 3, epochs=1, images_per_epoch=16, batch_size=8,
                                widths=(16, 32), vae_width=8, latent_channels=4, sampling_steps=2)
    one, two = (PairGenerator(config)(data.images, m, rows, 3, 0, tmp_path / str(k))
                for k, m in enumerate((data.masks, other)))
    assert (one[0] == two[0]).all() and (one[1] == two[1]).all()


@pytest.mark.parametrize("mode", ["joint", "mask_conditioned"])
def test_shares_of_the_labels_have_one_autoencoder_where_it_sees_no_masks(tmp_path, mode):
    "The pairs are those of an autoencoder of their own, and it is trained once."
    from synth_nb.em.training import PairGenerator, PairTrainingConfig

    data = open_sections("demo", image_size=64, n=16)
    rows = np.flatnonzero(data.masks.any((1, 2, 3)))
    config = PairTrainingConfig(mode, 3, epochs=1, images_per_epoch=16, batch_size=8,
                                widths=(16, 32), vae_width=8, latent_channels=4, sampling_steps=2)
    inputs, shared = (data.images, data.masks), tmp_path / "shared"
    alone = PairGenerator(config)(*inputs, rows[:3], 3, 0, tmp_path / "alone")
    written = []
    for share in (3, 4):
        folder = tmp_path / str(share)
        pairs = PairGenerator(config)(*inputs, rows[:share], 3, 0, folder, shared)
        written.append({p.name: p.stat().st_mtime_ns for p in shared.rglob("*.safetensors")})
        assert (folder / "autoencoder").exists() == (mode == "joint")
        if share == 3:
            assert all((a == b).all() for a, b in zip(alone, pairs, strict=True))
    assert written[0] == written[1] and bool(written[0]) == (mode == "mask_conditioned")


def test_random_and_targeted_pairs_come_from_one_generator(tmp_path):
    split, sampled = split_of_phantom(), []

    class Counted(Noisy):
        def __call__(self, *args):
            sampled.append(args[3])
            return super().__call__(*args)

    how = Protocol(**SMALL | dict(arms=("R", "R+S", "T"), fractions=(1.0,)))
    cells = Cells(tmp_path, split, Counted(), how)
    random, many = (synthetic_pairs(cells, 1.0, 0, pool) for pool in (False, True))
    assert sampled == [4 * how.n_synthetic]
    assert all((a == b[: how.n_synthetic]).all() for a, b in zip(random, many, strict=True))
    plain = Cells(tmp_path / "plain", split, Counted(), replace(how, arms=("R", "R+S")))
    assert len(synthetic_pairs(plain, 1.0, 0)[0]) == sampled[1] == how.n_synthetic


class Knowing(Noisy):
    "A stand-in for a generator that has features, too: squares of pixels."

    def backbone(self, images, seed, folder):
        class Pixels(torch.nn.Module):
            channels, downsampling, window = 16, 4, 32

            def forward(self, x):
                return torch.nn.functional.pixel_unshuffle(x, 4)

        return Pixels()

    def training_flops(self, images, masked=True):
        return 2e6


def test_arms_of_what_a_generator_knows(tmp_path):
    "They are found again, end alike from a fresh start, and read no mask beyond the labelled ones."
    split = split_of_phantom()
    arms = ("R", "R+S", "P", "F", "T", "R=P", "R=F", "R+aug", "R+S+aug", "P+aug")
    how = Protocol(**SMALL | dict(arms=arms, pretrain_steps=8))
    cells = Cells(tmp_path / "a", split, Knowing(), how)
    masks = split.train.masks.copy()
    used = {int(i) for seed in range(2) for i in cells.labelled(0.5, seed)}
    across = masks.shape[3] // 32
    for chunk in (i for i in range(len(cells.masks)) if i not in used and cells.masks[i].any()):
        cell, section = divmod(chunk, len(masks))
        y, x = cell // across * 32, cell % across * 32
        masks[section, :, y : y + 32, x : x + 32] ^= 1
    assert (masks != split.train.masks).any()
    one = run_protocol(tmp_path / "a", split, Knowing(), how)
    at = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json")}
    again = run_protocol(tmp_path / "a", split, Knowing(), how)
    assert again.equals(one) and {p: p.stat().st_mtime_ns for p in at} == at
    other = replace(split, train=replace(split.train, masks=masks))
    run_protocol(tmp_path / "b", other, Knowing(), how)
    learnt = weights(tmp_path / "a")
    assert learnt == weights(tmp_path / "b") and len(set(learnt.values())) == len(learnt)
    assert pairs(tmp_path / "a") == pairs(tmp_path / "b")
    assert cells.compute("P") == cells.compute("R=P") == 3  # 4 steps, and 8 before
    assert cells.compute("T") > cells.compute("R+S") > 1 and cells.compute("F") > 0.1
    compared = set(zip(*[effects(one)[name] for name in ("arm", "against")], strict=True))
    assert {("P", "R=P"), ("F", "R=F"), ("T", "R+S"), ("T", "R"), ("R+S+aug", "R+aug"),
            ("P+aug", "R+aug")} <= compared  # fmt: skip


def test_a_generator_counts_all_its_draws():
    "An epoch of 0 images is one of all chunks, in the count of operations as in the training."
    from synth_nb.em.training import PairGenerator, PairTrainingConfig

    images, widths = np.zeros((24, 1, 32, 32), np.uint8), (16, 32)
    all_chunks, counted, none = (
        PairGenerator(PairTrainingConfig(epochs=epochs, images_per_epoch=n, vae_width=8,
                                         widths=widths)).training_flops(images)
        for epochs, n in ((2, 0), (2, 24), (0, 0)))
    assert all_chunks == counted > none > 0


def test_pretraining_is_no_part_of_cells_without_it():
    split = split_of_phantom()
    short, long = (Cells("x", split, Noisy(), Protocol(**SMALL, pretrain_steps=n)) for n in (4, 5))
    assert short.key_of("R") == long.key_of("R") == short.key
    assert short.key_of("P") != long.key_of("P") and short.key_of("F") == long.key_of("F")


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from test_em import Noisy, Protocol, SMALL, run_protocol, split_of_phantom
run_protocol({folder!r}, split_of_phantom(), Noisy(), Protocol(**SMALL))
"""


def test_a_killed_protocol_goes_on(plain, tmp_path):
    "Cells that were done are not done again, and the end is as if nothing had happened."
    split, _, expected = plain
    folder = tmp_path / "killed"
    program = PROGRAM.format(tests=str(Path(__file__).parent), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(folder.glob("cells/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {p: p.stat().st_mtime_ns for p in folder.glob("cells/*.json")}
    assert done
    again = run_protocol(folder, split, Noisy(), Protocol(**SMALL))
    assert {p: p.stat().st_mtime_ns for p in done} == done
    assert again.equals(expected)


@pytest.mark.real_data
def test_em_vnc(monkeypatch):
    home = os.environ.get("SYNTH_NB_REAL_DATA")
    if not home:
        pytest.skip("SYNTH_NB_REAL_DATA is not set")
    found = open_sections(f"em:{home}/em_vnc/raw", f"{home}/em_vnc/mitochondria", downsample=4)
    assert found.images.shape == (20, 1, 256, 256) and 0.04 < found.masks.mean() < 0.07
    assert [len(getattr(split_in_three(found), k)) for k in ("train", "val", "test")] == [12, 2, 4]


def test_a_model_of_single_sections_is_no_model_of_stacks(tmp_path):
    from synth_nb.em.pairs import save
    from synth_nb.em.stacks import StackTrainer, cut_columns, load
    from synth_nb.em.training import PairTrainer, PairTrainingConfig

    sections = open_sections("demo", image_size=32, n=16, masked=False)
    config = PairTrainingConfig("sections", 2, vae_width=8, latent_channels=2, epochs=1,
                                images_per_epoch=8, widths=(16,), device="cpu")
    training = PairTrainer(tmp_path / "run", config, sections.images, None)
    training.fit()
    (tmp_path / "model").mkdir()
    save(training.model(), tmp_path / "model")
    with pytest.raises(ParameterError, match="makes single sections, no stacks"):
        load(tmp_path / "model")
    with pytest.raises(ParameterError, match="`mode` of stacks must be joint or sections"):
        StackTrainer(tmp_path / "none", replace(config, mode="mask_conditioned"),
                     cut_columns(sections, 32), 4)
    with pytest.raises(ParameterError, match="`depth` is 17, but no more than 16 sections"):
        StackTrainer(tmp_path / "none", config, cut_columns(sections, 32), 17)
    assert not (tmp_path / "none").exists()


def test_stacks_of_sections_without_masks_come_back_as_they_were_written(tmp_path):
    from synth_nb.em.stacks import StackTrainer, cut_columns, load, save
    from synth_nb.em.training import PairTrainingConfig

    sections = open_sections("demo", image_size=32, n=32, masked=False)
    config = PairTrainingConfig("sections", 2, vae_width=8, latent_channels=2, epochs=1,
                                images_per_epoch=8, widths=(16,), device="cpu", sampling_steps=3)
    short = cut_columns(sections.select(range(16, 18)), 32)  # too short to choose an epoch by
    training = StackTrainer(tmp_path / "run", config, cut_columns(sections, 32), 3, short)
    assert training.val is None and training.fit() == "complete"
    (tmp_path / "model").mkdir()
    save(training.model(), tmp_path / "model")
    one, again = training.model().sample(5, seed=3), load(tmp_path / "model").sample(5, seed=3)
    assert one.images.shape == (5, 1, 32, 32) and one.masks is None
    assert torch.equal(one.images, again.images)
