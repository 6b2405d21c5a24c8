"Judging sets of images: what is refused, what is found, and the notebook as a user runs it."

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from synth_nb.core.parameters import ParameterError
from synth_nb.data import DataError, open_dataset
from synth_nb.embedders import embed_images, load_embedder
from synth_nb.evaluation import (
    audit_copies,
    check_pair,
    evaluate_run,
    open_inputs,
    score_sets,
    score_table,
)
from synth_nb.evaluation.copies import SymmetricViews, find_copies, flag_quota, thumbnails
from synth_nb.evaluation.scores import measure_for, set_baseline, usable_groups
from synth_nb.evaluation.sets import ImageSet, parse_list, random_subset, to_image_set
from synth_nb.evaluation.useful import accuracy_intervals, missing_for_usefulness, usefulness

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def embedder():
    "A small, quick extractor."
    return load_embedder("efficientnet_lite0@32")


@pytest.fixture(scope="module")
def phantoms():
    "Images that are all different, pixels uint8 (560, 1, 48, 48)."
    return np.array(open_dataset("mr_phantom", 48, channels=1, n=560).images)


def coloured(n, seed=0, size=32, title="synthetic"):
    "A set of noise."
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 3, size, size), np.uint8)
    return ImageSet(title, pixels)


# --- what is refused


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        (coloured(5), "`synthetic` has 5 images; 12 are the least"),
        (replace(coloured(20), images=np.full((20, 3, 32, 32), 7, np.uint8)), "are equal"),
        (replace(coloured(20), images=coloured(20).images[:, :1]), "RGB and `synthetic` is grey"),
        (coloured(20, size=48), "differ in size: 32x32 and 48x48"),
    ],
)
def test_pairs_that_cannot_be_compared(fake, message):
    with pytest.raises(DataError, match=message) as e:
        check_pair(coloured(20, title="real"), fake)
    assert "\n" not in str(e.value)


def test_an_empty_folder_and_a_missing_one(tmp_path):
    (tmp_path / "empty").mkdir()
    for word, message in (("empty", "empty"), ("not there", "not there")):
        with pytest.raises((DataError, OSError), match=message):
            open_inputs("demo", str(tmp_path / word))


def test_a_run_without_a_model(tmp_path):
    manifest = dict(loader="synth_nb.diffusion.experiment:load", parameters=dict(dataset="demo"))
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FileNotFoundError, match="only its tables were kept"):
        open_inputs("", str(tmp_path))


def test_lists_of_sets():
    assert parse_list("['a b', \"c\"]") == ["a b", "c"]
    with pytest.raises(ParameterError, match="`synthetic` is no list"):
        parse_list("[a, b")


# --- numbers


def test_same_distribution_is_within_the_floor(embedder, phantoms):
    real, fake = (ImageSet(t, phantoms[i : i + 80]) for t, i in (("real", 0), ("synthetic", 100)))
    rows = score_sets(real, [fake], [embedder], n_repeats=40).set_index("metric")
    for name in ("frechet", "kernel", "coverage", "recall"):
        one = rows.loc[name]
        slack = 0.5 * (one.floor_high - one.floor_low)
        assert one.floor_low - slack <= one["at_count"] <= one.floor_high + slack, name
    assert rows.loc["frechet", "value"] < rows.loc["frechet", "at_count"]  # bias of few images
    assert rows.loc["accuracy", "p_value"] > 0.02


def test_floor_is_at_the_count_of_a_small_set(embedder, phantoms):
    real = ImageSet("real", phantoms[:100])
    fakes = [ImageSet("few", phantoms[200:220]), ImageSet("more", phantoms[300:390])]
    rows = score_sets(real, fakes, [embedder], n_repeats=20)
    counts = rows[rows.metric == "frechet"].set_index("set")["count"]
    assert counts.to_dict() == {"few": 20, "more": 50}
    assert "real against real, at 20" in score_table(rows, embedder.id).index


