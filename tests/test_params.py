"Parameter files name parameters that exist, with values that are allowed."

import json
from pathlib import Path

import pytest
import yaml

NOTEBOOKS = Path(__file__).parent.parent / "nbs"
FILES = sorted((NOTEBOOKS / "params").glob("*.yaml"))


def heads(notebook: str) -> list[str]:
    "The parameters cell of a notebook, and the cell after it that checks what was injected."
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    first = next(i for i, c in enumerate(code) if "parameters" in c["metadata"].get("tags", []))
    return ["".join(cell["source"]) for cell in code[first : first + 2]]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_parameter_file_fits_its_notebook(file):
    declared, check = heads(file.stem.split(".")[0])
    given = yaml.safe_load(file.read_text())
    space = dict(__name__="notebook", In=[])
    exec(compile(declared, "parameters", "exec"), space)
    assert given.keys() <= space["__annotations__"].keys()
    space |= given
    exec(compile(check, "check", "exec"), space)  # raises for a value that is not allowed
    assert space["parameters"]
