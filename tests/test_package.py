"""What a stranger installs: a wheel with the notebooks in it, its metadata, what it asks for; and
what the repository tells those who come to work on it."""

import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from nbdev.doclinks import nbglob
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from synth_nb import __main__ as program
from synth_nb.tools.grid import declared_parameters

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(nbglob(ROOT / "nbs", as_path=True))
SUFFIX = "_requirements"
# modules for which an extra is installed: what they import at their top may be the extra's
ITS_EXTRA = {"engine": "notebooks", "entry": "notebooks", "story": "notebooks", "grid": "grid",
             "pages": "docs"}
# by the extra dev, so nothing here knows whose they are
NOT_INSTALLED = {"umap": "umap-learn", "nibabel": "nibabel", "pillow_heif": "pillow-heif",
                 "opacus": "opacus"}


def settings() -> dict[str, str]:
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def run(*arguments, folder: Path, library: Path = ROOT) -> subprocess.CompletedProcess:
    "Python in a folder, with the library that lies in another."
    path = [str(library), *filter(None, [os.environ.get("PYTHONPATH")])]
    surroundings = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True)


# ---- papermill's entry point ----


@pytest.mark.parametrize("first", ["synth_nb.tools.engine", "papermill.execute"])
def test_the_engine_may_be_imported_before_papermill_and_after(first, tmp_path):
    "papermill loads the entry point while it is imported; the library must be installed anew."
    program = (f"import {first}, sys; early = 'synth_nb.tools.engine' in sys.modules; "
               "from papermill.engines import papermill_engines as p; "
               "print(early, p.get_engine('synth_nb').execute_notebook.__self__.__name__, "
               "p.get_engine(None).execute_notebook.__self__.__name__)")
    done = run("-c", program, folder=tmp_path)
    early = first == "synth_nb.tools.engine"
    assert done.stdout.split() == [str(early), "SynthEngine", "DefaultEngine"], done.stderr


# ---- the wheel ----


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    "A folder with wheel and sdist, the wheel made from the sdist; weights are put in beforehand."
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    files = [ROOT / path for path in program.project_files(ROOT)]
    files += [ROOT / name for name in ("setup.py", "MANIFEST.in", "README.md", "LICENSE")]
    files += [path for path in (ROOT / "synth_nb").rglob("*") if "__pycache__" not in path.parts]
    for file in files:
        if file.is_file():
            (copy / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            (copy / file.relative_to(ROOT)).write_bytes(file.read_bytes())
    weights = copy / "synth_nb/diffusion/weights"
    weights.mkdir(exist_ok=True)
    for name in ("tried.safetensors", "tried.json"):
        (weights / name).write_text("{}")
    done = run("-m", "build", "--no-isolation", "--outdir", out, copy, folder=copy)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    "What pip would unpack into site-packages."
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(next(built.glob("*.whl"))).extractall(folder)
    return folder


def test_the_wheel_holds_library_notebooks_and_weights(built, installed):
    names = {p.relative_to(installed).as_posix() for p in installed.rglob("*") if p.is_file()}
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "synth_nb").rglob("*.py")}
    assert len(modules) > 50 and modules <= names
    assert {f"synth_nb/diffusion/weights/tried.{end}" for end in ("safetensors", "json")} <= names
    project = {f"synth_nb/{program.PACKED}/{p.as_posix()}" for p in program.project_files(ROOT)}
    assert project <= names
    data = {p.relative_to(ROOT).as_posix() for end in ("safetensors", "json")
            for p in (ROOT / "synth_nb").rglob(f"*.{end}")}  # fmt: skip
    assert data <= names
    rest = {name for name in names - modules - project - data if "/weights/tried." not in name}
    assert {name.split("/")[0] for name in rest} == {f"synth_nb-{settings()['version']}.dist-info"}
    assert next(built.glob("*.whl")).stat().st_size < 20e6