def test_two_sets_of_one_title_are_refused(embedder, phantoms):
    sets = [ImageSet("synthetic", phantoms[i : i + 20]) for i in (0, 20)]
    with pytest.raises(DataError, match="two sets are called 'synthetic': give each its own title"):
        score_sets(ImageSet("real", phantoms[40:80]), sets, [embedder])


def test_groups_stay_together():
    one = coloured(60)
    many = replace(one, groups=[f"p{i // 6}" for i in range(60)])
    assert usable_groups(many) == (many.groups, "")
    groups, message = usable_groups(replace(one, groups=["a"] * 30 + ["b"] * 30))
    assert groups is None and "2 groups, too few" in message
    x = torch.randn(60, 4).double() + 10 * torch.arange(60)[:, None].div(6).floor()
    seen = []
    set_baseline(lambda a, b: seen.append((a, b)) or {"m": 0.0}, x, 30, 4, groups=many.groups)
    for a, b in seen:
        patients = [set((y[:, 0] / 10).round().div(1).int().tolist()) for y in (a, b)]
        assert len(a) == len(b) and len(patients[0] & patients[1]) <= 2


def test_fid_is_named_only_where_it_is_one():
    class Standard:
        standard_fid = True

    a, b = torch.randn(2, 30, 5)
    assert "fid" in measure_for(Standard())(a, b)
    assert "fid" not in measure_for(object())(a, b)


# --- copies


def compressed(image, quality=75):
    "A grey image (1, H, W) as JPEG gives it back."
    stored = io.BytesIO()
    Image.fromarray(image[0]).save(stored, "JPEG", quality=quality)
    return np.asarray(Image.open(stored))[None]


def test_views_are_read_one_by_one(phantoms):
    views = SymmetricViews(phantoms[:10])
    assert len(views) == 80 and (views[[3]][0] == phantoms[3]).all()
    turned = [np.rot90(phantoms[3], k, (1, 2)) for k in range(4)]
    expected = {np.ascontiguousarray(x).tobytes() for t in turned for x in (t, t[..., ::-1])}
    assert {views[[10 * v + 3]].tobytes() for v in range(8)} == expected and len(expected) == 8


def test_planted_copies_are_found_and_others_left_alone(embedder, phantoms):
    train, rest = phantoms[:120], phantoms[120:]
    views, found, total, alarms, honest = SymmetricViews(train), 0, 0, 0, 0
    seen, others = [(embed_images(embedder, x), thumbnails(x)) for x in (views, rest)]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        rows = rng.choice(120, 6, replace=False)
        copies_of = [views[[120 * rng.integers(8) + r]][0] for r in rows]
        copies_of = np.stack([compressed(x) if i % 2 else x for i, x in enumerate(copies_of)])
        order = rng.permutation(len(rest))
        usual, fresh = order[:300], order[300:]
        spaces = {name: (torch.cat([f(copies_of), o[fresh]]), s, o[usual])
                  for name, f, s, o in zip(
                      ("features", "pixels"), (lambda x: embed_images(embedder, x), thumbnails),
                      seen, others, strict=True)}
        table, expected, _ = find_copies(spaces, 120)
        assert expected <= 0.01
        found, total = found + table["copy"][:6].sum(), total + 6
        alarms, honest = alarms + table["copy"][6:].sum(), honest + len(fresh)
    assert found / total >= 0.95
    assert alarms / honest <= 0.02


def test_the_share_of_false_alarms_is_kept():
    for n in (10, 99, 100, 200, 399, 1000):
        rank = int(flag_quota(0.01, n) * n + 1e-9)
        assert (rank + 1) / (n + 1) <= max(0.01, 1 / (n + 1)) + 1e-12


