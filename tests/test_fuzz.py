"Inputs that once made a reader fail, and a few new ones for each reader (tests/fuzz.py has more)."

import subprocess
import sys
from pathlib import Path

import fuzz
import pytest

INPUTS = 600  # over all readers; a minute on a busy machine


@pytest.fixture(scope="module")
def lines():
    script = [sys.executable, str(Path(fuzz.__file__)), str(INPUTS)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=900)
    return done.stdout.splitlines() or [done.stderr[-2000:]]


def test_no_reader_raises_what_it_does_not_promise(lines):
    assert lines[-1].endswith(" inputs, 0 failures"), "\n".join(lines)


def test_every_reader_was_tried(lines):
    assert {name for name in fuzz.READERS if any(line.startswith(name) for line in lines)} == {
        *fuzz.READERS}
    assert set(fuzz.stored_seeds()) <= set(fuzz.READERS) and int(lines[-1].split()[0]) >= INPUTS


def test_a_foreign_exception_is_counted(tmp_path):
    def fails(path):
        raise KeyError("a")

    reader = fuzz.Reader(lambda: b"", fuzz.file_of("x"), fails)
    assert fuzz.try_one(reader, b"")[0] == "foreign"


def test_an_input_is_the_same_everywhere():
    assert fuzz.damaged(bytes(range(40)), 5, False).hex() == "0001020304050603040506"
