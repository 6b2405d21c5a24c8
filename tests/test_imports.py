"Modules that every notebook imports stay light: what is heavy is imported where it is used."

import importlib.util
import subprocess
import sys

import pytest

HEAVY = "diffusers transformers tensorflow IPython jupyter notebook".split()
ALSO = {"data": ["pandas", "sklearn", "skimage", "torchvision", "matplotlib"]}
MODULES = ["data", "metrics", "runs", "training", "embedders", "stylegan2"]
PROGRAM = "import sys, {name}; print(*[m for m in {heavy} if m in sys.modules])"


@pytest.mark.parametrize("module", MODULES)
def test_import_is_light(module):
    name = f"synth_nb.{module}"
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not there yet")
    program = PROGRAM.format(name=name, heavy=HEAVY + ALSO.get(module, []))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
