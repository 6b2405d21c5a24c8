"""All tests on stand-ins for other processors: what `make test-processors` runs.

    python tests/processors.py                          # every setting, one after another
    python tests/processors.py default-1 native-4       # these

A setting is a set of instructions and a number of threads, `avx2-2`. What has passed is noted,
and a second start goes on from there, until a notebook, a test or the library changes.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "outputs" / "cache" / "tests" / "processors"
INSTRUCTIONS = {  # what torch and its convolutions may use; the others act for older processors
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "native": {},
}
SETTINGS = [f"{name}-{threads}" for threads in (1, 2, 4) for name in INSTRUCTIONS]
HEAD = ["setting", "notebooks passed", "failed", "tests passed", "failed", "skipped", "minutes"]


def environment(setting: str) -> dict[str, str]:
    "The variables of a setting, beside those that are there."
    name, threads = setting.split("-")
    others = {key for values in INSTRUCTIONS.values() for key in values}
    others_left = {key: value for key, value in os.environ.items() if key not in others}
    cache = {"SYNTH_NB_CACHE": str(FOLDER / f"{setting}-cache")}  # nothing comes from another one
    return others_left | INSTRUCTIONS[name] | cache | {"OMP_NUM_THREADS": threads}


def fingerprint() -> str:
    "Of everything that decides what a test does."
    found = hashlib.sha256()
    files = [*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("nbs/params/*"),
             *ROOT.glob("synth_nb/**/*.py"), *ROOT.glob("tests/*.py"),
             ROOT / "conftest.py", ROOT / "settings.ini"]  # fmt: skip
    for path in sorted(files):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def run(setting: str, words: list[str]) -> dict:
    "Run what has not passed yet; the row of the setting."
    record = FOLDER / f"{setting}.json"
    known = json.loads(record.read_text()) if record.is_file() else {}
    if known.get("of") != [fingerprint(), words]:
        record.unlink(missing_ok=True)
    options = {"RECORD": str(record), "RECORD_OF": json.dumps([fingerprint(), words])}
    subprocess.run([sys.executable, ROOT / "tests" / "run.py", *words],
                   env=environment(setting) | options)  # fmt: skip
    if not record.is_file():
        sys.exit(f"{setting}: no test was run")
    return json.loads(record.read_text())


def row(setting: str, record: dict) -> list[str]:
    "A line of the table."
    count = {(kind, how): 0 for kind in (True, False) for how in ("passed", "failed", "skipped")}
    for name, how in record["tests"].items():
        count[".ipynb" in name, how] += 1
    numbers = [count[True, "passed"], count[True, "failed"],
               *(count[False, how] for how in ("passed", "failed", "skipped"))]
    return [setting, *map(str, numbers), f"{record['seconds'] / 60:.0f}"]


def table(rows: list[list[str]]) -> str:
    lines = [HEAD, ["---"] * len(HEAD), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(words: list[str]) -> int:
    settings = [word for word in words if word in SETTINGS] or SETTINGS
    rest = [word for word in words if word not in SETTINGS]
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows, failed = [], []
    for setting in settings:
        print(f"\n{setting}", flush=True)
        record = run(setting, rest)
        rows.append(row(setting, record))
        failed += [f"{setting}: {n}" for n, how in record["tests"].items() if how == "failed"]
        (FOLDER / "table.md").write_text(table(rows) + "\n")
    print("", table(rows), *failed, sep="\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
