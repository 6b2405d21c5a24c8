"""Say whether the library is what the notebooks export, and the notebooks are clean.

Works on a copy, so that checking changes nothing. Run by `make lint`.
"""

import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

root = Path(__file__).parent.parent
skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", ".*")


def files(folder: Path, part: str) -> set[str]:
    "Relative paths of notebooks or modules."
    paths = [p for extension in ("ipynb", "py") for p in (folder / part).rglob(f"*.{extension}")]
    visible = [p for p in paths if not any(q.startswith(".") for q in p.relative_to(folder).parts)]
    return {p.relative_to(folder).as_posix() for p in visible}


def drift(part: str, command: str) -> list[str]:
    "Files of a top folder that a command, run on a copy of the project, would change."
    with tempfile.TemporaryDirectory() as copy:
        for name in ("nbs", "synth_nb"):
            shutil.copytree(root / name, Path(copy) / name, ignore=skip)
        for name in ("settings.ini", "README.md"):
            shutil.copy(root / name, copy)
        subprocess.run([Path(sys.executable).with_name(command)], cwd=copy, check=True)
        both = files(root, part) | files(Path(copy), part)
        there = [n for n in both if (root / n).is_file() and (Path(copy) / n).is_file()]
        same = {n for n in there if filecmp.cmp(root / n, Path(copy) / n, shallow=False)}
        return sorted(both - same)


if __name__ == "__main__":
    found = 0
    for part, command in (("synth_nb", "nbdev_export"), ("nbs", "nbdev_clean")):
        changed = drift(part, command)
        found += len(changed)
        for name in changed:
            print(f"{name} differs from what `{command}` makes; run it and commit the result")
    sys.exit(1 if found else 0)
