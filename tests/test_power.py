"Power: what is refused, what a table is made of, and the sentences in every report."

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from synth_nb.core.parameters import ParameterError
from synth_nb.embedders import load_embedder
from synth_nb.evaluation import evaluate_run, sentences, write_report
from synth_nb.evaluation.power import (
    Grams,
    chooser,
    draw_scores,
    exchange_alarms,
    fault_pool,
    make_pools,
    power_table,
    split_pool,
    take_draws,
    threshold,
    with_fault,
)
from synth_nb.evaluation.scores import score_sets
from synth_nb.evaluation.sentences import library_table, own_power, power_sentences
from synth_nb.evaluation.sets import ImageSet
from synth_nb.evaluation.worlds import FAULTS, make_world


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNTH_NB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def embedder():
    return load_embedder("efficientnet_lite0@32")


@pytest.fixture(scope="module")
def pools(embedder):
    return make_pools(make_world("letters", 90, 32), embedder)


def test_what_no_study_can_be_made_of_is_refused(embedder):
    world = make_world("letters", 70, 32)
    alike = ImageSet("alike", np.repeat(world.images[:1], 70, 0))
    for worlds, counts, words in [
        ([world], [19], "20 or more"), ([world], [24], "72 are the least"),
        ([alike], [20], "are equal"),
    ]:
        with pytest.raises(ParameterError, match=words):
            power_table(worlds, embedder, counts)


@pytest.mark.parametrize("draws", [1, 18, 19, 20, 39, 59, 99, 100])
def test_a_threshold_holds_its_level_with_any_number_of_draws(draws):
    "Of exchangeable draws the next one lies beyond it in 5 % at most, and not much less often."
    rng = np.random.default_rng(draws)
    values = rng.normal(size=(4000, draws + 1))
    share = np.mean([row[-1] > threshold(row[:-1]) for row in values])
    rank = int(0.05 * (draws + 1) + 1e-9)
    assert share <= 0.05 + 0.012 and abs(share - rank / (draws + 1)) < 0.012


def test_classes_with_less_than_three_images_are_left_out(pools):
    grams = Grams(pools, pools.pool)
    labels = pools.pool.labels
    rows = np.concatenate([np.flatnonzero(labels == 0)[:6], np.flatnonzero(labels == 1)[:2]])
    a, b = torch.from_numpy(rows[[0, 1, 2, 6]]), torch.from_numpy(rows[[3, 4, 5, 7]])
    rng = np.random.default_rng(0)
    score = {"kernel_by_class"}
    both = draw_scores(grams, a, b, labels[b.numpy()], score, rng)
    one = draw_scores(grams, a[:3], b[:3], labels[b[:3].numpy()], score, rng)
    none = draw_scores(grams, a[:2], b[:2], labels[b[:2].numpy()], score, rng)
    assert both == one and np.isfinite(one["kernel_by_class"]) and np.isnan(none["kernel_by_class"])


def test_real_and_generated_rows_of_a_draw_share_no_image(pools):
    for fault in ("blur", "dropped", "labels", "copies"):
        severity = FAULTS[fault].severities[1]
        pool, behind = fault_pool(pools, fault, severity)
        left = np.arange(30, 81)
        rows, labels = chooser(pool, fault, severity, behind)(20, left, np.random.default_rng(0))
        assert len(rows) == len(labels) == 20
        assert set(rows) <= set(left) | set(range(81, 81 + behind)), fault
        assert len(set(rows[rows < 81])) == (rows < 81).sum()
        assert (rows >= 81).sum() == (2 if fault == "copies" else 0)


def test_a_plain_fault_is_noticed_and_none_is_not(pools):
    plain = Grams(pools, pools.pool)
    null = take_draws(plain, chooser(pools.pool, "", 0, 0), 24, {"kernel", "copies"}, 39, [1])
    for fault, score in (("blur", "kernel"), ("copies", "copies")):
        pool, behind = fault_pool(pools, fault, FAULTS[fault].severities[2])
        choose = chooser(pool, fault, FAULTS[fault].severities[2], behind)
        found = take_draws(Grams(pools, pool), choose, 24, {score}, 12, [2])[score]
        assert np.mean(found > threshold(null[score])) > 0.9, fault
    rows = with_fault(pools, plain.real, "blur", {24: null}, 12, 2, FAULTS["blur"].severities[2:],
                      {"kernel"})
    assert [row["power"] > 0.9 for row in rows] == [True]
    again = take_draws(plain, chooser(pools.pool, "", 0, 0), 24, {"kernel"}, 39, [3])["kernel"]
    assert np.mean(again > threshold(null["kernel"])) < 0.25


