"What the site puts together from the notebooks that are there: menus, front page, list of names."

import json
import re
from pathlib import Path
from posixpath import dirname

from synth_nb.tools.pages import library, link_to, plain, repository

START = ["guides/learning_path", "guides/reading_metrics", "guides/results", "guides/status",
         "guides/originals", "guides/glossary"]
HOW_FIRST = ["guides/how_own_data", "guides/how_gpu_machine"]
NAMES = "guides/api"  # the page with all of them
PICTURE = re.compile(r"^!\[([^]]+)\]\((\.\./outputs/([^)]+)/[^/)]+)\)", re.M)


def stories() -> list[str]:
    "The notebooks that are read and run, in order."
    return [name for name in library() if "/" not in name]


def shelf() -> list[str]:
    "The library's packages, each by its own notebook, then its single modules."
    names = [name for name in library() if name not in stories()]
    packages = [name for name in names if re.fullmatch(r"library/\w+/index", name)]
    return [*packages, *(name for name in names if dirname(name) == "library")]


def parts(name: str) -> list[str]:
    "The modules and packages of a package, by the package's own notebook."
    if not name.endswith("/index"):
        return []
    inside = rf"{re.escape(dirname(name))}/(\w+|\w+/index)"
    return [f"/{other}" for other in library() if re.fullmatch(inside, other) and other != name]


def toctree(names: list[str], caption: str = "", hidden: bool = True) -> str:
    "A menu of pages; nothing for no pages."
    options = [":hidden:"] * hidden + [f":caption: {caption}"] * bool(caption)
    return "\n".join(["", "```{toctree}", *options, "", *names, "```", ""]) if names else ""


def menus(folder: Path) -> str:
    "The menus of the whole site."
    how = sorted(f"guides/{path.stem}" for path in folder.glob("guides/how_*.md"))
    how = [*HOW_FIRST, *(name for name in how if name not in HOW_FIRST)]
    menus = {"Start here": START, "Stories": stories(), "How to": how,
             "Library": [NAMES, *shelf()]}  # fmt: skip
    return "".join(toctree(pages, caption) for caption, pages in menus.items())


def card(path: Path) -> str:
    "A notebook with its title picture and the run that made it, or nothing."
    cell = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    picture, module = PICTURE.search(cell), library()[path.stem]
    if not picture:
        return ""
    words, file, run = picture.groups()
    manifest = f"[manifest](../outputs/{run}/manifest.json)"
    return "\n".join([
        ":::{container} card", "", f"[![{words}]({file})]({path.name})", "",
        f"**[{module.title}]({path.name})** {plain(module.summary)} ({manifest})", ":::", ""])


def gallery(folder: Path) -> str:
    "Every story that has a picture from a kept run."
    cards = [card(folder / f"{name}.ipynb") for name in stories()]
    return "\n".join(["::::{container} gallery", "", *cards, "::::", ""])


def dotted(module) -> str:
    "What one imports of a module."
    return module.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def origin(name: str) -> str:
    "Which file a page is made from and which module that makes; the search knows both by it."
    module = library()[name]
    text = f"{{.origin}}\n[`{name}.ipynb`]({repository(f'nbs/{name}.ipynb')})"
    target = f" makes [`{dotted(module)}`]({repository(module.file)})" if module.file else ""
    return text + target


def _first(text: str) -> str:
    return plain(re.split(r"\n\s*\n|(?<=[.]) ", text)[0])


def table_of(module) -> list[str]:
    "The public functions and classes of a module, one line each; nothing where it has none."
    if not module.defined:
        return []
    page = link_to(module.notebook, NAMES)
    rows = [f"| [`{name}`]({page}#{name.lower()}) | {_first(one.text)} "
            f"| [source]({repository(module.file, one.line)}) |"
            for name, one in module.defined.items() if "." not in name]  # fmt: skip
    return [f"### `{dotted(module)}`", "", f"From [{module.title}]({page}).", "",
            "| name | what it is | |", "| --- | --- | --- |", *rows, ""]  # fmt: skip


def names() -> str:
    "Every public function and class, by package and module."
    found = []
    for name in shelf():
        package = dotted(library()[name])
        tables = [line for module in library().values()
                  if f"{dotted(module)}.".startswith(f"{package}.") for line in table_of(module)]
        head = [f"## `{package}`", "", plain(library()[name].summary), ""]
        found += [*head, *tables] if tables else []
    return "\n".join(found)


def missing(folder: Path, text: str) -> list[str]:
    "Notebooks that a page of a folder links to and that are not there."
    named = dict.fromkeys(re.findall(r"\]\(([\w./]+)\.ipynb\)", text))
    return [name for name in named if not (folder / f"{name}.ipynb").is_file()]


def without_missing(folder: Path, text: str) -> str:
    "A page whose links to notebooks that are not there yet say so instead."
    for name in missing(folder, text):
        text = re.sub(rf"\[([^]]+)\]\({re.escape(name)}\.ipynb\)", r"\1 (not there yet)", text)
    return text
