"""How pytest tests a notebook: as `nbdev_test` does, in a process of its own.

The processes are forks of one that has imported what notebooks import and has computed nothing:
that saves each of them some seconds, and no notebook sees what another one left behind.
"""

import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IMPORTED = ["nbdev.test", "execnb.shell", "matplotlib.pyplot", "synth_nb.diffusion",
            "synth_nb.evaluation", "torchmetrics", "sklearn.linear_model"]  # fmt: skip
# a fork of a process with threads may hang, and on a Mac a library's own threads start early
SERVED = sys.platform == "linux"


def cells(path: Path, environment: dict[str, str], output: Path):
    "Run a notebook's cells in this process, which ends with 1 if one failed."
    os.environ.clear()
    os.environ.update(environment)
    with open(output, "wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
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


class Notebook(pytest.Item):
    def runtest(self):
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "output")
            process = processes().Process(target=cells, args=(self.path, dict(os.environ), output))
            process.start()
            try:
                process.join()
            finally:
                if process.is_alive():
                    process.kill()
            if process.exitcode:
                said = output.read_text(errors="replace") if output.exists() else ""
                raise NotebookFailed(f"{said[-6000:]}\nexit code {process.exitcode}")

    def repr_failure(self, excinfo):
        if isinstance(excinfo.value, NotebookFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self):
        return self.path, 0, self.path.name


def leave_out(config, items: list, record: str):
    "Take the tests that passed or were skipped by a record out of those to run."
    known = json.loads(Path(record).read_text()) if record and Path(record).is_file() else {}
    done = {name for name, how in known.get("tests", {}).items() if how != "failed"}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = [item for item in items if item.nodeid not in done]


def file_of(nodeid: str) -> str:
    return nodeid.split("::")[0]


def longest_first(items: list, seconds: str):
    """Order files by how long they took, or, never run, by how much code they have: of several
    processes that take one after another none is left alone with a long one at the end."""
    if not seconds:
        return
    took = json.loads(Path(seconds).read_text()) if Path(seconds).is_file() else {}
    files = {file_of(item.nodeid): item.path for item in items}
    cost = expected(files, took)
    items.sort(key=lambda item: -cost[file_of(item.nodeid)])


def expected(files: dict[str, Path], took: dict[str, float]) -> dict[str, float]:
    "Seconds for every file: what it took, or its share of code at the pace of the others."
    size = {name: len(code_of(path)) for name, path in files.items()}
    known = [name for name in files if name in took]
    pace = sum(took[name] for name in known) / sum(size[name] for name in known) if known else 1e-3
    return {name: took.get(name, pace * size[name]) for name in files}


def code_of(path: Path) -> str:
    "What a notebook or a module executes."
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    return "".join("".join(cell["source"]) for cell in cells)
