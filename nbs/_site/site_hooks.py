"Where the site's parts meet Sphinx: every source before it is read, and equations."

import hashlib
import json
from pathlib import Path

import contents
import latex2mathml.converter
import myst
from docutils.nodes import SkipNode

from synth_nb.tools import pages


def read(app, docname: str, source: list[str]):
    "A source as MyST reads it: notebooks through nbdev, pages with what is put together for them."
    folder = Path(app.srcdir)
    path = folder / f"{docname}.ipynb"
    if path.exists():
        page = myst.page(path, source[0], docname)
        if menu := contents.toctree(contents.parts(docname)):
            page["cells"].append(dict(cell_type="markdown", id="parts", metadata={}, source=menu))
        source[0] = json.dumps(page)
        return
    text = contents.without_missing(path.parent, source[0])
    text = myst.outside(myst.with_summary(text), docname)
    text = text.replace("<!-- gallery -->", contents.gallery(folder))
    text = text.replace("<!-- names -->", myst.links(contents.names()))
    source[0] = text + (contents.menus(folder) if docname == app.config.root_doc else "")


def outdated_pages(app, env, added, changed, removed):
    "Pages that show what other pages hold are read again when any of those changed."
    return ["index", contents.NAMES, *contents.START] if added | changed | removed else []


def _code() -> str:
    "What makes pages of sources; another one makes all of them anew."
    files = [*sorted(Path(__file__).parent.glob("*.py")), Path(pages.__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _mathml(display: str):
    def visit(self, node):
        text = latex2mathml.converter.convert(node.astext(), display=display)
        # bars of a norm are as high as a line, as in print
        self.body.append(text.replace("<mo>&#x02016;", '<mo stretchy="false">&#x02016;'))
        raise SkipNode

    return visit, None


def setup(app):
    app.add_config_value("site_code", _code(), "env")
    app.connect("source-read", read)
    app.connect("env-get-outdated", outdated_pages)
    app.add_html_math_renderer("mathml", _mathml("inline"), _mathml("block"))
    return dict(parallel_read_safe=True, parallel_write_safe=True)
