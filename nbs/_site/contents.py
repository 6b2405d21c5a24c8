"What the site puts together from the notebooks that are there: menus, front page, list of names."

import json
import re
from pathlib import Path

from synth_nb.pages import library, plain, repository

FRONTS = {"01_data": "01_data_prep"}  # whose parts are not named after it
ROOMS = {"Foundations": "00 01", "Models": "02 03 04 05 06 07", "Evaluation": "08"}
START = ["learning_path", "reading_metrics"]
HOW_FIRST = ["how_own_data", "how_gpu_machine"]
PICTURE = re.compile(r"^!\[([^]]+)\]\((\.\./outputs/([^)]+)/[^/)]+)\)", re.M)


def front(name: str, names: set[str]) -> str:
    "The notebook that a notebook is a part of, or nothing."
    stems = [name.rsplit("_", count)[0] for count in range(1, name.count("_") + 1)]
    owners = [FRONTS.get(stem, stem) for stem in stems if stem.count("_")]
    return next((owner for owner in owners if owner in names and owner != name), "")


def parts(name: str, names: set[str]) -> list[str]:
    "The notebooks that are parts of one, in order."
    return sorted(other for other in names if front(other, names) == name)


def toctree(names: list[str], caption: str = "", hidden: bool = True) -> str:
    "A menu of pages; nothing for no pages."
    options = [":hidden:"] * hidden + [f":caption: {caption}"] * bool(caption)
    return "\n".join(["", "```{toctree}", *options, "", *names, "```", ""]) if names else ""


def rooms(names: set[str]) -> dict[str, list[str]]:
    "Caption → notebooks that are no part of another; a number without a room is a model."
    number = {number: room for room, numbers in ROOMS.items() for number in numbers.split()}
    found = {room: [] for room in ROOMS}
    for name in sorted(names):
        if not front(name, names):
            found[number.get(name[:2], "Models")].append(name)
    return found


def menus(folder: Path) -> str:
    "The menus of the whole site."
    names = {path.stem for path in folder.glob("[0-9]*.ipynb")}
    how = sorted(path.stem for path in folder.glob("how_*.md"))
    how = [*HOW_FIRST, *(name for name in how if name not in HOW_FIRST)]
    menus = {"Start here": START, "How to": how, **rooms(names), "Reference": ["api"]}
    return "".join(toctree(pages, caption) for caption, pages in menus.items())


def card(path: Path) -> str:
    "A notebook with its title picture and the run that made it, or nothing."
    cell = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    picture, module = PICTURE.search(cell), library()[path.stem]
    if not picture:
        return ""
    words, file, run = picture.groups()
    made = f"[manifest](../outputs/{run}/manifest.json)"
    return "\n".join([
        ":::{container} card", "", f"[![{words}]({file})]({path.name})", "",
        f"**[{module.title}]({path.name})** {plain(module.summary)} ({made})", ":::", ""])


def gallery(folder: Path) -> str:
    "Every notebook that has a picture from a kept run."
    cards = [card(path) for path in sorted(folder.glob("[0-9]*.ipynb"))]
    return "\n".join(["::::{container} gallery", "", *cards, "::::", ""])


def dotted(module) -> str:
    "What one imports of a module."
    return module.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def origin(name: str) -> str:
    "Which file a page is made from and which module that makes; the search knows both by it."
    module = library()[name]
    said = f"{{.origin}}\n[`{name}.ipynb`]({repository(f'nbs/{name}.ipynb')})"
    made = f" makes [`{dotted(module)}`]({repository(module.file)})" if module.file else ""
    return said + made


def _first(text: str) -> str:
    return plain(re.split(r"\n\s*\n|(?<=[.]) ", text)[0])


def names() -> str:
    "Every public function and class, by module."
    found = []
    for module in library().values():
        if not module.defined:
            continue
        rows = [
            f"| [`{name}`]({module.notebook}.ipynb#{name.lower()}) | {_first(one.text)} "
            f"| [source]({repository(module.file, one.line)}) |"
            for name, one in module.defined.items()]
        found += [f"## `{dotted(module)}`", "", f"From [{module.title}]({module.notebook}.ipynb).",
                  "", "| name | what it is | |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(found)


def missing(folder: Path, text: str) -> list[str]:
    "Notebooks that a page links to and that are not there."
    named = dict.fromkeys(re.findall(r"\]\((\w+)\.ipynb\)", text))
    return [name for name in named if not (folder / f"{name}.ipynb").is_file()]


def without_missing(folder: Path, text: str) -> str:
    "A page whose links to notebooks that are not there yet say so instead."
    for name in missing(folder, text):
        text = re.sub(rf"\[([^]]+)\]\({name}\.ipynb\)", r"\1 (not there yet)", text)
    return text
