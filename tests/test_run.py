"""The runner of all tests: its order, its forecast, what it says at the end and what it keeps."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import nbformat
import notebooks
import processors
import pytest
import run
from notebooks import leave_out, longest_first, run_notebook

ROOT = Path(__file__).parent.parent
TESTS = """
import pytest
def test_good(): pass
def test_bad(): assert 1 == 2
@pytest.mark.skip
def test_left_out(): pass
"""


def started(tmp_path, **variables) -> subprocess.CompletedProcess:
    file = tmp_path / "test_three.py"
    file.write_text(TESTS)
    return subprocess.run([sys.executable, ROOT / "tests" / "run.py", file], text=True,
                          env=os.environ | {"WORKERS": "1"} | variables, capture_output=True)


def test_the_end_names_failures_and_counts(tmp_path):
    record = tmp_path / "record.json"
    done = started(tmp_path, RECORD=str(record))
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and lines[-1] == "1 passed, 1 failed"
    again = [line for line in lines if line.startswith("  ")][-1]
    assert again.startswith(f"  {run.command('')[:9]}") and again.endswith("::test_bad'")
    tests = json.loads(record.read_text())["tests"]
    found = {name.split("::")[1]: how for name, how in tests.items()}
    assert found == dict(test_good="passed", test_bad="failed", test_left_out="skipped")
    second = started(tmp_path, RECORD=str(record)).stdout.splitlines()
    assert second[-1] == "0 passed, 1 failed"  # what has passed is not run again


def test_what_has_passed_leaves_nothing_on_the_disk(tmp_path):
    file = tmp_path / "test_two.py"
    file.write_text("def test_good(tmp_path): (tmp_path / 'large').write_text('x')\n"
                    "def test_bad(tmp_path): (tmp_path / 'kept').write_text('x'); assert 0")
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run([sys.executable, ROOT / "tests" / "run.py", file], capture_output=True,
                   env=os.environ | {"WORKERS": "1", "TMPDIR": str(home)})
    assert [p.name for p in home.rglob("*") if p.is_file() and p.parent.name.startswith("test_")
            ] == ["kept"]


def test_a_full_disk_is_said_before_the_tests(monkeypatch, tmp_path):
    monkeypatch.setattr(run.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1.2e9))
    with pytest.raises(SystemExit, match=f"GB of disk in {tmp_path}, 1.2 GB are free: make room"):
        run.check_room(str(tmp_path))


@pytest.mark.parametrize(("cell", "code"), [("assert 1 == 1", 0), ("assert 1 == 2", 1)])
def test_a_notebook_fails_with_its_cell(tmp_path, cell, code):
    cells = [nbformat.v4.new_code_cell(cell)]
    about = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    path = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), path)
    found, text = run_notebook(path)
    assert found == code and ("AssertionError" in text) == bool(code)


def test_what_a_notebook_forgets_is_removed(tmp_path):
    cells = [nbformat.v4.new_code_cell(
        "import tempfile, pathlib\nfolder = tempfile.mkdtemp()\n"
        f"_ = pathlib.Path({str(tmp_path / 'folder')!r}).write_text(folder)")]
    about = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    path = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), path)
    assert run_notebook(path)[0] == 0
    folder = Path((tmp_path / "folder").read_text())
    assert folder.name.startswith("tmp") and not folder.parent.exists()


def test_the_longest_go_first_and_a_record_leaves_out(monkeypatch, tmp_path):
    monkeypatch.setattr(notebooks, "ELSEWHERE", tmp_path / "elsewhere.json")
    names = ["a.py::one", "b.py::one", "c.py::one", "a.py::two"]
    items = [SimpleNamespace(nodeid=name) for name in names]
    (tmp_path / "elsewhere.json").write_text(json.dumps({"a.py": 10, "b.py": 30, "c.py": 20}))
    seconds = tmp_path / "seconds.json"
    longest_first(items, str(seconds))
    assert [one.nodeid[0] for one in items] == ["b", "c", "a", "a"]
    seconds.write_text(json.dumps({"a.py": 100, "b.py": 1}))  # here it is otherwise
    longest_first(items, str(seconds))
    assert [one.nodeid[0] for one in items] == ["a", "a", "c", "b"]
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"tests": {"a.py::one": "passed", "b.py::one": "failed"}}))
    hook = SimpleNamespace(pytest_deselected=lambda items: None)
    leave_out(SimpleNamespace(hook=hook), items, str(record))
    assert [one.nodeid for one in items] == ["a.py::two", "c.py::one", "b.py::one"]


def test_the_forecast_is_what_files_took(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "SECONDS", tmp_path / "seconds.json")
    run.write(run.SECONDS, {"tests/test_run.py": 60, "tests/test_gan.py": 100})
    forecast = run.Forecast(Counter({"tests/test_run.py": 6, "tests/test_gan.py": 10}), 2)
    assert forecast.measured and forecast.left(0, {}) == 100  # two processes, the longer one
    forecast.done.update({"tests/test_gan.py": 5, "tests/test_run.py": 3})
    assert forecast.left(40, {}) == 50
    assert forecast.left(80, {}) == 100  # half as fast as then
    forecast.workers = 1
    assert forecast.left(80, {}) == 80
    new = run.Forecast(Counter({"tests/test_run.py": 6, "tests/new.py": 10}), 2)
    assert not new.measured and 60 <= new.left(100, {}) <= 1000  # before anything is done


def test_a_setting_is_its_variables_and_a_row(monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx512")
    assert processors.environment("avx2-2")["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert processors.environment("avx2-2")["OMP_NUM_THREADS"] == "2"
    assert "ATEN_CPU_CAPABILITY" not in processors.environment("native-4")
    assert len(processors.SETTINGS) == 9
    tests = {"nbs/a.ipynb::cells": "passed", "nbs/b.ipynb::cells": "failed",
             "tests/a.py::x": "passed", "tests/a.py::y": "skipped"}  # fmt: skip
    found = processors.row("avx2-2", dict(tests=tests, seconds=90))
    assert found == ["avx2-2", "1", "1", "1", "0", "1", "2"]
    assert processors.table([found]).count("|") == 3 * (len(found) + 1)
