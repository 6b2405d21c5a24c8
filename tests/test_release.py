"""Releases without copies: what they refuse, whose training images they search, and what stops
them; and their benchmark in little."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from synth_nb.core import runs
from synth_nb.core.parameters import ParameterError
from synth_nb.core.runs import LOADERS, load_model
from synth_nb.data import DataError
from synth_nb.diffusion.sets import sample_dataset
from synth_nb.evaluation.release import conformal_p, one_of_each
from synth_nb.tools.share import tiny_run

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import release as benchmark  # noqa: E402

SMALL = dict(embedder="efficientnet_lite0@32")


def test_planted_copies_are_refused_and_unseen_images_are_not():
    table = benchmark.main(["--quick"])["refused"]
    assert table.drop("unseen real").min() >= 0.95
    assert table["unseen real"] <= 0.05 + 0.02  # 20 repeats: standard error 0.01


def test_the_share_refused_keeps_alpha_for_every_number_of_unseen_images():
    for alpha, units in ((0.05, 19), (0.05, 23), (0.1, 150), (0.5, 1)):
        scores = torch.from_numpy(np.random.default_rng(units).random((20000, units + 1)))
        refused = [conformal_p(row[:1], row[1:]) <= alpha + 1e-9 for row in scores[:4000]]
        share, promised = torch.cat(refused).double().mean(), int(alpha * (units + 1) + 1e-9)
        assert abs(share - promised / (units + 1)) < 0.02, (alpha, units, share)


def test_a_group_gives_one_score():
    groups = ["a"] * 5 + ["b"] + ["c"] * 4
    drawn = [one_of_each(groups, 10, seed) for seed in range(40)]
    assert all(sorted(groups[i] for i in rows) == ["a", "b", "c"] for rows in drawn)
    assert {int(rows[0]) for rows in drawn} == set(range(5))


def test_every_loaded_model_has_a_release(monkeypatch, tmp_path):
    class Loaded:
        sample = staticmethod(lambda n, seed=0: None)

    monkeypatch.setattr(runs.importlib, "import_module",
                        lambda name: type("Module", (), dict(load=lambda *_: Loaded())))
    (tmp_path / "model").mkdir()
    for loader in LOADERS:
        (tmp_path / "manifest.json").write_text(f'{{"loader": "{loader}"}}')
        assert callable(load_model(tmp_path).release)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNTH_NB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("IN_TEST", "1")
        yield tiny_run()


def test_a_release_is_drawn_from_the_images_of_the_seed(run):
    model = load_model(run, "cpu")
    found = model.release(8, 0.1, seed=3, **SMALL)
    assert len(found) == 8 and found.record["train"] > 300
    for number, image in zip(found.numbers, found.images, strict=True):
        assert torch.allclose(model.sample(1, 3, first=number).images[0], image, atol=1e-4)


def test_a_release_wants_the_training_images_as_they_were(run):
    manifest = runs.read_manifest(run)
    changed = runs.Run(run, dict(manifest))
    model = load_model(run, "cpu")
    try:
        changed.update(data=manifest["data"] | dict(fingerprint="0"))
        with pytest.raises(DataError, match=r"holds other images now.*give `train` and `held_out`"):
            model.release(8, **SMALL)
        changed.update(parameters=manifest["parameters"] | dict(dataset="no/such/folder"))
        with pytest.raises(DataError, match=r"cannot be opened.*give `train` and `held_out`"):
            model.release(8, **SMALL)
        changed.update(parameters={})
        with pytest.raises(DataError, match=r"cannot be opened.*give `train` and `held_out`"):
            model.release(8, **SMALL)
    finally:
        changed.update(**manifest)


def test_a_release_as_a_data_set(run, tmp_path):
    with pytest.raises(ParameterError, match="draws in one process"):
        sample_dataset(run, 8, tmp_path / "set", alpha=0.1, num_processes=2)
    with pytest.raises(ParameterError, match="needs the model's run folder"):
        sample_dataset(object(), 8, tmp_path / "set", alpha=0.1)
    with pytest.raises(ParameterError, match=r"`alpha` must be 0.001 … 0.5, got 0.6"):
        sample_dataset(run, 8, tmp_path / "set", alpha=0.6, **SMALL)