def test_the_sdist_holds_what_the_wheel_is_made_of(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {path.as_posix() for path in program.project_files(ROOT)} <= names
    assert {"setup.py", "settings.ini", "README.md", "LICENSE", "synth_nb/__main__.py",
            "synth_nb/diffusion/weights/tried.safetensors"} <= names  # fmt: skip


def test_every_notebook_and_its_pictures_are_taken():
    "Whatever folder of `nbs` they are in."
    taken = set(program.project_files(ROOT))
    assert len(NOTEBOOKS) > 80 and {path.relative_to(ROOT) for path in NOTEBOOKS} <= taken
    pictures = {path for page in NOTEBOOKS for path in program.linked_files(page, ROOT.resolve())
                if path.suffix == ".png"}  # fmt: skip
    assert len(pictures) > 8 and {path.relative_to(ROOT.resolve()) for path in pictures} <= taken


def test_metadata_are_valid_and_complete(built, installed):
    file = next(installed.glob("*.dist-info")) / "METADATA"
    about = Metadata.from_email(file.read_bytes(), validate=True)
    assert (about.name, str(about.version)) == ("synth_nb", settings()["version"])
    assert about.license_expression == "Apache-2.0" and about.license_files == ["LICENSE"]
    assert set(about.project_urls) == {"Documentation", "Source", "Changelog", "Issues"}
    assert all(url.startswith("https://") for url in about.project_urls.values())
    assert f"Programming Language :: Python :: {settings()['min_python']}" in about.classifiers
    assert {e.replace("-", "_") + SUFFIX for e in about.provides_extra} == {
        key for key in settings() if key.endswith(SUFFIX)}  # fmt: skip
    repository = f"{settings()['git_url']}/"
    links = re.findall(r'\]\(([^)\s]+)\)|<img src="([^"]+)"', about.description)
    links = [markdown or html for markdown, html in links]
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    files = [link.removeprefix(repository).split("#")[0].split("/", 2)[2]
             for link in links if link.startswith((f"{repository}blob/", f"{repository}raw/"))]
    assert len(files) > 20 and [name for name in files if not (ROOT / name).exists()] == []


# ---- the folder that it writes ----


@pytest.fixture(scope="module")
def written(installed, tmp_path_factory) -> Path:
    "A folder of notebooks as the unpacked wheel writes it, far from any checkout."
    here = tmp_path_factory.mktemp("user")
    done = run("-m", "synth_nb", "notebooks", "my notebooks", folder=here, library=installed)
    assert done.returncode == 0, done.stderr
    assert "cd 'my notebooks'" in done.stdout and "papermill nbs/05_e2i.ipynb" in done.stdout
    return here / "my notebooks"


def test_the_written_folder_is_that_of_the_checkout(written):
    files = {p.relative_to(written) for p in written.rglob("*") if p.is_file()}
    assert files == set(program.project_files(ROOT))
    assert all((written / f).read_bytes() == (ROOT / f).read_bytes() for f in files)


def test_papermill_runs_a_written_notebook_with_the_wheel_s_library(
    written, installed, monkeypatch
):
    "The library is the unpacked one, and the run goes to the written folder."
    probe = "import synth_nb; from synth_nb.core.files import project_root as p; " \
            "print(synth_nb.__file__, p(), sep='\\n')"  # fmt: skip
    done = run("-c", probe, folder=written / "nbs", library=installed)
    assert done.stdout.split("\n")[:2] == [f"{installed / 'synth_nb/__init__.py'}", f"{written}"]
    monkeypatch.delenv("IN_TEST")  # the notebook as a user runs it: a report on the kept runs
    done = run("-m", "papermill", "--no-progress-bar", "nbs/08_report.ipynb", "out.ipynb",
               "-p", "run_name", "tried", folder=written, library=installed)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    manifest = json.loads((written / "outputs/08_report/tried/manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert "iVBOR" in (written / "out.ipynb").read_text()  # the kept runs' pictures are there


@pytest.mark.parametrize("name", ["full", "full/a file"])
def test_nothing_is_overwritten(name, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a file").write_text("mine")
    done = run("-m", "synth_nb", "notebooks", name, folder=tmp_path)
    assert done.returncode == 1 and done.stderr == (
        f"synth_nb: {name} is not an empty folder: nothing was written; name one that is empty or "
        "does not exist yet\n")
    assert [p.name for p in tmp_path.rglob("*")] == ["full", "a file"]
    assert (tmp_path / "full/a file").read_text() == "mine"


def test_a_disk_that_is_full_leaves_no_half_a_folder(monkeypatch, tmp_path):
    copied = []

    def copy(source, target):
        if len(copied) == 3:
            raise OSError(28, "No space left on device", str(target))
        copied.append(Path(target).write_text("x"))

    monkeypatch.setattr(program.shutil, "copyfile", copy)
    with pytest.raises(SystemExit, match="No space left on device"):
        program.main(["notebooks", str(tmp_path / "new")])
    assert len(copied) == 3 and list(tmp_path.iterdir()) == []


def test_an_installation_without_notebooks_says_so(monkeypatch, tmp_path):
    (tmp_path / "synth_nb").mkdir()
    (tmp_path / "synth_nb/__init__.py").touch()
    spec = program.find_spec("synth_nb")
    monkeypatch.setattr(spec, "submodule_search_locations", [str(tmp_path / "synth_nb")])
    monkeypatch.setattr(program, "find_spec", lambda name: spec)
    with pytest.raises(SystemExit, match="installed without its notebooks"):
        program.main(["notebooks", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("arguments", [[], ["notebook", "x"], ["notebooks"], ["report", "smoke"]])
def test_a_call_that_is_none_gets_usage(arguments, tmp_path):
    done = run("-m", "synth_nb", *arguments, folder=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("usage: synth_nb")
    assert list(tmp_path.iterdir()) == []


# ---- what is imported is asked for ----


def declared(*keys: str) -> set[str]:
    "Distributions that these keys of settings.ini ask for."
    found = settings()
    return {canonicalize_name(Requirement(one).name) for key in keys for one in found[key].split()}


def imports(source: str) -> tuple[set[str], set[str]]:
    "Packages from elsewhere that a source imports at its top, and those that it imports within."
    tree = ast.parse(source)
    top, within = set(), set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        found = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"synth_nb"}
        (top if node in tree.body else within).update(found)
    return top, within


def source_of(file: Path) -> str:
    "Code of a module or of a notebook, without magics."
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    return re.sub(r"^( *)[%!].*$", r"\1pass", text, flags=re.M)


@pytest.fixture(scope="module")
def owners() -> dict[str, set[str]]:
    "Package that is imported → distributions that have it."
    found = {name: {canonicalize_name(one) for one in ones}
             for name, ones in packages_distributions().items()}  # fmt: skip
    return {name: {owner} for name, owner in NOT_INSTALLED.items()} | found


def lacking(names: set[str], declared: set[str], owners: dict[str, set[str]]) -> list[str]:
    "Packages whose distribution nothing asks for."
    return sorted(name for name in names if not owners.get(name, {name}) & declared)


def test_the_library_asks_for_what_it_imports(owners):
    """At its top a module may import what every installation has, or the extra that it is for;
    within a function any extra's."""
    every = declared(*(key for key in settings() if key.endswith("requirements")))
    found = []
    for file in sorted((ROOT / "synth_nb").rglob("*.py")):
        top, within = imports(source_of(file))
        extra = [ITS_EXTRA[file.stem] + SUFFIX] if file.stem in ITS_EXTRA else []
        lost = lacking(top, declared("requirements", *extra), owners)
        lost += lacking(within, every, owners)
        found += [f"{file.relative_to(ROOT)} imports {name}" for name in lost]
    assert found == [], "settings.ini asks for none of these"


def test_notebooks_site_and_tests_ask_for_what_they_import(owners):
    "An extra is enough: notebooks import what they try out."
    every = declared(*(key for key in settings() if key.endswith("requirements")))
    scripts = [*(ROOT / "tests").glob("*.py"), *(ROOT / "nbs/_site").glob("*.py")]
    beside = {path.stem for path in [*scripts, *(ROOT / "benchmarks").glob("*.py")]}
    found = []
    for file in [*NOTEBOOKS, *scripts]:
        top, within = imports(source_of(file))
        lost = lacking((top | within) - beside, every, owners)
        found += [f"{file.relative_to(ROOT)} imports {name}" for name in lost]
    assert found == [], "settings.ini asks for none of these"


def test_what_is_not_asked_for_is_seen(owners):
    top, within = imports("import os, yaml\nfrom PIL import Image\ndef f():\n import umap.x, gone")
    assert (top, within) == ({"yaml", "PIL"}, {"umap", "gone"})
    assert lacking(top | within, {"pyyaml", "umap-learn"}, owners) == ["PIL", "gone"]


def test_what_ci_installs_is_allowed():
    "The locked set has a version of all that the tests need, within its range."
    lines = (ROOT / "tests/constraints.txt").read_text().split()
    pinned = {canonicalize_name(name): v for name, v in (line.split("==") for line in lines)}
    wanted = (settings()["requirements"] + " " + settings()["dev_requirements"]).split()
    wrong = [text for text in wanted if (one := Requirement(text)) and "setuptools" not in text
             if not one.marker or one.marker.evaluate()
             if not one.specifier.contains(pinned.get(canonicalize_name(one.name), "0"))]
    assert wrong == []


def test_extras_that_are_named_are_there():
    "In commands of the library, the pages and the Makefile."
    pages = [*ROOT.glob("*.md"), *(ROOT / "nbs").rglob("*.md"), ROOT / "Makefile", *NOTEBOOKS]
    named = {}
    for file in [*pages, *(ROOT / "synth_nb").rglob("*.py")]:
        text = file.read_text(encoding="utf-8")
        for names in re.findall(r"(?:synth_nb|['\" ]\.)\[([a-z][a-z,-]*)\]", text):
            named |= {name: file.name for name in names.split(",")}
    there = {key.removesuffix(SUFFIX).replace("_", "-") for key in settings()
             if key.endswith(SUFFIX)}  # fmt: skip
    assert len(named) > 7
    assert {name: file for name, file in named.items() if name not in there} == {}


COMMAND = re.compile(r"papermill (?:--?[\w-]+ )*(nbs/\S+\.ipynb)([^\n`]*)")


def test_commands_of_the_pages_name_parameters_that_are_there():
    pages = [*ROOT.glob("README*.md"), *(ROOT / "nbs").rglob("*.md"),
             *(ROOT / "benchmarks").glob("*.md")]  # fmt: skip
    commands = [(page.name, *match.groups()) for page in pages for match in COMMAND.finditer(
        page.read_text(encoding="utf-8").replace("\\\n", " "))]
    assert len(commands) > 30
    wrong = []
    for page, notebook, options in commands:
        cells = json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]
        names = declared_parameters(cells)["__annotations__"]
        names_used = re.findall(r" -[pr] (\w+) ", options)
        wrong += [f"{page}: {notebook} has no {name}" for name in names_used if name not in names]
        files = re.findall(r" -f (nbs/\S+)", options)
        wrong += [f"{page}: there is no {file}" for file in files if not (ROOT / file).is_file()]
    assert wrong == []


# ---- those who work on it ----


def test_the_workflow_runs_what_has_to_pass():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert job["steps"][-1]["run"] == ".ci/run" and os.access(ROOT / ".ci/run", os.X_OK)
    python = next(s["with"] for s in job["steps"] if "setup-python" in s.get("uses", ""))
    assert python["python-version"] == settings()["min_python"] and python["cache"] == "pip"
    assert (ROOT / python["cache-dependency-path"]).is_file()
    assert job["timeout-minutes"] == 90


def test_the_changelog_knows_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## \[([^]]+)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.M)
    assert heads[0] == ("Unreleased", "")
    assert all(date for _, date in heads[1:]) and settings()["version"] in dict(heads)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(cited["version"]) == settings()["version"]
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= {
        "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}  # fmt: skip


@pytest.mark.parametrize("name", ["CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_of_the_pages_lead_to_files(name):
    page = ROOT / name
    links = re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8"))
    assert links and [x for x in links if ":" not in x and not (ROOT / x).exists()] == []
