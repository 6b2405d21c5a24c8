"Letters: the whole way in little, what is written, and what is refused, each with one sentence."

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from synth_nb.core.parameters import ParameterError
from synth_nb.core.runs import Samples, load_model, open_run
from synth_nb.core.testing import assert_near
from synth_nb.data import DataError, Views, open_dataset, to_float, to_uint8
from synth_nb.emnist import (
    LetterModel,
    Way,
    check_given,
    check_state,
    check_upright,
    denoising_phase,
    denoising_trajectory,
    epoch_numbers,
    few_real,
    intended,
    judge_for,
    load,
    new_unet,
    noise_schedule,
    of_characters,
    perfect_model,
    save,
    show_label_aligned_images,
    write_epoch,
    write_gif,
)
from synth_nb.emnist.judging import moved
from synth_nb.emnist.model import spread_times
from synth_nb.evaluation import ImageSet
from synth_nb.evaluation.sets import to_image_set
from synth_nb.training.log import read_metrics
from synth_nb.training.loop import Trainer, TrainingConfig


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    os.environ["SYNTH_NB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return open_dataset("digits", 28, channels=1)


@pytest.fixture(scope="module")
def judge(digits):
    return judge_for(digits, steps=150, device="cpu")


def trained(folder, digits, judge, epochs=2, network="small"):
    "A run of six steps with the numbers of every epoch."
    torch.manual_seed(0)
    unet, schedule = new_unet(10, network=network), noise_schedule()

    def now():
        return LetterModel(trainer.model("unet"), schedule, digits.classes, way=Way("ddim", 2, 1.0))

    def evaluate(epoch):
        numbers = epoch_numbers(judge, now().sample(12, 0), digits.held_out, seed=0)
        return write_epoch(numbers, folder, epoch, 0)

    plan = TrainingConfig(epochs, 4, 12, device="cpu", snapshot_every=1, snapshot_state=True)
    phase = denoising_phase(unet, schedule, 10, total=6)
    trainer = Trainer(folder, Views(digits.train, 1), dict(unet=unet), [phase], plan,
                      dict(unet=0.9), evaluate, lambda at: save(now(), at))
    trainer.fit()
    return trainer


def test_every_epoch_leaves_its_numbers_and_a_model_that_loads_by_number(digits, judge, tmp_path):
    run = open_run("07_emnist", dict(seed=0, outputs=str(tmp_path)), digits.describe(),
                   "synth_nb.emnist.sampling:load")
    trained(run.folder, digits, judge)
    for epoch in (1, 2):
        table = pd.read_csv(run.folder / f"evaluation_metrics_epoch_{epoch}_random_seed.csv")
        assert set(table.metric) == {"accuracy", "ssim", "frechet", "kernel", "class_score"}
        assert (table.images == 12).all() and (table.real_images == len(digits.held_out)).all()
        assert table.real_against_real.notna().all()
    log = read_metrics(run.folder)
    assert [row["epoch"] for row in log] == [1, 2] and "accuracy_reader@28" in log[0]
    first, second = (load_model(run, "cpu", epoch=n).sample(3, 1).images for n in (1, 2))
    assert not torch.equal(first, second)
    with pytest.raises(FileNotFoundError, match=r"epoch_7 was not saved in .*: there are 1, 2"):
        load_model(run, "cpu", epoch=7)
    with pytest.raises(FileNotFoundError, match=r"state of epoch 7 was not kept in .*are 1, 2"):
        check_state(new_unet(10), run.folder, 7)
    with pytest.raises(ParameterError, match=r"1.14 million weights and `network` asks for 6.9"):
        check_state(new_unet(10, network="middle"), run.folder, 1)
    check_state(new_unet(10), run.folder, 2)


def test_the_judge_reads_real_digits_and_never_saw_the_held_out(digits, judge):
    assert judge.accuracy > 0.95  # 0.985 after 120 steps without AVX
    pixels = torch.tensor(digits.held_out.images)
    found = intended(judge, pixels, digits.held_out.labels)
    assert found["confusion"].sum() == len(digits.held_out) == found["images"]
    assert found["low"] < judge.accuracy <= found["high"]
    part = digits.select([i for i, s in enumerate(digits.split) if s == "train"][:200]
                         + [i for i, s in enumerate(digits.split) if s == "val"])
    assert judge_for(part, 20, device="cpu").revision != judge.revision


def test_letters_are_turned_and_moved_but_never_mirrored():
    torch.manual_seed(0)
    corner = torch.full((300, 1, 28, 28), -1.0)
    corner[:, :, 4:24, 4:8] = 1  # an upright stroke at the left and a foot to the right: L
    corner[:, :, 20:24, 4:24] = 1
    ink = (moved(corner) + 1)[:, 0]
    left, right = ink[:, :14, :14].sum((1, 2)), ink[:, :14, 14:].sum((1, 2))
    assert (left > right).all()


def test_epsilon_and_velocity_unconditional_and_padded_networks_sample():
    for prediction in ("epsilon", "v_prediction"):
        schedule = noise_schedule(prediction)
        free = LetterModel(new_unet(0).eval(), schedule, [], way=Way("dpm++", 2))
        assert free.sample(2).images.shape == (2, 1, 28, 28) and free.sample(2).labels is None
    with torch.device("meta"):
        unet = new_unet(52, network="documented")
    assert unet.config.sample_size == 32 and unet.num_parameters() > 113e6


def test_a_saved_model_gives_the_same_letters(digits, tmp_path):
    model = LetterModel(new_unet(10).eval(), noise_schedule(), digits.classes, way=Way("ddpm", 3))
    save(model, tmp_path)
    again = load(tmp_path)
    assert torch.equal(again.sample(4, 5).images, model.sample(4, 5).images)
    few, more = model.sample(2, 5).images, model.sample(4, 5).images[:2]
    assert_near(few, more, rel=1e-3)  # the same letters, however many are made at once


def test_sheets_and_animation_are_written(digits, tmp_path):
    held = digits.held_out
    path = tmp_path / "label_aligned_samples_epoch_3_run_1.png"
    show_label_aligned_images(torch.tensor(held.images), held.labels, held.classes, path, rows=3)
    assert path.stat().st_size > 1000
    perfect = perfect_model(to_float(torch.tensor(held.images)), held.labels, held.classes,
                            noise_schedule())
    film = write_gif(
        denoising_trajectory(perfect, "3", sampler="ddim", sampling_steps=4), tmp_path / "a.gif"
    )
    assert film.read_bytes()[:3] == b"GIF"
    with pytest.raises(ParameterError, match="label 10 is outside the 10 classes"):
        show_label_aligned_images(torch.tensor(held.images[:1]), torch.tensor([10]), held.classes)


def test_what_a_label_and_a_model_may_not_be(digits):
    model = LetterModel(new_unet(3).eval(), noise_schedule(), list("abc"))
    for wrong in (3, -1, "d"):
        with pytest.raises(ParameterError, match=r"the model has 0 to 2 \(a b c\)"):
            model.sample_for([wrong])
    with pytest.raises(ParameterError, match="the model knows a b c, and digits has 0 1 2"):
        check_given(model, digits)
    with pytest.raises(ParameterError, match="makes 32 pixels with 1 channels: give `image_size`"):
        check_given(replace(model, image_size=32), digits)
    with pytest.raises(ParameterError, match="digits has no x, but 0 1 2"):
        of_characters(digits, "3x")


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def emnist_folder(folder, digits, lying=True, cut=0):
    "Digits as EMNIST's own files, which lie on their side."
    for part, rows in (("train", slice(0, 600)), ("test", slice(600, 900))):
        images = digits.images[rows, 0]
        stored = images.transpose(0, 2, 1) if lying else images
        data = idx(np.ascontiguousarray(stored))
        (folder / f"emnist-digits-{part}-images-idx3-ubyte").write_bytes(data[: len(data) - cut])
        (folder / f"emnist-digits-{part}-labels-idx1-ubyte").write_bytes(
            idx(digits.labels[rows].numpy()))
    return f"emnist:{folder}"


def test_emnist_is_set_upright_and_what_lies_is_noticed(digits, tmp_path):
    good = open_dataset(emnist_folder(tmp_path, digits), 28, channels=1)
    check_upright(good)
    assert np.array_equal(good.train.images, digits.images[:600])
    with pytest.raises(DataError, match=r"the 1 of emnist:.* lie on their side"):
        check_upright(open_dataset(emnist_folder(tmp_path, digits, lying=False), 28, channels=1))
    with pytest.raises(DataError, match="is cut off: remove it and download it again"):
        open_dataset(emnist_folder(tmp_path, digits, cut=100), 28, channels=1)


def test_without_a_network_emnist_says_how_to_get_it(monkeypatch):
    from torchvision.datasets import EMNIST

    def download(self):
        raise OSError("no network")

    monkeypatch.setattr(EMNIST, "download", download)
    with pytest.raises(DataError, match=r"cannot be downloaded \(no network\): fetch .* by hand"):
        open_dataset("emnist:letters", 28, channels=1)


def test_synthetic_letters_that_are_real_ones_help_who_has_few(digits):
    few = of_characters(digits, "0125")
    train, test = (
        to_image_set(t, part) for t, part in (("real", few.train), ("test", few.held_out))
    )
    half = np.arange(len(train)) % 2 == 0
    made = replace(train.select(~half), title="made")
    table = few_real(train.select(half), test, made, (1,), seeds=2, steps=25, device="cpu")
    by = table.set_index(["real_per_class", "trained_on"])
    assert by.loc[(1, "real and synthetic"), "diff_low"] > 0
    assert by.loc[(0, "synthetic"), "accuracy"] > 0.9
    nothing = ImageSet("made", made.images)
    with pytest.raises(ValueError, match="`made` has no labels"):
        few_real(train, test, nothing, (8,), device="cpu")


def test_numbers_of_images_without_labels(digits, judge):
    made = Samples(torch.randn(12, 1, 28, 28).clamp(-1, 1))
    table = epoch_numbers(judge, made, digits.held_out)
    assert set(table.metric) == {"frechet", "kernel", "class_score"}
    assert to_uint8(made.images).dtype == torch.uint8


@pytest.mark.real_data
def test_thirteen_letters_of_emnist_are_upright_and_readable(digits):
    folder = os.environ.get("SYNTH_NB_REAL_DATA")
    if not folder or not Path(folder, "emnist_letters").is_dir():
        pytest.skip("SYNTH_NB_REAL_DATA names no folder with emnist_letters")
    letters = open_dataset(f"emnist:{folder}/emnist_letters", 28, channels=1)
    assert letters.classes == list("abcdefghijklm")
    check_upright(letters)
    assert of_characters(letters, "small").classes == letters.classes
    assert judge_for(letters, steps=100, device="cpu").accuracy > 0.5


@pytest.mark.parametrize(("given", "kept"), [
    (True, "yes"), (False, "no"), ("yes", "yes"), ("no", "no"), ("auto", "auto")])
def test_upright_is_taken_as_yaml_reads_it(given, kept):
    cells = json.loads((Path(__file__).parent.parent / "nbs" / "07_emnist.ipynb").read_text())
    code = ["".join(c["source"]) for c in cells["cells"] if c["cell_type"] == "code"]
    space = dict(__name__="notebook", In=[])
    exec(next(source for source in code if "upright: str" in source), space)
    space["upright"] = given  # `upright: yes` in YAML is True
    exec(next(source for source in code if "check_parameters(globals()" in source), space)
    assert space["upright"] == space["parameters"]["upright"] == kept


def test_letters_without_labels_are_asked_for_once_at_every_step():
    unet, asked = new_unet(0, 16).eval(), []
    answer = unet.forward
    unet.forward = lambda x, *a, **k: asked.append(len(x)) or answer(x, *a, **k)
    model = LetterModel(unet, noise_schedule(), [], 16, Way(guidance_scale=2.0))
    model.sample(1)
    assert sum(asked) == model.way.questions(model.schedule, bool(model.classes)) == 12


def test_processes_share_the_parts_of_the_range_of_times(monkeypatch):
    torch.manual_seed(0)
    group, parts = torch.distributed, []
    assert (spread_times(8) // 125).tolist() == list(range(8))
    monkeypatch.setattr(group, "is_initialized", lambda: True)
    monkeypatch.setattr(group, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(group, "get_rank", lambda rank=rank: rank)
        torch.manual_seed(rank)
        parts.append(spread_times(4) // 125)
    assert torch.stack(parts, 1).flatten().tolist() == list(range(8))
