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
from synth_nb.diffusion.objective import sample_timesteps
from synth_nb.diffusion.sampling import SamplingConfig
from synth_nb.emnist.classifier import (
    epoch_scores,
    label_accuracy,
    letter_classifier,
    random_affine,
    write_epoch_scores,
)
from synth_nb.emnist.model import letter_scheduler, new_unet
from synth_nb.emnist.optimal import optimal_model
from synth_nb.emnist.pictures import show_label_aligned_images, write_gif
from synth_nb.emnist.sampling import LetterModel, denoising_trajectory, letter_sampling, load, save
from synth_nb.emnist.training import (
    check_model,
    check_state,
    check_upright,
    denoising_phase,
    of_characters,
)
from synth_nb.emnist.useful import usefulness_by_count
from synth_nb.evaluation import ImageSet
from synth_nb.evaluation.sets import to_image_set
from synth_nb.training.log import read_metrics
from synth_nb.training.loop import Trainer, TrainingConfig


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    os.environ["SYNTH_NB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return open_dataset("digits", 28, channels=1)


@pytest.fixture(scope="module")
def classifier(digits):
    return letter_classifier(digits, steps=150, device="cpu")


def trained(folder, digits, classifier, epochs=2, network="small"):
    "A run of six steps with the numbers of every epoch."
    torch.manual_seed(0)
    unet, scheduler = new_unet(10, network=network), letter_scheduler()

    def current():
        config = SamplingConfig("ddim", 2, 1.0)
        return LetterModel(trainer.model("unet"), scheduler, digits.classes, sampling=config)

    def evaluate(epoch):
        numbers = epoch_scores(classifier, current().sample(12, 0), digits.held_out, seed=0)
        return write_epoch_scores(numbers, folder, epoch, 0)

    plan = TrainingConfig(epochs, 4, 12, device="cpu", snapshot_every=1, snapshot_state=True)
    phase = denoising_phase(unet, scheduler, 10, total=6)
    trainer = Trainer(folder, Views(digits.train, "none"), dict(unet=unet), [phase], plan,
                      dict(unet=0.9), evaluate, lambda at: save(current(), at))
    trainer.fit()
    return trainer


def test_every_epoch_leaves_scores_and_a_model_that_loads_by_number(digits, classifier, tmp_path):
    run = open_run("07_emnist", dict(seed=0, outputs=str(tmp_path)), digits.describe(),
                   "synth_nb.emnist.sampling:load")
    trained(run.folder, digits, classifier)
    for epoch in (1, 2):
        table = pd.read_csv(run.folder / f"evaluation_metrics_epoch_{epoch}_random_seed.csv")
        assert set(table.metric) == {"accuracy", "ssim", "frechet", "kernel", "class_score"}
        assert (table.images == 12).all() and (table.real_images == len(digits.held_out)).all()
        assert table.real_against_real.notna().all()
    log = read_metrics(run.folder)
    assert [row["epoch"] for row in log] == [1, 2] and "accuracy_classifier@28" in log[0]
    first, second = (load_model(run, "cpu", epoch=n).sample(3, 1).images for n in (1, 2))
    assert not torch.equal(first, second)
    with pytest.raises(FileNotFoundError, match=r"epoch_7 was not saved in .*: there are 1, 2"):
        load_model(run, "cpu", epoch=7)
    with pytest.raises(FileNotFoundError, match=r"state of epoch 7 was not stored in .*are 1, 2"):
        check_state(new_unet(10), run.folder, 7)
    with pytest.raises(ParameterError, match=r"1.14 million weights and `network` has 6.9"):
        check_state(new_unet(10, network="middle"), run.folder, 1)
    check_state(new_unet(10), run.folder, 2)


def test_the_classifier_is_right_on_held_out_digits_that_it_never_saw(digits, classifier):
    assert classifier.accuracy > 0.95  # 0.985 after 120 steps without AVX
    pixels = torch.tensor(digits.held_out.images)
    found = label_accuracy(classifier, pixels, digits.held_out.labels)
    assert found["confusion"].sum() == len(digits.held_out) == found["images"]
    assert found["low"] < classifier.accuracy <= found["high"]
    part = digits.select([i for i, s in enumerate(digits.split) if s == "train"][:200]
                         + [i for i, s in enumerate(digits.split) if s == "val"])
    assert letter_classifier(part, 20, device="cpu").revision != classifier.revision


def test_letters_are_turned_and_moved_but_never_mirrored():
    torch.manual_seed(0)
    corner = torch.full((300, 1, 28, 28), -1.0)
    corner[:, :, 4:24, 4:8] = 1  # an upright stroke at the left and a foot to the right: L
    corner[:, :, 20:24, 4:24] = 1
    ink = (random_affine(corner) + 1)[:, 0]
    left, right = ink[:, :14, :14].sum((1, 2)), ink[:, :14, 14:].sum((1, 2))
    assert (left > right).all()


def test_epsilon_and_velocity_unconditional_and_padded_networks_sample():
    for prediction_type in ("epsilon", "v_prediction"):
        scheduler = letter_scheduler(prediction_type)
        free = LetterModel(new_unet(0).eval(), scheduler, [], sampling=SamplingConfig("dpm++", 2))
        assert free.sample(2).images.shape == (2, 1, 28, 28) and free.sample(2).labels is None
    with torch.device("meta"):
        unet = new_unet(52, network="documented")
    assert unet.config.sample_size == 32 and unet.num_parameters() > 113e6


def test_a_saved_model_gives_the_same_letters(digits, tmp_path):
    model = LetterModel(new_unet(10).eval(), letter_scheduler(), digits.classes,
                        sampling=SamplingConfig("ddpm", 3))
    save(model, tmp_path)
    again = load(tmp_path)
    assert torch.equal(again.sample(4, 5).images, model.sample(4, 5).images)
    two, more = model.sample(2, 5).images, model.sample(4, 5).images[:2]
    assert_near(two, more, rel=1e-3)  # the same letters, however many are made at once


def test_sheets_and_animation_are_written(digits, tmp_path):
    held = digits.held_out
    path = tmp_path / "label_aligned_samples_epoch_3_run_1.png"
    show_label_aligned_images(torch.tensor(held.images), held.labels, held.classes, path, rows=3)
    assert path.stat().st_size > 1000
    optimal = optimal_model(to_float(torch.tensor(held.images)), held.labels, held.classes,
                            letter_scheduler())
    film = write_gif(
        denoising_trajectory(optimal, "3", sampler="ddim", sampling_steps=4), tmp_path / "a.gif"
    )
    assert film.read_bytes()[:3] == b"GIF"
    with pytest.raises(ParameterError, match="label 10 is outside the 10 classes"):
        show_label_aligned_images(torch.tensor(held.images[:1]), torch.tensor([10]), held.classes)


def test_wrong_labels_and_models_are_refused(digits):
    model = LetterModel(new_unet(3).eval(), letter_scheduler(), list("abc"))
    for wrong in (3, -1, "d"):
        with pytest.raises(ParameterError, match=r"the model has 0 to 2 \(a b c\)"):
            model.sample_for([wrong])
    with pytest.raises(ParameterError, match="the model knows a b c, and digits has 0 1 2"):
        check_model(model, digits)
    with pytest.raises(ParameterError, match="makes 32 pixels with 1 channels: give `image_size`"):
        check_model(replace(model, image_size=32), digits)
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


def test_synthetic_letters_that_are_real_ones_help_where_real_ones_are_few(digits):
    part = of_characters(digits, "0125")
    train, test = to_image_set("real", part.train), to_image_set("test", part.held_out)
    half = np.arange(len(train)) % 2 == 0
    synthetic = replace(train.select(~half), title="synthetic")
    table = usefulness_by_count(train.select(half), test, synthetic, (1,), n_draws=2, steps=25,
                                device="cpu")
    by = table.set_index(["real_per_class", "trained_on"])
    assert by.loc[(1, "real and synthetic"), "diff_low"] > 0
    assert by.loc[(0, "synthetic"), "accuracy"] > 0.9
    nothing = ImageSet("unlabelled", synthetic.images)
    with pytest.raises(ValueError, match="`unlabelled` has no labels"):
        usefulness_by_count(train, test, nothing, (8,), device="cpu")


def test_numbers_of_images_without_labels(digits, classifier):
    samples = Samples(torch.randn(12, 1, 28, 28).clamp(-1, 1))
    table = epoch_scores(classifier, samples, digits.held_out)
    assert set(table.metric) == {"frechet", "kernel", "class_score", "ssim"}
    row = table.set_index("metric").loc["ssim"]
    assert row.value < row.real_against_real / 2  # noise against digits of any class
    assert to_uint8(samples.images).dtype == torch.uint8


@pytest.mark.real_data
def test_thirteen_letters_of_emnist_are_upright_and_readable(digits):
    folder = os.environ.get("SYNTH_NB_REAL_DATA")
    if not folder or not Path(folder, "emnist_letters").is_dir():
        pytest.skip("SYNTH_NB_REAL_DATA names no folder with emnist_letters")
    letters = open_dataset(f"emnist:{folder}/emnist_letters", 28, channels=1)
    assert letters.classes == list("abcdefghijklm")
    check_upright(letters)
    assert of_characters(letters, "small").classes == letters.classes
    assert letter_classifier(letters, steps=100, device="cpu").accuracy > 0.5


@pytest.mark.parametrize(("value", "stored"), [
    (True, "yes"), (False, "no"), ("yes", "yes"), ("no", "no"), ("auto", "auto")])
def test_upright_is_taken_as_yaml_reads_it(value, stored):
    cells = json.loads((Path(__file__).parent.parent / "nbs" / "07_emnist.ipynb").read_text())
    code = ["".join(c["source"]) for c in cells["cells"] if c["cell_type"] == "code"]
    space = dict(__name__="notebook", In=[])
    exec(next(source for source in code if "upright: str" in source), space)
    space["upright"] = value  # `upright: yes` in YAML is True
    exec(next(source for source in code if "check_parameters(globals()" in source), space)
    assert space["upright"] == space["parameters"]["upright"] == stored


def test_letters_without_labels_take_one_evaluation_at_every_step():
    unet, rows = new_unet(0, 16).eval(), []
    forward = unet.forward
    unet.forward = lambda x, *a, **k: rows.append(len(x)) or forward(x, *a, **k)
    model = LetterModel(unet, letter_scheduler(), [], 16, letter_sampling(guidance_scale=2.0))
    model.sample(1)
    assert sum(rows) == model.sampling.evaluations(model.scheduler, bool(model.classes)) == 12


def test_processes_share_the_parts_of_the_range_of_timesteps(monkeypatch):
    torch.manual_seed(0)
    group, parts = torch.distributed, []
    assert (sample_timesteps(8, "stratified") // 125).tolist() == list(range(8))
    monkeypatch.setattr(group, "is_initialized", lambda: True)
    monkeypatch.setattr(group, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(group, "get_rank", lambda rank=rank: rank)
        torch.manual_seed(rank)
        parts.append(sample_timesteps(4, "stratified") // 125)
    assert torch.stack(parts, 1).flatten().tolist() == list(range(8))


def test_models_of_earlier_versions_load_under_the_present_names(tmp_path):
    model = LetterModel(new_unet(3).eval(), letter_scheduler(), list("abc"),
                        sampling=SamplingConfig("ddim", 3, 2.0, (0.2, 0.9)))
    save(model, tmp_path)
    way = dict(sampler="ddim", sampling_steps=3, guidance_scale=2.0, guided_from=0.9, guided_to=0.2)
    old = dict(classes=list("abc"), image_size=28, way=way)
    (tmp_path / "letters.json").write_text(json.dumps(old))
    again = load(tmp_path)
    assert again.sampling == model.sampling
    assert torch.equal(again.sample(2, 1).images, model.sample(2, 1).images)
