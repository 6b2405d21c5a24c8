"""The house: stories at the top of `nbs`, every other notebook at the path of its module, and the
loaders that manifests name."""

import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from synth_nb.core.files import notebook_path
from synth_nb.core.runs import RENAMED_LOADERS, load_model

ROOT = Path(__file__).parent.parent
STORY = re.compile(r"\d\d_\w+")


def modules() -> dict[str, Path]:
    "Import path → file of every module that a notebook exports."
    files = [path for path in (ROOT / "synth_nb").rglob("*.py")
             if "File to edit:" in path.read_text(encoding="utf-8")]  # fmt: skip
    names = [path.relative_to(ROOT).with_suffix("").parts for path in files]
    return dict(zip([".".join(one).removesuffix(".__init__") for one in names], files, strict=True))


def test_the_path_of_a_module_gives_its_notebook():
    found = modules()
    assert len(found) > 90
    for name, file in found.items():
        notebook = re.search(r"File to edit: (\S+)\.$", file.read_text(encoding="utf-8"), re.M)[1]
        assert notebook_path(name) == (file.parent / notebook).resolve(), name


@pytest.mark.parametrize("name, path", [
    ("synth_nb.data.readers.archives", "library/data/readers/archives"),
    ("synth_nb.data.readers", "library/data/readers/index"),
    ("synth_nb.data", "library/data/index"), ("synth_nb.data.__init__", "library/data/index"),
    ("synth_nb.core.runs", "library/core/runs"), ("synth_nb.__main__", "library/main"),
    ("05_e2i", "05_e2i"), ("gone", "gone"),
])  # fmt: skip
def test_from_a_name_to_its_notebook(name, path):
    assert notebook_path(name) == ROOT / "nbs" / f"{path}.ipynb"


def test_every_notebook_of_the_library_exports_its_module():
    homes = {notebook_path(name) for name in modules()}
    assert {path for path in (ROOT / "nbs/library").rglob("[!.]*.ipynb")
            if ".ipynb_checkpoints" not in path.parts} == homes  # fmt: skip


def test_the_top_holds_stories_alone():
    "Each has parameters, and exports nothing."
    names = [path.stem for path in (ROOT / "nbs").glob("*.ipynb")]
    assert len(names) > 12 and [name for name in names if not STORY.fullmatch(name)] == []
    for name in names:
        text = notebook_path(name).read_text(encoding="utf-8")
        tags = [cell["metadata"].get("tags", []) for cell in json.loads(text)["cells"]]
        assert ["parameters"] in tags, name
        assert "#| default_exp" not in text, name


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").rglob("[!.]*.ipynb")), ids=lambda p: p.stem)
def test_no_output_names_a_temporary_folder(path):
    "It would change with every run; clear that cell's output, or print the path's last part."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not re.search(r"/tmp\w{8}\b", json.dumps(cell.get("outputs", []))), cell["id"]


def test_loaders_of_kept_runs_are_there():
    manifests = sorted((ROOT / "outputs").glob("*/*/manifest.json"))
    named = {json.loads(path.read_text(encoding="utf-8")).get("loader", "") for path in manifests}
    assert named & RENAMED_LOADERS.keys()
    for loader in filter(None, named | set(RENAMED_LOADERS.values())):
        module, _, function = RENAMED_LOADERS.get(loader, loader).partition(":")
        assert callable(getattr(importlib.import_module(module), function)), loader


@pytest.mark.parametrize("loader", RENAMED_LOADERS)
def test_a_run_that_names_an_older_loader_is_loaded(loader, tmp_path, monkeypatch):
    (tmp_path / "manifest.json").write_text(json.dumps(dict(loader=loader)))
    (tmp_path / "model").mkdir()
    monkeypatch.setattr("synth_nb.diffusion.experiment.load",
                        lambda folder, device: SimpleNamespace(folder=folder))
    assert load_model(tmp_path, "cpu").folder == tmp_path / "model"
