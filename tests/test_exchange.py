"The exchange rate: its interval covers the truth in studies whose truth is known."

import sys
from pathlib import Path

import numpy as np
import pytest

from synth_nb.data import DataError
from synth_nb.evaluation.exchange import exchange_rate, exchange_summary

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import exchange as benchmark  # noqa: E402


def test_intervals_cover_the_truth():
    table = benchmark.main(["--quick"])
    assert 0.92 <= table.coverage.mean() <= 0.99  # 360 studies of 6 counts each
    assert table.lowest.min() >= 0.83  # of 60 studies: 0.95 less four standard errors


def test_a_set_that_is_worth_more_than_was_measured_has_no_upper_end():
    counts, rng = np.array([5, 10, 20]), np.random.default_rng(0)
    real = np.log(counts)[:, None, None] + rng.normal(0, 0.01, (3, 4, 1))
    table = exchange_rate(counts, real, real + 2)
    assert np.isinf(table.high).all() and (table.low >= 20 - counts - 1e-6).all()
    assert "worth more than 15 (15 to more than 15)" in exchange_summary(table, "It")


@pytest.mark.parametrize("counts, seeds", [([5, 10], 4), ([5, 10, 20], 2), ([5, 20, 10], 4)])
def test_too_little_for_a_curve(counts, seeds):
    scores = np.zeros((len(counts), seeds, 1))
    with pytest.raises(DataError, match=r"needs 3 counts of real labels or more, rising, and 3"):
        exchange_rate(counts, scores, scores)
