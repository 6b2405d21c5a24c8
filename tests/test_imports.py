"""What imports what: packages have levels, imports go down only, and never round in a circle.

Modules that every notebook imports stay light: what is heavy is imported where it is used.
"""

import ast
import importlib.util
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

HEAVY = "diffusers transformers tensorflow IPython jupyter notebook".split()
ALSO = {"data": ["pandas", "sklearn", "skimage", "torchvision", "matplotlib"]}
MODULES = ["data", "metrics", "core.runs", "training", "embedders", "stylegan2"]
PROGRAM = "import sys, {name}; print(*[m for m in {heavy} if m in sys.modules])"

HOME = Path(__file__).parent.parent / "synth_nb"
LEVELS = [  # what is on no level is a model: below the tools, above all else
    {"core", "metrics"}, {"figures", "training"}, {"data", "embedders"}, {"evaluation"}]
MODELS, TOP = len(LEVELS), {"tools": len(LEVELS) + 1}
MOST_PUBLIC = 700  # names: each is a promise, and a line of the page of names


@pytest.mark.parametrize("module", MODULES)
def test_import_is_light(module):
    name = f"synth_nb.{module}"
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not there yet")
    program = PROGRAM.format(name=name, heavy=HEAVY + ALSO.get(module, []))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def modules(home: Path) -> dict[str, Path]:
    "Dotted name → file of every module of the library."
    files = [p for p in home.rglob("*.py") if p.name != "_modidx.py"]
    parts = {p: p.relative_to(home.parent).with_suffix("").parts for p in files}
    return {".".join(q[:-1] if q[-1] == "__init__" else q): p for p, q in parts.items()}


def reached(name: str, file: Path, known: dict[str, Path]) -> set[str]:
    "Modules of the library that a module imports, within its functions too."
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            inner = {f"{start}.{alias.name}" for alias in node.names}
            # from a package its modules, or what its front holds
            found |= (inner & known.keys()) | ({start} if inner - known.keys() else set())
    return found & known.keys() - {name}


def graph(home: Path) -> dict[str, set[str]]:
    "Module → modules that it imports."
    known = modules(home)
    return {name: reached(name, file, known) for name, file in known.items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
    "Names that lead back to the first, or nothing."
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def public_names(file: Path) -> list[str]:
    "The names in a module's `__all__`."
    lists = (node.value for node in ast.parse(file.read_text(encoding="utf-8")).body
             if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
    return next(map(ast.literal_eval, lists), [])


def test_public_names_are_few():
    files = [file for file in modules(HOME).values() if file.name != "__init__.py"]
    found = sum(len(public_names(file)) for file in files)
    assert 300 < found <= MOST_PUBLIC, (
        f"{found} public names: give `#| exporti` to what only its own package uses")


def package_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def between_packages(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    "Package → other packages that its modules import."
    packages = {package_of(name): set() for name in edges}
    for name, others in edges.items():
        packages[package_of(name)] |= {package_of(other) for other in others} - {package_of(name)}
    return packages


def upwards(packages: dict[str, set[str]]) -> list[str]:
    "Imports from a higher level, in words; packages without a level are models, at the top."
    level = {name: number for number, names in enumerate(LEVELS) for name in names} | TOP
    pairs = [(name, other) for name, others in packages.items() for other in others]
    return [f"{a} imports {b}" for a, b in pairs if level.get(a, MODELS) < level.get(b, MODELS)]


def test_modules_do_not_import_in_a_circle():
    assert circle(graph(HOME)) == []


def test_rooms_import_downwards_and_not_in_a_circle():
    packages = between_packages(graph(HOME))
    assert {"core", "data", "diffusion"} <= packages.keys()
    assert packages["diffusion"] >= {"data", "core"}
    assert upwards(packages) == []
    assert circle(packages) == []


@pytest.mark.parametrize(
    ("files", "names", "up"),
    [
        ({"data/a.py": "from .b import x", "data/b.py": "def f():\n from .a import y"},
         {"synth_nb.data.a", "synth_nb.data.b"}, []),
        ({"data/__init__.py": "from .a import x", "data/a.py": "from ..data import x"},
         {"synth_nb.data", "synth_nb.data.a"}, []),
        ({"core/runs.py": "import synth_nb.training", "training.py": ""}, set(),
         ["core imports training"]),
        ({"data/a.py": "from synth_nb import dcgan", "dcgan.py": ""}, set(),
         ["data imports dcgan"]),
        ({"dcgan.py": "import synth_nb.tools", "tools/__init__.py": ""}, set(),
         ["dcgan imports tools"]),
        ({"dcgan.py": "from synth_nb.data import a", "data/a.py": ""}, set(), []),
    ],
)
def test_circles_and_ways_up_are_seen(files, names, up, tmp_path):
    home = tmp_path / "synth_nb"
    for name, text in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    edges = graph(home)
    assert set(circle(edges)) == names and upwards(between_packages(edges)) == up
