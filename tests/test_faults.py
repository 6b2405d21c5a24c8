"""What a training meets in two days on a shared machine; the small form of `tests/faults.py`.

Every notebook's training is run in small: without memory, ended by a signal, killed, and then to
its end, which is that of a training that was left alone, bit for bit.
"""

import os
import re
import shutil
import signal
import subprocess
from functools import cache
from pathlib import Path

import pytest
from faults import SMALL, Training, Victims
from PIL import Image

from synth_nb.data import open_dataset

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")


@pytest.fixture(scope="module")
def victims(tmp_path_factory):
    "A function that runs a notebook once, left alone."
    return cache(lambda notebook: Victims(notebook, tmp_path_factory.mktemp(notebook)))


def last_line(training: Training) -> str:
    return training.output().strip().splitlines()[-1]


def is_stopped(training: Training, number: str):
    "Whether a signal at the first step ends a training in good order."
    code = training.ends(("at a step", 1, number))
    assert code == 130 and "Traceback" not in training.output(), training.output()
    assert list(training.home.rglob("checkpoints/newest.pt"))  # of the run, or first in the cache
    assert last_line(training).startswith("Stopped at step 1 of ")
    assert training.status() == "stopped"


def names_a_parameter(training: Training):
    "Whether too little memory ends in a sentence with what to lower."
    assert training.ends(("", 1, "memory")) == 1
    assert last_line(training).startswith("MemoryError: ") and "too small" in last_line(training)
    named = set(re.findall(r"`(\w+)`", last_line(training)))
    first = (Path("nbs") / f"{training.notebook}.ipynb").read_text(encoding="utf-8")
    assert named and all(f"{name}:" in first for name in named), last_line(training)
    assert training.status() == "failed"


@pytest.mark.parametrize("notebook", SMALL)
def test_a_training_ends_bit_for_bit(victims, notebook):
    one = victims(notebook)
    training, left = one.next(), list(one.moments)
    names_a_parameter(training)
    is_stopped(training, SIGNALS[sorted(SMALL).index(notebook) % 3])
    one.random.shuffle(left)
    one.kill(training, left)
    training.finish()
    training.compare(one.wanted)


def test_a_model_is_exchanged_for_itself(victims):
    one = victims("02_dcgan")
    one.check(one.next())


def test_a_full_disk_at_every_write(victims):
    one = victims("02_dcgan")
    training = one.next()
    names = [name for name in one.moments if name.startswith(("in the", "before"))]
    for name in names:
        training.ends((name, 1, "full disk"))
        if "manifest" not in name:  # which could not be written, or could be again
            assert training.status() in ("failed", "complete"), name
        assert "No space left on device" in training.output() or training.status() == "complete"
        assert not training.leftovers(), name
    assert len(names) >= 6
    training.finish()
    training.compare(one.wanted)


def test_a_small_disk(victims, tmp_path):
    "A real one, of which the second checkpoint takes the last bytes."
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk := tmp_path / "disk")]
    disk.mkdir()
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(
            mount, capture_output=True).returncode:
        pytest.skip("a small disk needs root and a system that mounts one")
    try:
        one = victims("07_emnist")
        training = one.next()
        training.values["outputs"] = str(disk)
        training.folder = disk / "07_emnist" / "mine"
        assert training.ends() == 1
        assert "No space left on device" in training.output() or "of disk" in last_line(training)
        subprocess.run(["mount", "-o", "remount,size=500m", str(disk)], check=True)
        training.finish()
        training.compare(one.wanted)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_batch_of_nan_is_named_and_never_stored(victims):
    one = victims("02_dcgan")
    training = one.next()
    assert training.ends(("", 4, "NaN")) == 1
    assert re.match(r"FloatingPointError: loss of `\w+` is nan at step 4; batch: ",
                    last_line(training))
    assert training.status() == "failed"
    training.finish()
    training.compare(one.wanted)


def test_a_clock_that_is_set_back(victims):
    one = victims("02_dcgan")
    training = one.next()
    assert training.ends(("at a step", 5)) == -signal.SIGKILL
    assert training.ends(("", 0, "clock")) == 0, training.output()
    training.compare(one.wanted)
    assert len(list(training.folder.glob("events.*"))) == 1


def test_two_at_once_share_a_cache(victims):
    one = victims("05_e2i")
    first, second = one.next(), Training("05_e2i", one.home / "second")
    (second.home / "cache").symlink_to(first.home / "cache")
    started = [training.start() for training in (first, second)]
    for process, training in zip(started, (first, second), strict=True):
        process.join()
        assert process.exitcode == 0, training.output()[-3000:]
        training.compare(one.wanted)


def test_data_that_vanish(tmp_path):
    images = open_dataset("demo", 32).images[:80]
    (folder := tmp_path / "images").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i:02}.png")
    values = dict(dataset=str(folder), epochs=2, n_samples=12)
    alone = Training("02_dcgan", tmp_path / "alone", values)
    alone.finish()
    training = Training("02_dcgan", tmp_path / "vanishing", values)
    assert training.ends(("at a step", 4)) == -signal.SIGKILL
    folder.rename(tmp_path / "elsewhere")
    assert training.ends() == 1
    assert str(folder) in last_line(training) and "Error: " in last_line(training)
    (tmp_path / "elsewhere").rename(folder)
    training.finish()
    assert training.result() == alone.result()


def without_rights(folder: Path, code: str) -> str:
    "Last line of a program that may not write a folder, whoever runs the tests."
    program = (f"import os, sys\nfrom synth_nb.core import runs, files\n"
               f"if not os.geteuid(): os.setuid(65534)\n{code}")
    folder.chmod(0o555)
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    env |= dict(SYNTH_NB_CACHE=str(folder))
    done = subprocess.run(["python", "-c", program, str(folder)], capture_output=True, text=True,
                          env=env, cwd="/")
    folder.chmod(0o755)
    return done.stderr.strip().splitlines()[-1]


def test_folders_that_cannot_be_written(tmp_path):
    for parent in (tmp_path, *tmp_path.parents[:3]):
        if parent.stat().st_uid == os.geteuid():
            parent.chmod(0o755)
    (outputs := tmp_path / "outputs").mkdir()
    line = without_rights(outputs, "runs.open_run('none', dict(outputs=sys.argv[1], run_name='a'), "
                                   "dict(fingerprint='a'))")
    assert re.fullmatch(r"OSError: .*/none/a: nothing can be written there \(Permission denied\); "
                        "choose another `outputs`", line), line
    line = without_rights(outputs, "files.cache_entry(files.Path(sys.argv[1]) / 'heads/a')"
                                   ".__enter__()")
    assert re.fullmatch(r"OSError: the cache cannot be written in .* \(Permission denied\); "
                        "set SYNTH_NB_CACHE", line), line
