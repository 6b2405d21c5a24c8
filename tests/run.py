"""All tests at once: notebooks and tests/ shared among processes, one thread each.

    python tests/run.py                                 # what `make test` runs
    python tests/run.py nbs/02_dcgan.ipynb tests/test_gan.py -k resume

One line says how far it is: it changes in place on a terminal, and comes once a minute in a file.
At the end every failure stands with the command that repeats it alone.

Variables: WORKERS (processes), OMP_NUM_THREADS (threads of each), RECORD (a file that notes what
has passed; a second start with it runs the others).
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from notebooks import expected, file_of, read  # noqa: E402 - it lies beside this file

from synth_nb.core.progress import duration  # noqa: E402

ROOM = 6e9  # bytes that the tests may need at once; 3.0e9 were measured
SECONDS = ROOT / "outputs" / "cache" / "tests" / "seconds.json"  # what files took here
CLEARED = "\r\x1b[K"  # the terminal's line, from its start
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TRANSFORMERS_VERBOSITY": "error",
         "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip


def write(path: Path, values: dict):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".new").write_text(json.dumps(values, indent=1, sort_keys=True))
    path.with_suffix(".new").replace(path)


def command(nodeid: str) -> str:
    "What repeats one test alone."
    programs = Path(sys.executable).parent
    if programs.is_relative_to(ROOT):
        programs = programs.relative_to(ROOT)
    if file_of(nodeid).endswith(".ipynb"):
        return f"{programs}/nbdev_test --path {file_of(nodeid)}"
    return f"{programs}/python -m pytest '{nodeid}'"


class Forecast:
    "How long the tests still take, by what every file took before, here or elsewhere."

    def __init__(self, total: Counter, workers: int):
        self.total, self.workers, self.done = total, workers, Counter()
        self.measured = total.keys() <= read(SECONDS).keys()
        self.cost = expected(set(total), SECONDS)

    def left(self, gone: float, now: dict[str, float]) -> float:
        "Seconds; `gone` since the start, `now` what runs and since when."
        rest = {n: self.cost[n] * (1 - self.done[n] / of) for n, of in self.total.items()}
        for name, start in now.items():  # a notebook is one test
            if self.total[name] == 1:
                rest[name] = max(rest[name] - (time.monotonic() - start), 0.05 * rest[name])
        finished = sum(self.cost.values())
        over = finished - sum(rest.values())
        # how much slower this time is than that one; at the start nobody knows
        early = over < (0.1 if self.measured else 0.01) * finished
        pace = 1.0 if early else gone * self.workers / max(over, 1e-9)
        return pace * max(sum(rest.values()) / self.workers, *rest.values())


class Progress:
    "A plugin of pytest: the line that says how far the tests are, and what it says at the end."

    def __init__(self, workers: int, record: Path | None = None, every: float = 60):
        self.workers, self.record, self.every = workers, record, every
        self.before = read(record) if record else {}
        self.outcomes, self.took, self.now = {}, Counter(), {}
        self.forecast, self.ended = None, threading.Event()
        self.began = time.monotonic()

    # what pytest tells

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config):
        self.terminal = config.pluginmanager.get_plugin("terminalreporter")

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report):
        "No dots: the line counts."
        if report.passed:
            return "passed" if report.when == "call" else "", "", ""
        broken = report.failed and report.when != "call"  # before or after the test itself
        return "error" if broken else report.outcome, "", ""

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node, ids):
        if not self.forecast:
            self.forecast = Forecast(Counter(map(file_of, ids)), self.workers)
            threading.Thread(target=self.tell, daemon=True).start()

    def pytest_runtest_logstart(self, nodeid):
        self.now[file_of(nodeid)] = time.monotonic()

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed(report.nodeid)

    def pytest_runtest_logreport(self, report):
        name = file_of(report.nodeid)
        self.took[name] += report.duration
        if report.failed:
            self.failed(report.nodeid)
        elif report.skipped or report.when == "call":
            self.outcomes.setdefault(report.nodeid, report.outcome)
        if report.when == "???":  # the process that ran it has died
            self.now.pop(name, None)
        if report.when == "teardown":
            self.forecast.done[name] += 1
            if self.forecast.done[name] == self.forecast.total[name]:
                self.now.pop(name, None)
                self.note()

    def pytest_sessionfinish(self):
        self.ended.set()
        if self.on_terminal():
            self.terminal.write(CLEARED)

    def failed(self, nodeid: str):
        if self.outcomes.get(nodeid) != "failed":
            self.say(f"failed: {command(nodeid)}")
        self.outcomes[nodeid] = "failed"

    # the line

    def on_terminal(self) -> bool:
        return bool(self.terminal and self.terminal.isatty) and os.environ.get("TERM") != "dumb"

    def line(self) -> str:
        "`7 of 103 notebooks · 24 of 912 tests · about 12 min 5 s left · now 02_dcgan, test_gan`."
        total, done = self.forecast.total, self.forecast.done
        books = [name for name in total if name.endswith(".ipynb")]
        files = [name for name in total if name not in books]
        ready = sum(done[n] == total[n] for n in books)
        parts = [f"{ready} of {len(books)} notebooks"] * bool(books)
        tests = f"{sum(done[n] for n in files)} of {sum(total[n] for n in files)} tests"
        parts += [tests] * bool(files)
        failures = list(self.outcomes.values()).count("failed")
        parts += [f"{failures} failed"] * bool(failures)
        gone, now = time.monotonic() - self.began, dict(self.now)
        if self.forecast.measured or gone > 60:
            parts.append(f"about {duration(self.forecast.left(gone, now))} left")
        if now:
            parts.append("now " + ", ".join(Path(name).stem for name in now))
        return " · ".join(parts)

    def say(self, text: str):
        "A line that stays."
        self.terminal.write(CLEARED * self.on_terminal() + text + "\n", flush=True)

    def tell(self):
        "Write the line, each second in place or each minute anew, until the tests have ended."
        while not self.ended.wait(1 if self.on_terminal() else self.every):
            if not self.on_terminal():
                self.say(self.line())
                continue
            line, width = self.line(), shutil.get_terminal_size().columns
            line = line if len(line) < width else f"{line[: max(width - 2, 0)]}…"
            self.terminal.write(CLEARED + line, flush=True)

    # what is kept and said at the end

    def note(self):
        "What files took, for the next time, and the record, if there is one."
        finished = {n for n, of in self.forecast.total.items() if self.forecast.done[n] == of}
        took = {n: round(self.took[n], 1) for n in finished if not n.startswith(".")}
        if not self.before:  # else some of a file's tests may be left out
            write(SECONDS, read(SECONDS) | took)
        if self.record:
            seconds = self.before.get("seconds", 0) + time.monotonic() - self.began
            tests = self.before.get("tests", {}) | self.outcomes
            of = json.loads(os.environ.get("RECORD_OF", "null"))
            write(self.record, {"of": of, "seconds": round(seconds), "tests": tests})

    def end(self, status: int):
        "The failures with their commands, and a last line for machines."
        if self.forecast:
            self.note()
        failed = [nodeid for nodeid, how in self.outcomes.items() if how == "failed"]
        count = Counter(self.outcomes.values())
        if failed:
            print("\nEach failure alone:", *(f"  {command(nodeid)}" for nodeid in failed), sep="\n")
        print(f"\n{duration(time.monotonic() - self.began)}, {count['skipped']} skipped")
        if status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            print(f"{count['passed']} passed, {count['failed']} failed", flush=True)
        else:
            print(f"stopped before the end, after {count['passed']} tests that passed", flush=True)


def how_many() -> int:
    "Processes: one for each core, as far as 4 GB of memory for each go; more than 8 gain nothing."
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores, psutil.virtual_memory().total // 4_000_000_000, 8))


def arguments(workers: int, record: Path | None, words: list[str]) -> list[str]:
    "What pytest gets. A file's tests stay together: they share a browser or a trained network."
    paths = [] if any(Path(word.split("::")[0]).exists() for word in words) else ["nbs", "tests"]
    share = ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
    own = [f"--rootdir={ROOT}", f"--first={SECONDS}", *([f"--done={record}"] if record else [])]
    quiet = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    # else every test's folder stays until the end, and those of the two times before
    tidy = ["-o", "tmp_path_retention_policy=failed", "-o", "tmp_path_retention_count=1"]
    return [*share, *own, *quiet, *tidy, "-p", "notebooks", *words, *paths]


def check_room(folder: str):
    "Tests that cannot write fail in hundreds of ways; this is one sentence."
    free = shutil.disk_usage(folder).free
    if free < ROOM:
        sys.exit(f"the tests need {ROOM / 1e9:.0f} GB of disk in {folder}, {free / 1e9:.1f} GB are "
                 "free: make room, or name another folder by TMPDIR")


def main(words: list[str]) -> int:
    os.chdir(ROOT)
    check_room(tempfile.gettempdir())
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each process keeps one core busy
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    workers = int(os.environ.get("WORKERS") or how_many())
    record = Path(os.environ["RECORD"]) if "RECORD" in os.environ else None
    progress = Progress(workers, record)
    status = pytest.main(arguments(workers, record, words), plugins=[progress])
    if status == pytest.ExitCode.NO_TESTS_COLLECTED and progress.before:
        status = pytest.ExitCode.OK  # all of them are in the record
    progress.end(status)
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
