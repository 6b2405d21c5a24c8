"""Say which names a notebook's cells use and nothing defines, and which parameters they overwrite.

Ruff cannot know what a star import brings, so here each is written out before ruff looks.
A branch that no quick run takes is found this way. Run by `make lint`.
"""

import ast
import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

root = Path(__file__).parent.parent
star = re.compile(r"^( *)from ([\w.]+) import \*", re.MULTILINE)


def spelled_out(found: re.Match) -> str:
    "A star import as one of every name it brings."
    module = importlib.import_module(found[2])
    names = getattr(module, "__all__", None) or [n for n in dir(module) if not n.startswith("_")]
    return f"{found[1]}from {found[2]} import {', '.join(names)}"


def as_script(notebook: Path) -> str:
    "A notebook's code cells in their order, without magics."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    lines = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    return star.sub(spelled_out, re.sub(r"^( *)[%!].*$", r"\1pass", lines, flags=re.MULTILINE))


def overwritten(notebook: Path) -> list[str]:
    "Parameters whose name a definition takes, or an import."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    names = {node.target.id for code in sources for node in ast.parse(code).body}
    defined = set()
    for node in ast.parse(as_script(notebook)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {one.asname or one.name for one in node.names}
    return sorted(names & defined)


if __name__ == "__main__":
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for notebook in (root / "nbs").rglob("*.ipynb"):
            if ".ipynb_checkpoints" not in notebook.parts:
                name = "-".join(notebook.relative_to(root / "nbs").with_suffix("").parts)
                script = Path(folder, f"{name}.py")
                script.write_text(as_script(notebook), encoding="utf-8")
                for name in overwritten(notebook):
                    print(f"{notebook}: a definition overwrites the parameter {name}")
                    wrong = 1
        ruff = [Path(sys.executable).with_name("ruff"), "check", "--isolated", "--quiet"]
        ruff += ["--select", "F821", "--output-format", "concise", "."]
        sys.exit(subprocess.run(ruff, cwd=folder).returncode or wrong)
