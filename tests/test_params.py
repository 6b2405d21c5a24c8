"Parameter files name parameters that exist, with values that are allowed."

import ast
import json
from pathlib import Path

import pytest
import yaml

from synth_nb.runs import check_parameters

NOTEBOOKS = Path(__file__).parent.parent / "nbs"
FILES = sorted((NOTEBOOKS / "params").glob("*.yaml"))


def declared(notebook: str) -> dict:
    "The namespace after the parameters cell of a notebook."
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text())["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    source = "".join(tagged[0]["source"])
    namespace = {}
    exec(compile(ast.parse(source), notebook, "exec"), namespace)
    return namespace


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_parameter_file_fits_its_notebook(file):
    namespace, given = declared(file.stem.split(".")[0]), yaml.safe_load(file.read_text())
    assert given.keys() <= namespace["__annotations__"].keys()
    assert check_parameters(namespace | given | dict(In=[])).keys() >= given.keys()
