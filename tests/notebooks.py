"""A plugin of pytest that tests notebooks as `nbdev_test` does, each in a process of its own.

So one runner shares tests and notebooks among the cores, and one summary tells what failed.

The processes are forks of one that has imported what notebooks import and has computed nothing:
that saves each of them some seconds, and no notebook sees what another one left behind.
"""

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ELSEWHERE = ROOT / "tests" / "seconds.json"
IMPORTED = ["nbdev.test", "execnb.shell", "matplotlib.pyplot", "synth_nb.diffusion",
            "synth_nb.evaluation", "torchmetrics", "sklearn.linear_model"]  # fmt: skip
# a fork of a process with threads may hang, and on a Mac a library's own threads start early
SERVED = sys.platform == "linux"


def file_of(nodeid: str) -> str:
    return nodeid.split("::")[0]


def read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def pytest_addoption(parser):
    group = parser.getgroup("notebooks")
    group.addoption("--first", default="", help="seconds by file: the longest go first")
    group.addoption("--done", default="", help="a record of what need not run again")


def pytest_configure(config):
    text = "loads_tensorflow: comes last, since beside TensorFlow no other processes are started"
    config.addinivalue_line("markers", text)


@cache
def notebooks() -> set[Path]:
    "Those that nbdev knows."
    from nbdev.doclinks import nbglob

    return set(nbglob(ROOT / "nbs", as_path=True))


def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".ipynb" and file_path in notebooks():
        return NotebookFile.from_parent(parent, path=file_path)


def pytest_collection_modifyitems(config, items):
    leave_out(config, items, config.getoption("--done"))
    longest_first(items, config.getoption("--first"))
    items.sort(key=lambda item: item.get_closest_marker("loads_tensorflow") is not None)


def cells(path: Path, environment: dict[str, str], output: Path):
    "Run a notebook's cells in this process, which ends with 1 if one failed."
    os.environ.clear()
    os.environ.update(environment)
    with open(output, "wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    tempfile.tempdir = None  # it may be known from the process that this is a fork of
    os.chdir(ROOT)
    from nbdev.config import get_config
    from nbdev.test import test_nb

    flags = get_config().tst_flags.split()
    passed, _ = test_nb(path, skip_flags=flags, basepath=get_config().config_path)
    sys.exit(0 if passed else 1)


def processes():
    "Where the processes of notebooks come from."
    context = multiprocessing.get_context("forkserver" if SERVED else "spawn")
    if SERVED:
        context.set_forkserver_preload(IMPORTED)
    return context


class NotebookFile(pytest.File):
    def collect(self):
        yield Notebook.from_parent(self, name="cells")


class NotebookFailed(Exception):
    "What the notebook wrote, its traceback at the end."


def run_notebook(path: Path) -> tuple[int, str]:
    "Exit code and output of a notebook's cells."
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        output, variables = Path(folder, "output"), os.environ | dict(TMPDIR=folder)
        process = processes().Process(target=cells, args=(path, variables, output))
        process.start()
        try:
            process.join()
        finally:
            if process.is_alive():
                process.kill()
        text = output.read_text(errors="replace") if output.exists() else ""
        return process.exitcode, text


class Notebook(pytest.Item):
    def runtest(self):
        code, text = run_notebook(self.path)
        if code:
            raise NotebookFailed(f"{text[-6000:]}\nexit code {code}")

    def repr_failure(self, excinfo):
        if isinstance(excinfo.value, NotebookFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self):
        return self.path, 0, self.path.relative_to(ROOT / "nbs").as_posix()


def leave_out(config, items: list, record: str):
    "Take the tests that passed or were skipped by a record out of those to run."
    known = read(Path(record)).get("tests", {}) if record else {}
    done = {name for name, how in known.items() if how != "failed"}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = [item for item in items if item.nodeid not in done]


def longest_first(items: list, seconds: str):
    """Order files by how long they took: of several processes that take one after another none is
    left alone with a long one at the end."""
    if seconds:
        cost = expected({file_of(item.nodeid) for item in items}, Path(seconds))
        items.sort(key=lambda item: -cost[file_of(item.nodeid)])


def expected(names: set[str], here: Path) -> dict[str, float]:
    """Seconds for every file: what it took here, or else on the two cores that `ELSEWHERE` tells
    of; what neither knows is as long as most."""
    known = read(ELSEWHERE) | read(here)
    middle = statistics.median(known.values()) if known else 1.0
    return {name: known.get(name, middle) for name in names}
