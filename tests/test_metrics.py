"Metrics on odd input: what is refused, what equals give, and what must not matter."

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from synth_nb.metrics import (
    PRDC,
    CopyScores,
    FrechetDistance,
    KernelDistance,
    authenticity,
    classifier_two_sample_test,
    confidence_interval,
    copy_scores,
    frechet_distance,
    frechet_infinity,
    inception_score,
    kernel_distance,
    kernel_distance_subsets,
    mean_pairwise_distance,
    membership_auc,
    ms_ssim,
    nearest_neighbour,
    pairwise_ssim,
    perceptual_distance,
    prdc,
    real_baseline,
    ssim,
    train_test_gap,
    vendi_score,
)
from synth_nb.metrics.scores import _cross_accuracy, _fit_logistic, _labels, _standardised
from synth_nb.training.processes import launch, this_process


def normal(n, width, seed=0, scale=1.0, shift=0.0):
    "Independent normal features."
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, width, generator=generator).double() + shift


PAIRS = {
    "frechet_distance": frechet_distance,
    "frechet_infinity": frechet_infinity,
    "kernel_distance": kernel_distance,
    "kernel_distance_subsets": lambda a, b: kernel_distance_subsets(a, b, 3, 10)["mean"],
    "prdc": lambda a, b: prdc(a, b, 3)["coverage"],
    "nearest_neighbour": lambda a, b: nearest_neighbour(a, b)[0].sum().item(),
    "classifier_two_sample_test": lambda a, b: classifier_two_sample_test(
        a, b, permutations=1)["accuracy"],
    "authenticity": authenticity,
    "membership_auc": lambda a, b: membership_auc(a, a, b),
    "train_test_gap": lambda a, b: train_test_gap(a, a, b),
    "copy_scores": lambda a, b: copy_scores(a[:5], a, b)["threshold"],
    "confidence_interval": lambda a, b: confidence_interval(
        frechet_distance, a, b, n_repeats=20)["low"],
    "vendi_score": lambda a, b: vendi_score(a) + vendi_score(b),
    "mean_pairwise_distance": lambda a, b: mean_pairwise_distance(a) + mean_pairwise_distance(b),
}
BAD = {
    "NaN or infinity": (torch.tensor([[0.0, torch.nan]] * 30), torch.zeros(30, 2)),
    "NaN or infinity|NaN": (torch.zeros(30, 2), torch.tensor([[torch.inf, 0.0]] * 30)),
    "must be real numbers": (torch.zeros(0, 2), torch.zeros(0, 2)),
    "must be real numbers|differ": (torch.zeros(30), torch.zeros(30)),
    "N, D": (torch.zeros(30, 0), torch.zeros(30, 0)),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("sentence", BAD)
def test_bad_features_are_refused_in_one_sentence(name, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        PAIRS[name](*BAD[sentence])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(PAIRS.keys() - {"vendi_score", "mean_pairwise_distance"}))
def test_different_widths_are_refused(name):
    with pytest.raises(ValueError, match=r"widths differ: \[\d, \d"):
        PAIRS[name](normal(30, 3), normal(30, 4))


# what equal images throughout give, by definition
EQUAL = {
    "frechet_distance": 0,
    "frechet_infinity": 0,
    "kernel_distance": 0,
    "kernel_distance_subsets": 0,
    "prdc": 0,
    "nearest_neighbour": 0,
    "classifier_two_sample_test": 0.5,
    "authenticity": 0,
    "membership_auc": 0.5,
    "train_test_gap": 0,
    "confidence_interval": 0,
    "vendi_score": 2,
    "mean_pairwise_distance": 0,
}


@pytest.mark.parametrize("value", [0.0, 0.3, 1e3, -7e-4])
@pytest.mark.parametrize("name", EQUAL)
def test_equal_images_give_what_follows_from_the_definition(name, value):
    same = torch.full((30, 5), value)
    scale = max(1.0, (value * value + 1) ** 3)  # the cubic kernel's own size
    assert PAIRS[name](same, same) == pytest.approx(EQUAL[name], abs=1e-9 * scale)


@pytest.mark.parametrize("name", sorted(PAIRS.keys() - {"classifier_two_sample_test"}))
def test_a_constant_feature_is_harmless(name):
    a, b = normal(40, 4), normal(50, 4, 1, 1.2)
    c, d = (torch.cat([x, torch.full((len(x), 1), 0.1)], 1) for x in (a, b))
    found = PAIRS[name](c, d)
    assert np.isfinite(found)
    if not name.startswith(("kernel", "train_test", "vendi")):  # which mind the width or the origin
        assert found == pytest.approx(PAIRS[name](a, b), rel=1e-9)


@pytest.mark.parametrize(
    "name", sorted(PAIRS.keys() - {"classifier_two_sample_test", "confidence_interval"}))
def test_numpy_float32_and_gradients_change_nothing(name):
    a, b = normal(40, 4).float(), normal(50, 4, 1, 1.2).float()
    expected = PAIRS[name](a.double(), b.double())
    assert PAIRS[name](a.numpy(), b.numpy()) == pytest.approx(expected, rel=1e-9)
    assert PAIRS[name](a.requires_grad_(), b) == pytest.approx(expected, rel=1e-6)


def test_global_random_numbers_are_left_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    a, b = normal(40, 3), normal(40, 3, 1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    calls = [lambda: confidence_interval(kernel_distance, a, b, n_repeats=20),
             lambda: real_baseline(prdc, a, 15), lambda: frechet_infinity(a, b),
             lambda: classifier_two_sample_test(a, b, permutations=2),
             lambda: kernel_distance_subsets(a, b, 3, 10), lambda: inception_score(a.softmax(1), 4)]
    for call in calls:
        assert call() == call()
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


# distances


@pytest.mark.parametrize("n, m", [(400, 500), (30, 40), (400, 40)])
def test_dead_features_add_nothing_to_a_frechet_distance(n, m):
    a, b = normal(n, 60), normal(m, 60, 1, 1.3)
    dead = [torch.cat([x, x.new_zeros(len(x), 200)], 1) for x in (a, b)]
    assert frechet_distance(*dead) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    size = dead[0].var(0).sum().item()  # of the terms whose difference is 0
    assert frechet_distance(dead[0], dead[0]) == pytest.approx(0, abs=1e-8 * size)


def test_frechet_does_not_depend_on_the_origin():
    a, b = normal(300, 20), normal(200, 20, 1, 1.1, 0.2)
    expected = frechet_distance(a, b)
    assert frechet_distance(a + 1e4, b + 1e4) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_infinity_takes_the_bias_out_and_may_leave_the_real_set_complete():
    draws = [(normal(300, 12, 2 * i), normal(300, 12, 2 * i + 1)) for i in range(20)]
    both, one, plain = (
        np.mean([f(a, b) for a, b in draws])
        for f in (
            frechet_infinity,
            lambda a, b: frechet_infinity(a, b, both=False),
            frechet_distance,
        )
    )
    assert abs(both) < plain / 4
    assert plain / 3 < one < plain * 2 / 3  # half of the bias is the real set's


def test_kernel_subsets_are_numpys_and_the_kernel_is_plain():
    a, b = normal(60, 7), normal(50, 7, 1, 1.2)
    rng, values = np.random.RandomState(2020), []

    def kernel(x, y):
        return (x @ y.T / 7 + 1) ** 3

    for _ in range(5):
        x, y = (z.numpy()[rng.choice(len(z), 20, replace=False)] for z in (a, b))
        others = [kernel(z, z)[~np.eye(20, dtype=bool)].mean() for z in (x, y)]
        values.append(sum(others) - 2 * kernel(x, y).mean())
    found = kernel_distance_subsets(a, b, 5, 20, 2020)
    assert found["mean"] == pytest.approx(np.mean(values), rel=1e-9)
    assert found["std"] == pytest.approx(np.std(values), rel=1e-9)


MEMORY = """
import resource, torch
from synth_nb.metrics import {name}
torch.manual_seed(0)
a, b = torch.randn({n}, {width}), torch.randn({n}, {width})
{name}(a[:600], b[:600])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{name}(a, b{options})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory as Linux does")
@pytest.mark.parametrize(
    "name, n, width, options, least",
    [
        ("prdc", 6000, 4, ", chunk=512", 6000**2 * 8),
        ("nearest_neighbour", 6000, 4, ", chunk=512", 6000**2 * 8),
        ("kernel_distance", 6000, 4, ", chunk=512", 6000**2 * 8),
        ("frechet_distance", 120000, 200, "", 120000 * 200 * 8),
    ],
)
def test_memory_is_bounded_by_the_chunk(name, n, width, options, least):
    program = MEMORY.format(name=name, n=n, width=width, options=options)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) * 2**20 < 0.5 * least


# scores


def test_inception_score_cuts_as_published_and_shuffles_first():
    p = normal(103, 6, scale=3).softmax(1)
    order = np.random.RandomState(3).permutation(103)
    q, scores = p.numpy()[order], []
    for i in range(10):
        part = q[i * 103 // 10 : (i + 1) * 103 // 10]
        scores.append(np.exp((part * np.log(part / part.mean(0))).sum(1).mean()))
    found = inception_score(p, 10, seed=3)
    assert found["mean"] == pytest.approx(np.mean(scores), rel=1e-9)
    assert found["std"] == pytest.approx(np.std(scores), rel=1e-9)
    by_class = torch.eye(5).repeat_interleave(20, 0)
    assert inception_score(by_class, 5)["mean"] > 4  # unshuffled it would be 1


@pytest.mark.parametrize("p", [torch.zeros(5, 3), torch.full((5, 3), 0.5), torch.eye(3) * 2 - 0.5])
def test_what_is_no_probability_is_refused(p):
    with pytest.raises(ValueError, match="rows of sum 1"):
        inception_score(p)


@pytest.mark.parametrize("n", [7, 8, 9, 200])
def test_vendi_is_the_same_by_either_matrix(n):
    x = normal(n, 8, shift=0.5)
    x[2] = 0
    unit = np.concatenate([x.numpy(), (x == 0).all(1, keepdim=True).numpy()], 1)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / n)
    values = values[values > 1e-12]
    expected = np.exp(-(values * np.log(values)).sum())
    assert vendi_score(x) == pytest.approx(expected, rel=1e-9)
    assert vendi_score(1e-200 * x) == pytest.approx(expected, rel=1e-9)


def two_kinds(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    "Features of two sets of n, labels with three shufflings, parts."
    x = torch.cat([normal(n, d), normal(n, d, 1, shift=0.3)])
    parts = torch.arange(n) % 5
    labels = _labels(parts, 3, torch.Generator().manual_seed(0))
    return x, labels, torch.cat([parts, parts])


def test_fitting_in_the_span_of_the_images_changes_no_decision():
    x, labels, parts = two_kinds(30, 90)
    full = (x - x.mean(0)) / x.std(0)
    assert _standardised(x).shape == (60, 60)
    rotated = _cross_accuracy(_standardised(x), labels, parts)
    assert torch.allclose(rotated, _cross_accuracy(full, labels, parts), atol=1.1 / 60)  # one image


@pytest.mark.parametrize("d", [4, 90])
def test_regressions_fitted_together_are_those_of_scikit_learn(d):
    from sklearn.linear_model import LogisticRegression

    x, labels, parts = two_kinds(60, d)
    x, some = _standardised(x), parts > 0
    together = _fit_logistic(x[some], labels[some])
    for w, column in zip(together.T, labels.T, strict=True):
        one = LogisticRegression(C=0.1, max_iter=9999, tol=1e-8).fit(x[some], column[some])
        expected = np.append(one.coef_[0], one.intercept_)
        assert w.numpy() == pytest.approx(expected, abs=1e-3 * abs(expected).max())


def test_shuffled_labels_stay_balanced_in_every_part():
    parts = torch.arange(23) % 5
    labels = _labels(parts, 50, torch.Generator().manual_seed(0))
    for part in range(5):
        rows = torch.cat([parts, parts]) == part
        assert (labels[rows].sum(0) == rows.sum() / 2).all()
    assert len(labels.T.unique(dim=0)) == 51


def test_the_two_sample_test_balances_the_sets():
    found = classifier_two_sample_test(normal(40, 3), normal(200, 3, 1), permutations=19)
    assert found["images"] == 40
    small = classifier_two_sample_test(normal(40, 3), normal(40, 3), permutations=1, size=25)
    assert small["images"] == 25
    assert found["p_value"] > 0.05
    with pytest.raises(ValueError, match="`permutations` must be at least 1"):
        classifier_two_sample_test(normal(40, 3), normal(40, 3), permutations=0)


# neighbours and copies


def test_a_copied_set_has_the_scores_of_the_definition_at_any_offset():
    x = normal(150, 5)
    for shift in (0, 1e5):
        found = prdc(x + shift, x + shift, 4, chunk=40)
        # each is inside its own ball, and in those that reach it before their rim
        assert found["precision"] == found["recall"] == found["coverage"] == 1
        assert found["density"] == pytest.approx(1, rel=1e-12)  # self and k - 1 others, over k


@pytest.mark.parametrize("k", [0, 10, 11])
def test_neighbours_that_are_not_there_are_refused(k):
    with pytest.raises(ValueError, match=r"`k` must be 1 … 9 for 10 real and 12 generated"):
        prdc(normal(10, 3), normal(12, 3), k)


def test_at_most_the_promised_share_of_held_out_images_is_flagged():
    train = normal(50, 3)
    for held in (10, 99, 100, 250):
        held_out = normal(held, 3, held).mul(4).round() / 4 + 0.1  # with ties
        for share in (0.0, 0.01, 0.1):
            found = copy_scores(held_out, train, held_out, share)
            assert found["copy"].double().mean() <= share
            assert found["false_alarms"] >= 1 / (held + 1)
            assert ((found["p_value"] > 0) & (found["p_value"] <= 1)).all()
    with pytest.raises(ValueError, match=r"`share` must be in \[0, 0.5\)"):
        copy_scores(train, train, train + 9, 0.5)


def test_a_single_image_can_be_checked():
    train, held_out = normal(50, 3), normal(120, 3, 1)
    found = copy_scores(train[7:8], train, held_out)
    assert found["copy"].tolist() == [True] and found["nearest"].tolist() == [7]
    assert found["distance"].item() == found["ratio"].item() == 0


# images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("data_range", [1.0, 2.0, None])
def test_ssim_is_scikit_images(channels, data_range):
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, channels, 40, 23, generator=generator).double()
    b = (a + 0.2 * torch.rand(a.shape, generator=generator)).clamp(0, 1)
    if data_range is None:
        a, b = ((255 * x).to(torch.uint8) for x in (a, b))
    elif data_range == 2:
        a, b = 2 * a - 1, 2 * b - 1
    expected = [
        structural_similarity(x, y, gaussian_weights=True, sigma=1.5, channel_axis=0,
                              use_sample_covariance=False, data_range=data_range or 255)
        for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    assert ssim(a, b, data_range, chunk=2).tolist() == pytest.approx(expected, rel=1e-8)


def test_ms_ssim_orders_damage_and_refuses_what_is_too_small():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 1, 12, 12, generator=generator), (176, 190), mode="bicubic").clamp(0, 1)
    noise = torch.rand(smooth.shape, generator=generator) - 0.5
    values = [ms_ssim(smooth, (smooth + s * noise).clamp(0, 1), 1).item() for s in (0, 0.1, 0.5)]
    assert values[0] == pytest.approx(1) and values[0] > values[1] > values[2] > 0
    with pytest.raises(ValueError, match="176 pixels a side"):
        ms_ssim(smooth[..., :175], smooth[..., :175], 1)
    assert ms_ssim(smooth[..., :88, :88], smooth[..., :88, :88], 1, [0.2] * 4).shape == (1,)


@pytest.mark.parametrize("bad, sentence", [
    (torch.zeros(2, 2, 20, 20), "1 or 3, H, W"),
    (torch.zeros(20, 20), "1 or 3, H, W"),
    (torch.zeros(0, 1, 20, 20), "B > 0"),
    (torch.full((1, 1, 20, 20), torch.inf), "NaN or infinity"),
])
def test_bad_images_are_refused(bad, sentence):
    with pytest.raises(ValueError, match=sentence):
        ssim(bad, bad, 1)


def test_pairs_come_from_a_memory_map_without_repeats(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 1, 16, 16), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    seen = []

    def remember(a, b, data_range):
        seen.extend(zip(a[:, 0, 0, :4].tolist(), b[:, 0, 0, :4].tolist(), strict=True))
        return ssim(a, b, data_range)

    assert pairwise_ssim(mapped, 30, measure=remember)["pairs"] == 30
    assert len({frozenset(map(tuple, pair)) for pair in seen}) == 30
    assert pairwise_ssim(mapped, 1000)["pairs"] == 36


def test_perceptual_distance_is_one_number_per_pair_and_refuses_nan():
    generator = torch.Generator().manual_seed(0)
    a = [torch.randn(4, c, 6, 6, generator=generator) for c in (3, 9)]
    b = [x[[0, 1, 3, 2]] for x in a]
    found = perceptual_distance(a, b)
    assert found[:2].tolist() == [0, 0] and found[2] == found[3] and 1 < found[2] < 3
    with pytest.raises(ValueError, match="NaN"):
        perceptual_distance(a, [a[0] * torch.nan, a[1]])
    with pytest.raises(ValueError, match="alike"):
        perceptual_distance([], [])


# uncertainty


def test_the_baseline_never_puts_a_group_on_both_sides():
    names = [i // 7 for i in range(140)]
    features = torch.tensor([[float(g), float(i)] for i, g in enumerate(names)])
    sizes, by_group = [], True

    def look(a, b):
        assert not by_group or not set(a[:, 0].tolist()) & set(b[:, 0].tolist())
        assert len(set(a[:, 1].tolist()) | set(b[:, 1].tolist())) == len(a) + len(b)
        sizes.append((len(a), len(b)))
        return 0.0

    real_baseline(look, features, groups=names)
    real_baseline(look, features, 50, groups=names)
    by_group = False
    real_baseline(look, features, 70)
    assert set(sizes) == {(70, 70), (50, 50)}
    with pytest.raises(ValueError, match="two sets of `size` images must fit"):
        real_baseline(look, features, 70 + 1)


def test_the_interval_draws_complete_groups_and_never_twice():
    names = [i // 7 for i in range(140)]
    features = torch.tensor([[float(g), float(i)] for i, g in enumerate(names)])

    def look(a, b):
        groups, counts = a[:, 0].unique(return_counts=True)
        assert (counts == 7).all() and len(groups) in (20, 10)
        assert len(b) in (140, 70) and len(b[:, 1].unique()) == len(b)
        return float(len(a))

    assert confidence_interval(look, features, features, 20, groups=names)["value"] == 140


def test_the_interval_covers_the_mean_precision():
    "Of 120 studies of 80 images; the deviation of such a share around 0.95 is 0.02."

    def precision(a, b):
        return prdc(a, b, 3)["precision"]

    def study(i):
        return normal(80, 3, 2 * i), normal(80, 3, 2 * i + 1, 1.5)

    truth = np.mean([precision(*study(i)) for i in range(1000, 1600)])
    found = [confidence_interval(precision, *study(i), n_repeats=60) for i in range(120)]
    assert np.mean([f["low"] <= truth <= f["high"] for f in found]) > 0.95 - 4 * 0.02


# over batches and processes


REAL, FAKE, HELD_OUT = (normal(n, 6, n, scale).float() for n, scale in
                        ((90, 1.0), (70, 1.2), (80, 1.0)))  # fmt: skip


def accumulators(**options) -> dict:
    return dict(frechet=FrechetDistance(6, **options), kernel=KernelDistance(**options),
                prdc=PRDC(3, **options), copies=CopyScores(0.05, **options))


def add(metric, batches):
    for kind, x in batches:
        more = dict(held_out=kind == "held_out") if isinstance(metric, CopyScores) else {}
        if more or kind != "held_out":
            metric.update(x, real=kind != "fake", **more)


def in_batches(size: int) -> list:
    kinds = dict(real=REAL, fake=FAKE, held_out=HELD_OUT)
    return [(kind, part) for kind, x in kinds.items() for part in x.split(size)]


def plain(metric) -> dict[str, float]:
    found = metric.compute()
    found = found if isinstance(found, dict) else dict(value=found)
    assert all(value.dtype == torch.float64 and value.ndim == 0 for value in found.values())
    return {name: value.item() for name, value in found.items()}


def expected(name: str) -> dict[str, float]:
    "By the pure functions."
    if name == "prdc":
        return prdc(REAL, FAKE, 3)
    if name != "copies":
        f = dict(frechet=frechet_distance, kernel=kernel_distance)[name]
        return dict(value=f(REAL, FAKE))
    found = copy_scores(FAKE, REAL, HELD_OUT, 0.05)
    return dict(copies=found["copy"].double().mean().item(), threshold=found["threshold"],
                false_alarms=found["false_alarms"], authenticity=authenticity(REAL, FAKE),
                membership_auc=membership_auc(REAL, HELD_OUT, FAKE))


@pytest.mark.parametrize("size", [1, 32, 200])
@pytest.mark.parametrize("name", list(accumulators()))
def test_batches_give_what_the_pure_function_gives(name, size):
    metric = accumulators()[name]
    add(metric, in_batches(size))
    assert plain(metric) == pytest.approx(expected(name), rel=1e-9)
    metric.reset()
    with pytest.raises(RuntimeError, match=r"needs features of \d or more real images, got 0"):
        add(metric, [("fake", FAKE)])
        metric.compute()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # before an `update`, which is meant
@pytest.mark.parametrize("name", list(accumulators()))
def test_real_features_may_outlast_a_reset_and_forward_only_adds(name):
    metric = accumulators(reset_real_features=False)[name]
    add(metric, in_batches(30))
    metric.reset()
    with pytest.raises(RuntimeError, match="generated images, got 0"):
        metric.compute()
    for x in FAKE.split(40):
        assert metric(x, real=False) is None
    assert plain(metric) == pytest.approx(expected(name), rel=1e-9)


@pytest.mark.parametrize("name", list(accumulators()))
def test_odd_batches_are_refused_and_leave_nothing_behind(name):
    metric = accumulators()[name]
    add(metric, in_batches(50))
    odd = {r"widths differ: \[6, 4\]": FAKE[:, :4], "NaN or infinity": FAKE * torch.nan,
           r"got \(6,\)": FAKE[0], r"got \(0, 6\)": FAKE[:0]}
    for sentence, bad in odd.items():
        with pytest.raises(ValueError, match=sentence):
            metric.update(bad, real=False)
    assert plain(metric) == pytest.approx(expected(name), rel=1e-9)


@pytest.mark.parametrize("name", list(accumulators()))
def test_states_survive_copies_and_merge(name):
    first, second = (accumulators()[name] for _ in range(2))
    batches = in_batches(30)
    add(first, batches[::2])
    add(second, batches[1::2])
    second = pickle.loads(pickle.dumps(second)).clone()
    second.merge_state(first)
    assert plain(second) == pytest.approx(expected(name), rel=1e-9)


def test_half_precision_is_taken_and_double_precision_stays_where_set():
    metric, exact = KernelDistance(), KernelDistance().set_dtype(torch.float64)
    a, b = normal(40, 4), normal(50, 4, 1, 1.2)
    for one, x, y in ((metric, a.half(), b.half()), (exact, a, b)):
        one.update(x, real=True)
        one.update(y, real=False)
        assert one.compute().item() == kernel_distance(x, y)


def test_processes_together_give_what_one_gives(tmp_path):
    "Also where a process has no batch of some kind, or none at all."
    deals = [lambda i: i % 2, lambda i: i > 3, lambda i: 1]

    def work():
        rank, _, _ = this_process("cpu")
        torch.distributed.init_process_group("gloo")
        found = []
        for deal in deals:
            metrics = accumulators()
            for metric in metrics.values():
                add(metric, [b for i, b in enumerate(in_batches(20)) if deal(i) == rank])
            found.append({name: plain(metric) for name, metric in metrics.items()})
        torch.save(found, tmp_path / f"{rank}.pt")
        torch.distributed.destroy_process_group()

    launch(work, 2, device="cpu")
    for rank in range(2):
        for found in torch.load(tmp_path / f"{rank}.pt"):
            for name, values in found.items():
                assert values == pytest.approx(expected(name), rel=1e-9)


def test_torchmetrics_is_imported_where_it_is_used():
    program = "import sys, synth_nb.metrics as m; print('torchmetrics' in sys.modules); m.PRDC"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "False", done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", list(accumulators()))
def test_batches_may_come_from_another_device(name):
    metric = accumulators()[name].cuda()
    add(metric, in_batches(30))
    found = metric.compute()
    assert all(x.is_cuda for x in (found.values() if isinstance(found, dict) else [found]))
    assert plain(metric) == pytest.approx(expected(name), rel=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", sorted(PAIRS))
def test_the_device_does_not_matter(name):
    a, b = normal(300, 20), normal(200, 20, 1, 1.2)
    expected = PAIRS[name](a, b)
    assert PAIRS[name](a.cuda(), b.cuda()) == pytest.approx(expected, rel=1e-6)