def test_every_report_begins_with_the_sentences(embedder, tmp_path):
    world = make_world("letters", 60, 32)
    real, fake = world.select(range(30)), world.select(range(30, 60))
    real.title, fake.title = "real", "drawn"
    rows = score_sets(real, [fake], [embedder], n_repeats=20)
    report = write_report(tmp_path, rows, real, [fake], [embedder])
    stored = json.loads((tmp_path / "evaluation.json").read_text())["power"]
    head = report.partition("## What was compared")[0]
    assert head.startswith("# Evaluation\n\n## What this evaluation can notice\n")
    assert stored["n"] == 15 and "15 images are too few" in head
    rows["count"] = 64
    write_report(tmp_path, rows, real, [fake], [embedder])
    stored = json.loads((tmp_path / "evaluation.json").read_text())["power"]
    kinds = {FAULTS[one["fault"]].kind for one in stored["faults"]}
    assert len(stored["sentences"]) in (2, 3, 4) and kinds == {"rows", "pixels", "labels"}


def test_the_library_has_a_table_with_its_origin():
    rows, about = library_table()
    assert set(rows.fault) <= set(FAULTS) and rows.power.between(0, 1).all()
    assert (rows.low <= rows.power + 1e-9).all() and (rows.power <= rows.high + 1e-9).all()
    assert {"worlds", "run", "date", "commit", "counts"} <= about.keys()
    for _, part in rows.groupby(["embedder", "fault", "severity"]):
        assert part.power.is_monotonic_increasing and part.metric.nunique() == 1
    sentences = power_sentences(64, rows.embedder[0])["sentences"]
    assert sentences[0].startswith("With 64 images this evaluation notices ")


def test_a_table_says_no_more_than_all_its_worlds_do():
    "Noticed where every world does, missed where none does and as many images were tried."
    low, high = zip((0.3, 0.5), (0.3, 0.9), (0.85, 0.9), strict=True)
    rows = pd.DataFrame(dict(embedder="e", fault="blur", severity=FAULTS["blur"].severities, n=64,
                             metric="kernel", power=high, low=low, high=high))
    table = rows, dict(worlds=["a", "b"], run="r", date="2026-11-30")
    found = power_sentences(64, "e", table=table)
    assert [one["verdict"] for one in found["faults"]] == ["missed", "unsure", "noticed"]
    assert "depends on the images whether it notices a blur of one pixel (0.3 to 0.9)" in str(found)
    beyond = power_sentences(999, "e", table=table)["faults"]
    assert [one["verdict"] for one in beyond] == ["unsure", "unsure", "noticed"]


def test_own_images_give_what_larger_samples_of_the_same_kind_give(embedder, pools):
    "Blur, stated by a hundred images, against what another pool of the same world shows."
    world = make_world("letters", 100, 32, first=500)
    rows, about = own_power(world, None, embedder, 24, draws=40)
    assert about["own"] == 100 and set(rows.n) == {20, 24}
    assert (rows.power == rows.low).all() and not rows.fault.str.contains("copies").any()
    stated = rows[(rows.fault == "blur") & (rows.n == 24)].set_index("severity").power
    null = take_draws(Grams(pools, pools.pool), chooser(pools.pool, "", 0, 0), 24, {"frechet"}, 99,
                      [1])["frechet"]
    for severity, power in stated.items():
        pool, behind = fault_pool(pools, "blur", severity)
        found = take_draws(Grams(pools, pool), chooser(pool, "blur", severity, behind), 24,
                           {"frechet"}, 60, [2])["frechet"]
        assert abs(np.mean(found > threshold(null)) - power) < 0.45  # four standard errors


