"Parameter files name parameters that exist, with values that are allowed."

import json
from pathlib import Path

import pytest
import yaml

from synth_nb.grid import check_given

NOTEBOOKS = Path(__file__).parent.parent / "nbs"
FILES = sorted((NOTEBOOKS / "params").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_parameter_file_fits_its_notebook(file):
    notebook = NOTEBOOKS / f"{file.stem.split('.')[0]}.ipynb"
    given = yaml.safe_load(file.read_text(encoding="utf-8"))
    check_given(given, json.loads(notebook.read_text(encoding="utf-8"))["cells"])


@pytest.mark.parametrize("profile", ["smoke", "offline", "recommended", "reported"])
def test_a_profile_has_every_experiment(profile):
    every = {file.name.split(".")[0] for file in FILES}
    assert {file.name.split(".")[0] for file in FILES if f".{profile}." in file.name} == every


def test_what_nothing_is_downloaded_for_names_no_download():
    for file in FILES:
        if file.name.split(".")[1] in ("smoke", "offline"):
            text = file.read_text(encoding="utf-8")
            assert not any(f": {kind}:" in text for kind in ("hub", "hf", "kaggle", "em")), file
