"""Notebooks as tests: `pytest nbs/07_emnist.ipynb` tests what `nbdev_test` would test.

So one runner shares tests and notebooks among the cores, and one summary tells what failed.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import notebooks  # noqa: E402 - it lies in tests/


def pytest_addoption(parser):
    group = parser.getgroup("synth_nb")
    group.addoption("--first", default="", help="a JSON of seconds by file: the longest first")
    group.addoption("--done", default="", help="a record of what need not run again")


def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".ipynb" and file_path.parent == ROOT / "nbs":
        return notebooks.NotebookFile.from_parent(parent, path=file_path)


def pytest_collection_modifyitems(config, items):
    notebooks.leave_out(config, items, config.getoption("--done"))
    notebooks.longest_first(items, config.getoption("--first"))
