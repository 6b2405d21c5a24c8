"Packaging: everything that can change is in settings.ini."

import re
import runpy
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MAIN = runpy.run_path(str(ROOT / "synth_nb/__main__.py"))  # of the library it needs nothing else


class WithNotebooks(build_py):
    """The library, and in a folder of it the project's files, for `python -m synth_nb notebooks`.

    An sdist asks a build for its sources, so it holds them too. An editable installation reads
    them from the checkout.
    """

    def packed(self) -> dict[str, str]:
        "Where each of the project's files goes in the build → where it is, from the root."
        home = Path(self.build_lib, "synth_nb", MAIN["PACKED"])
        return {str(home / path): path.as_posix() for path in MAIN["project_files"](ROOT)}

    def run(self):
        super().run()
        if not self.editable_mode:
            for target, source in self.packed().items():
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def get_source_files(self):
        return [*super().get_source_files(), *self.packed().values()]

    def get_outputs(self, include_bytecode=True):
        packed = [] if self.editable_mode else self.packed()
        return [*super().get_outputs(include_bytecode), *packed]


def extras(cfg) -> dict[str, list[str]]:
    "A key NAME_requirements is the extra NAME."
    suffix = "_requirements"
    keys = [key for key in cfg if key.endswith(suffix)]
    return {key.removesuffix(suffix).replace("_", "-"): cfg[key].split() for key in keys}


def description(blob: str) -> str:
    "README, whose links lead into the repository from wherever it is read."
    text = Path("README.md").read_text(encoding="utf-8")
    raw = blob.replace("/blob/", "/raw/")
    text = re.sub(r'(!\[[^]]*\]\(|<img src=")(?!\w+:)', rf"\g<1>{raw}/", text)
    return re.sub(r"(\]\()(?!\w+:|#)", rf"\g<1>{blob}/", text)


parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
blob = f"{cfg['git_url']}/blob/{cfg['branch']}"

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=description(blob),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    project_urls={
        "Documentation": f"{cfg['doc_host']}{cfg['doc_baseurl']}/",
        "Source": cfg["git_url"],
        "Changelog": f"{blob}/CHANGELOG.md",
        "Issues": f"{cfg['git_url']}/issues",
    },
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=cfg["classifiers"].strip().splitlines(),
    keywords=cfg["keywords"].split(),
    packages=find_packages(include=["synth_nb", "synth_nb.*"]),
    # weights that come with the library, and what is known of them
    package_data={"synth_nb": ["**/*.safetensors", "**/*.json"]},
    cmdclass={"build_py": WithNotebooks},
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require=extras(cfg),
    entry_points={
        "console_scripts": [f"{cfg['lib_name']}={cfg['lib_name']}.__main__:main"],
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
        "papermill.engine": [f"{cfg['lib_name']}={cfg['lib_name']}.tools.entry:ENGINE"],
    },
    zip_safe=False,
)
