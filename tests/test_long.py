"Long runs in small: nothing grows with the steps, and a step costs as much with many images."

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from long_run import long_training, open_and_step  # noqa: E402 - it lies beside the tests


def test_a_long_training_keeps_its_memory_and_its_files(tmp_path):
    found = long_training(tmp_path, steps=4000, epochs=20)
    early, late = found[4], found[-1]
    assert late["step"] == 4000 and late["memory"] - early["memory"] < 20  # MB
    assert late["open"] <= early["open"]
    snapshots = len(list(tmp_path.glob("checkpoints/epoch_*")))
    assert snapshots == 10 and late["files"] - early["files"] <= 2 * snapshots
    assert late["size"] < 1


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
def test_a_step_costs_as_much_with_many_images(tmp_path, weighted):
    small, large = (open_and_step(tmp_path, count, weighted, 100) for count in (1000, 1_000_000))
    assert large["opened"] < 20 and large["step"] < 3 * small["step"]