def test_own_power_looks_below_a_severity_that_is_noticed_and_above_one_that_is_not(monkeypatch):
    power, used = dict(blur=0.9, noise=0.3), []

    def with_fault(pools, real, fault, nulls, draws, seed, severities, scores):
        used.extend(severities)
        return [dict(fault=fault, power=power[fault])]

    monkeypatch.setattr(sentences, "with_fault", with_fault)
    monkeypatch.setattr(sentences, "take_draws", lambda *rest: dict(kernel=np.zeros(3)))
    for name in ("make_pools", "Grams", "chooser"):
        monkeypatch.setattr(sentences, name, lambda *rest: SimpleNamespace(pool=0, real=0))
    sentences._own_rows(None, None, None, [24], 3, 0, dict.fromkeys(power, "kernel"))
    (slight, middle, _), (_, other, plainest) = (FAULTS[fault].severities for fault in power)
    assert used == [middle, slight, other, plainest]


def test_a_number_between_two_of_the_table_lies_between_their_powers():
    rows, _ = library_table()
    low, high = sorted(rows.n.unique())[:2]
    found = [power_sentences(int(n), rows.embedder[0])["faults"]
             for n in (low, (low + high) // 2, high)]
    for a, b, c in zip(*found, strict=True):
        assert a["power"] - 0.01 <= b["power"] <= c["power"] + 0.01


def test_false_alarms_are_those_of_the_level(pools):
    "Studies decided by exchange: 5 % on average, whatever the score; counts may give fewer."
    plain = Grams(pools, pools.pool)
    wanted = {"frechet", "kernel", "recall", "vendi"}
    alarms = exchange_alarms(plain, chooser(pools.pool, "", 0, 0), 20, wanted, [1], 240)
    for name, found in alarms.items():
        assert len(found) == 240
        assert (0.02 if name in ("frechet", "kernel") else 0) < np.mean(found) <= 0.1, name


def test_an_exchange_notices_what_the_table_says_it_does(pools):
    pool, behind = fault_pool(pools, "blur", FAULTS["blur"].severities[2])
    choose = chooser(pool, "blur", FAULTS["blur"].severities[2], behind)
    grams = Grams(pools, pool)
    found = exchange_alarms(grams, choose, 24, {"kernel", "frechet"}, [2], 20)
    assert all(np.mean(x) > 0.8 for x in found.values())
    assert exchange_alarms(grams, choose, 60, {"kernel"}, [2], 20) == {}  # 81 images are too few


def test_no_patient_is_on_both_sides(embedder):
    "Real images of a draw, and what is left for the generator, share no group."
    world = make_world("letters", 100, 32)
    groups = [f"patient {i // 7}" for i in range(100)]
    rng, within = np.random.default_rng(0), np.arange(5, 95)
    for _ in range(50):
        a, left = split_pool(within, 30, groups, rng)
        assert len(a) == 30 and set(a) | set(left) <= set(within)
        assert not {groups[i] for i in a} & {groups[i] for i in left}
    many = ImageSet("p", world.images, world.labels, world.classes, groups)
    rows, about = own_power(many, None, embedder, 30, draws=20)
    assert about["groups"] == 15 and len(rows)
    big = ImageSet("p", world.images, world.labels, world.classes, ["a"] * 80 + groups[80:])
    found = own_power(big, None, embedder, 30, draws=20)
    assert found is not None and found[1]["groups"] == 0  # too few groups to draw by


def test_a_report_measures_its_powers_on_its_own_images(embedder, tmp_path):
    world = make_world("letters", 210, 32)
    sets = [world.select(range(a, a + 70)) for a in (0, 70, 140)]
    for one, title in zip(sets, ("real", "training", "synthetic"), strict=True):
        one.title = title
    real, train, fake = sets
    evaluate_run(tmp_path, real, train, [fake], [embedder], power_draws=20)
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert stored["power"]["table"]["own"] == 70 and stored["power"]["n"] == 35
    assert "measured on 70 of these real images" in (tmp_path / "report.md").read_text()
    p = {row["metric"]: row["p_value"] for row in stored["numbers"]}
    assert p["frechet"] > 0.025 and p["kernel"] > 0.025 and p["vendi"] is None
    evaluate_run(tmp_path, real, train, [fake], [embedder], power_draws=0)
    assert "own" not in json.loads((tmp_path / "evaluation.json").read_text())["power"]["table"]