def test_leaked_images_take_no_part(embedder, phantoms):
    train, fake = ImageSet("training", phantoms[:60]), ImageSet("synthetic", phantoms[60:120])
    leaky = ImageSet("real", np.concatenate([phantoms[200:300], phantoms[:4]]))
    audit = audit_copies(fake, train, leaky, embedder)
    assert audit.held_out == 100 and "4 of 104 real test images" in audit.notes[0]
    with pytest.raises(DataError, match="split by patient"):
        audit_copies(fake, train, train, embedder)


def test_a_report_says_where_all_held_out_images_are_training_images_in_another_view(
    embedder, phantoms, tmp_path
):
    train, fake = ImageSet("training", phantoms[:60]), ImageSet("synthetic", phantoms[60:120])
    mirrored = ImageSet("real", np.ascontiguousarray(phantoms[:60, ..., ::-1]))
    _, audit = evaluate_run(tmp_path, mirrored, train, [fake], [embedder])
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert audit is None and "60 of 60 are training images again" in report
    assert "- not searched: see the warnings" in report


# --- usefulness


def test_what_is_missing_for_labels_is_said():
    one = replace(coloured(40), labels=torch.arange(40) % 2, classes=["a", "b"])
    assert missing_for_usefulness(one, one, one) == ""
    assert "no labels" in missing_for_usefulness(one, one, replace(one, labels=None))
    assert "one class" in missing_for_usefulness(one, replace(one, labels=0 * one.labels), one)
    assert "give `train`" in missing_for_usefulness(None, one, one)
    assert "fewer than 8 images of b" in missing_for_usefulness(
        one, one, replace(one, classes=["a", "c"])
    )


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    right = rng.random((3, 200)) < 0.7
    rows = accuracy_intervals({"real": right, "same": right.copy()}, np.arange(200) % 2)
    assert rows[1]["diff_low"] == rows[1]["diff_high"] == 0 and rows[1]["low"] < rows[1]["high"]


def test_both_classifiers_learn_and_keep_the_random_streams(embedder):
    digits = open_dataset("digits", 32, channels=1)
    two = digits.select(digits.labels < 2)
    train, test = to_image_set("training", two.train), to_image_set("real", two.held_out)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    table = usefulness(
        train, test, replace(train, title="synthetic"), embedder, 1, 25, device="cpu"
    )
    assert torch.rand(1) == expected
    assert len(table) == 6 and (table.accuracy > 0.8).all()


# --- the notebook


def test_two_folders_by_papermill(tmp_path, phantoms):
    for name, part in (("real", phantoms[:30]), ("made", phantoms[40:70])):
        (tmp_path / name).mkdir()
        for i, x in enumerate(part):
            Image.fromarray(x[0]).save(tmp_path / name / f"{i}.png")
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    parameters = dict(real=tmp_path / "real", synthetic=tmp_path / "made", channels=1,
                      n_repeats=20, eval_embedders="['efficientnet_lite0@32']", outputs=tmp_path,
                      run_name="two")
    words = [word for k, v in parameters.items() for word in ("-p", k, str(v))]
    command = [sys.executable, "-m", "papermill", ROOT / "nbs/08_evaluation.ipynb", "-", *words]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "08_evaluation" / "two"
    stored = json.loads((folder / "evaluation.json").read_text())
    assert stored["size"] == 48 and next(iter(stored["sets"])) == "real"
    assert {"sets.png", "numbers.png", "tsne.png"} <= {p.name for p in folder.glob("*.png")}
    rows = pd.read_csv(folder / "evaluation.csv")
    assert {"frechet", "kernel", "coverage", "accuracy"} <= set(rows.metric)
    report = (folder / "report.md").read_text()
    assert "the real-vs-real baseline is" in report and "without `train` nothing is known" in report
    assert json.loads((folder / "manifest.json").read_text())["status"] == "complete"


def test_draw_keeps_labels_and_images_together():
    one = replace(coloured(50), labels=torch.arange(50), classes=list(map(str, range(50))))
    short = random_subset(one, 7, seed=3)
    assert (short.images == one.images[short.labels.numpy()]).all() and len(short) == 7
