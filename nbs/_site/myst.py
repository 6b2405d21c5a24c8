"What nbdev's processors make of a notebook, as MyST-NB reads it."

import ast
import json
import re
from pathlib import Path
from posixpath import dirname, join, normpath

from contents import origin
from execnb.nbio import dict2nb, nb2dict
from nbdev.processors import FilterDefaults

from synth_nb.tools.pages import repository

LONG = 15  # lines of code from which on a cell is folded
WIDGET = "application/vnd.jupyter.widget-view+json"
PANEL = "*In JupyterLab (`make lab`) a panel with controls stands here.*"
TITLE = re.compile(r'^---\ntitle: (".*")\ndescription: (".*")\n', re.M)


def links(text: str) -> str:
    "Links to names as plain anchors, which lead to any page; other links stay as they are."

    def anchor(match):
        name = match[1].replace("_", "&#95;")
        return f'<a class="name" href="{match[2]}.html#{match[3]}"><code>{name}</code></a>'

    return re.sub(r"\[`([\w.()]+)`\]\(([\w./]+)\.ipynb#([\w.]+)\)", anchor, text)


def definition(text: str) -> str:
    "The heading of a definition, with the anchor that names lead to."
    marked = r'<span class="anchor" id="\3"></span>\n\n{.definition}\n\1 `\2`'
    text = re.sub(r"^(#+) ([\w.]+) \{#([\w.]+)\}$", marked, text, count=1, flags=re.M)
    return re.sub(r"^\[source\]\((.+)\)$", r"{.source}\n[source](\1)", text, count=1, flags=re.M)


def with_summary(text: str) -> str:
    "A page whose first quotation, under its title, is its summary."
    return re.sub(r"\A(# .+\n\n)> (.+)$", r"\1{.summary}\n\2", text, count=1, flags=re.M)


def outside(text: str, page: str) -> str:
    """Links of a page (`library/core/runs`) to files elsewhere in the project: a run's files are
    handed out with the site, others are read in the repository."""

    def link(match):
        words, target = match.groups()
        file = normpath(join("nbs", dirname(page), target))  # from the project root
        if file.startswith("nbs/"):
            return match[0]
        if file.startswith("outputs/"):
            return f"{{download}}`{words} <{target}>`" if file.endswith(".md") else match[0]
        return f"[{words}]({repository(file)})"

    return re.sub(r"\[([^]]+)\]\((\.\./[^)]+)\)", link, text)


def markdown(source: str, page: str) -> str:
    "A markdown cell of a page as MyST."
    if front := TITLE.match(source):
        title, summary = map(ast.literal_eval, front.groups())
        return f"# {title}\n\n{{.summary}}\n{summary}"
    return links(outside(definition(source), page))


def output(out: dict) -> dict | None:
    "An output as a page can show it: no progress bars, no controls without a kernel."
    data = out.get("data", {})
    if WIDGET not in data:
        return out
    is_panel = "".join(data.get("text/plain", "")).startswith("interactive(")
    shown = {"text/markdown": PANEL, "text/plain": PANEL}
    return dict(output_type="display_data", metadata={}, data=shown) if is_panel else None


def code(cell: dict) -> dict:
    "A code cell without directives; long ones are folded, pictures have their words."
    source, meta = cell["source"], cell["metadata"]
    meta.pop("language", None)
    tags = meta.setdefault("tags", [])
    words = re.search(r'^#\| *fig-alt: *(".*")$', source, re.M)
    if words:
        meta["mystnb"] = {"image": {"alt": json.loads(words[1])}}
    visible = re.sub(r"^\s*#\|.*\n?", "", source, flags=re.M)
    if visible.count("\n") >= LONG and "parameters" not in tags and "code-fold" not in source:
        tags.append("hide-input")
    outputs = [one for out in cell.get("outputs", []) if (one := output(out))]
    return cell | dict(source=visible, outputs=outputs, execution_count=None)


def cells(notebook: dict, page: str) -> list[dict]:
    "The cells of a processed notebook as MyST-NB reads them."
    found = []
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
        if cell["cell_type"] == "code":
            found.append(code(cell))
        elif not cell["source"].startswith("<!--"):
            text = markdown(cell["source"], page)
            found.append(dict(cell_type="markdown", metadata={}, source=text))
    return [cell for cell in found if cell["source"].strip() or cell.get("outputs")]


def page(path: Path, text: str, name: str) -> dict:
    "A notebook through nbdev's processors, as MyST-NB reads it."
    notebook = dict2nb(json.loads(text))
    notebook.path_ = path
    FilterDefaults()(notebook)
    found = nb2dict(notebook)
    title, *others = cells(found, name)
    title["source"] += f"\n\n{origin(name)}"
    numbered = enumerate([title, *others])
    found["cells"] = [cell | {"id": f"cell-{number}"} for number, cell in numbered]
    found["metadata"].pop("widgets", None)
    return found
