"Packaging: everything that can change is in settings.ini."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
suffix = "_requirements"
extras = {
    key.removesuffix(suffix).replace("_", "-"): value.split()
    for key, value in cfg.items()
    if key.endswith(suffix)
}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    packages=find_packages(include=["synth_nb", "synth_nb.*"]),
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
        "papermill.engine": [f"{cfg['lib_name']}={cfg['lib_name']}.engine:SynthEngine"],
    },
    zip_safe=False,
)
