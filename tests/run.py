"""All tests at once: notebooks and tests/ shared among processes, one thread each.

    python tests/run.py              # what `make test` runs
    python tests/run.py nbs tests/test_gan.py -k resume

One line says how far it is: it changes in place on a terminal, and comes once a minute in a file.
At the end every failure stands with the command that repeats it alone.
"""

import json
import os
import shutil
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
TIMES = ROOT / "outputs" / "cache" / "tests" / "seconds.json"
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TRANSFORMERS_VERBOSITY": "error",
         "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip


def duration(seconds: float) -> str:
    "`40 s` or `7 min`."
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def fitted(line: str, width: int) -> str:
    "A line cut to what a terminal shows of it."
    return line if len(line) < width else line[: max(width - 2, 0)] + "…"


class Progress:
    "The line that says how far the tests are, and the counts and commands of the end."

    def __init__(self, record: Path | None = None, every: float = 60):
        self.record, self.every = record, every
        self.total, self.done, self.counts = Counter(), Counter(), Counter()
        self.took, self.failed, self.now = Counter(), {}, {}
        self.began, self.ended = time.monotonic(), threading.Event()

    # -- pytest's hooks, in the process that shares out the work

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config):
        self.terminal = config.pluginmanager.get_plugin("terminalreporter")

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report):
        "No dots: the line counts."
        if report.passed:
            return ("passed" if report.when == "call" else ""), "", ""
        if report.skipped:
            return "skipped", "", ""

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node, ids):
        from notebooks import expected, file_of

        if not self.total:
            self.total = Counter(map(file_of, ids))
            known = json.loads(TIMES.read_text()) if TIMES.is_file() else {}
            self.measured = all(name in known for name in self.total)
            self.cost = expected({name: ROOT / name for name in self.total}, known)
            threading.Thread(target=self.tell, daemon=True).start()

    def pytest_runtest_logstart(self, nodeid):
        self.now[nodeid.split("::")[0]] = time.monotonic()

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.split("::")[0]
        self.took[name] += report.duration
        if report.failed and report.nodeid not in self.failed:
            self.failed[report.nodeid] = "failed"
            self.say(f"failed: {self.command(report.nodeid)}")
        if report.skipped or (report.when == "call" and report.passed):
            self.counts["skipped" if report.skipped else "passed"] += 1
        if report.when == "teardown":
            self.finished(report.nodeid, name)

    def finished(self, nodeid: str, name: str):
        self.done[name] += 1
        if self.done[name] == self.total[name]:
            self.now.pop(name, None)
        if self.record and nodeid not in self.failed:
            with open(self.record, "a") as file:
                file.write(f"{nodeid}\n")

    def pytest_sessionfinish(self):
        self.ended.set()
        if self.on_terminal():
            self.terminal.write("\r\x1b[K")

    # -- the line

    def on_terminal(self) -> bool:
        return bool(self.terminal and self.terminal.isatty) and os.environ.get("TERM") != "dumb"

    def left(self) -> float:
        "Seconds until the end, by what each file took before; by the pace of now without that."
        workers = int(os.environ.get("WORKERS", 1))
        shares = {n: 1 - self.done[n] / count for n, count in self.total.items()}
        for name, start in list(self.now.items()):
            if self.total[name] == 1:  # a notebook has no parts that are counted
                gone = (time.monotonic() - start) / max(self.cost[name], 1)
                shares[name] = min(shares[name], max(1 - gone, 0.05))
        rest = {name: share * self.cost[name] for name, share in shares.items()}
        spent, all_of_it = sum(self.cost.values()) - sum(rest.values()), sum(rest.values())
        if not self.measured:
            gone = time.monotonic() - self.began
            return gone / max(spent, 1e-9) * all_of_it
        return max(all_of_it / workers, *rest.values())

    def line(self) -> str:
        kinds = {kind: [n for n in self.total if n.endswith(kind)] for kind in (".ipynb", ".py")}
        books, files = kinds[".ipynb"], kinds[".py"]
        ready = sum(self.done[n] == self.total[n] for n in books)
        tests, of = sum(self.done[n] for n in files), sum(self.total[n] for n in files)
        parts = [f"{ready} of {len(books)} notebooks"] * bool(books)
        parts += [f"{tests} of {of} tests"] * bool(files)
        parts += [f"{len(self.failed)} failed"] * bool(self.failed)
        gone = time.monotonic() - self.began
        if self.measured or gone > 60:
            parts.append(f"about {duration(self.left())} left")
        else:
            parts.append(duration(gone))
        if self.now:
            parts.append("now " + ", ".join(Path(name).stem for name in list(self.now)))
        return " · ".join(parts)

    def say(self, text: str):
        "A line that stays."
        start = "\r\x1b[K" if self.on_terminal() else ""
        self.terminal.write(f"{start}{text}\n", flush=True)

    def tell(self):
        "Write the line, each second in place or each minute anew, until the tests have ended."
        while not self.ended.wait(1 if self.on_terminal() else self.every):
            if self.on_terminal():
                width = shutil.get_terminal_size().columns
                self.terminal.write(f"\r\x1b[K{fitted(self.line(), width)}", flush=True)
            else:
                self.say(self.line())

    # -- the end

    def command(self, nodeid: str) -> str:
        "What repeats one test alone."
        here = Path(sys.executable).parent
        here = here.relative_to(ROOT) if here.is_relative_to(ROOT) else here
        name = nodeid.split("::")[0]
        if name.endswith(".ipynb"):
            return f"{here}/nbdev_test --path {name}"
        return f"{here}/python -m pytest '{nodeid}'"

    def keep_times(self):
        "For the order and the forecast of the next time; only of files that ran as a whole."
        known = json.loads(TIMES.read_text()) if TIMES.is_file() else {}
        whole = {n for n in self.total if self.done[n] == self.total[n]}
        known |= {name: round(self.took[name], 1) for name in whole}
        TIMES.parent.mkdir(parents=True, exist_ok=True)
        TIMES.write_text(json.dumps(known, indent=1, sort_keys=True))

    def end(self):
        "The failures with their commands, and a last line for machines."
        self.keep_times()
        print(f"\n{self.counts['skipped']} skipped, {duration(time.monotonic() - self.began)}")
        if self.failed:
            print("what failed, each alone:")
            print("\n".join(f"  {self.command(nodeid)}" for nodeid in self.failed))
        print(f"{self.counts['passed']} passed, {len(self.failed)} failed", flush=True)


def how_many() -> int:
    "Processes: one for each core, as far as 4 GB of memory for each go; more than 8 gain nothing."
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores, psutil.virtual_memory().total // 4_000_000_000, 8))


def arguments(workers: int, given: list[str]) -> list[str]:
    "What pytest gets: files to processes, the longest first."
    paths = [] if any(Path(one.split("::")[0]).exists() for one in given) else ["nbs", "tests"]
    share = ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
    return [*share, "-q", "--first", str(TIMES), "-p", "no:cacheprovider", *given, *paths]


def main(given: list[str]) -> int:
    os.chdir(ROOT)
    workers = int(os.environ.setdefault("WORKERS", str(how_many())))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each process keeps one core busy
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    progress = Progress(Path(os.environ["RECORD"]) if "RECORD" in os.environ else None)
    status = pytest.main(arguments(workers, given), plugins=[progress])
    progress.end()
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
