"""How much there is to read: names, lines and cells of the library, and what its import costs.

A line of a module is one of: code, a signature (one annotated parameter a line), a docstring, an
import, `__all__`, blank, a comment, or the mark of the cell that it comes from. Run:
python benchmarks/house.py [--rounds 5]
"""

import argparse
import ast
import json
import re
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

from common import machine

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

KINDS = ("code", "signature", "docstring", "import", "__all__", "blank", "comment", "cell mark")
LONG = 25  # lines of a cell


def modules() -> list[Path]:
    "Files of the library, without nbdev's index."
    return sorted(p for p in (ROOT / "synth_nb").rglob("*.py") if p.name != "_modidx.py")


def spans(tree: ast.AST):
    "First line, last line and kind of what is not plain code, the inner ones last."
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.body[0].lineno - 1, "signature"
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node) is not None:
                yield node.body[0].lineno, node.body[0].end_lineno, "docstring"
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node.lineno, node.end_lineno, "import"
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            yield node.lineno, node.end_lineno, "__all__"


def kinds(source: str) -> Counter:
    "Lines of a module by kind."
    lines = source.splitlines()
    found = ["code"] * len(lines)
    for first, last, kind in spans(ast.parse(source)):
        found[first - 1 : last] = [kind] * (last - first + 1)
    for i, line in enumerate(line.strip() for line in lines):
        if found[i] in ("code", "signature") and (not line or line.startswith("#")):
            mark = "cell mark" if line.startswith("# %%") else "comment"
            found[i] = mark if line else "blank"
    return Counter(found)


def package_of(path: Path) -> str:
    return path.relative_to(ROOT / "synth_nb").parts[0].removesuffix(".py")


def lines_table() -> str:
    "Exported lines by package and kind."
    packages = {}
    for path in modules():
        name = package_of(path)
        packages[name] = packages.get(name, Counter()) + kinds(path.read_text(encoding="utf-8"))
    ordered = sorted(packages.items(), key=lambda item: -item[1].total())
    rows = [*ordered, ("**all**", sum(packages.values(), Counter()))]
    head = f"| package | lines | {' | '.join(KINDS)} |\n| --- {'| ---: ' * (len(KINDS) + 1)}|"
    return "\n".join([head, *(
        f"| {name} | {count.total():,} | {' | '.join(f'{count[kind]:,}' for kind in KINDS)} |"
        for name, count in rows)])  # fmt: skip


def public_names() -> int:
    "Names that modules export; what a package's `__init__` passes on is counted where it is made."
    trees = (ast.parse(p.read_text(encoding="utf-8")) for p in modules() if p.stem != "__init__")
    lists = (node.value for tree in trees for node in tree.body if isinstance(node, ast.Assign)
             and ast.unparse(node.targets[0]) == "__all__")  # fmt: skip
    return sum(len(one.elts) for one in lists)


def cells() -> list[list[str]]:
    "Lines of every code cell."
    books = [p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    found = (cell for path in books for cell in json.loads(path.read_text("utf-8"))["cells"])
    return ["".join(c["source"]).splitlines() for c in found if c["cell_type"] == "code"]


def readme_words() -> int:
    "Words of README.md outside of code and tables, as its test counts them."
    text = re.sub(r"^```.*?^```", "", (ROOT / "README.md").read_text("utf-8"), flags=re.M | re.S)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "<!--"))]
    return len(" ".join(lines).split())


def retired_words() -> int:
    "Names that use a word which the glossary retires."
    import words

    table = words.retired((ROOT / words.PAGE).read_text(encoding="utf-8"))
    return sum(len(words.wrong_words(name, table)) for name in words.all_names())


def import_seconds(statement: str) -> float:
    "CPU seconds of an import in a fresh interpreter that has torch."
    code = f"import time, torch; t = time.process_time(); {statement}; print(time.process_time()-t)"
    return float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT))


def import_ratios(rounds: int) -> list[float]:
    "Import of synth_nb.data in parts of the import of NumPy, pandas and scikit-learn's data sets."
    libraries = "import numpy, pandas, sklearn.datasets"
    for statement in (libraries, "import synth_nb.data"):
        import_seconds(statement)  # read from the disk once
    return [import_seconds("import synth_nb.data") / import_seconds(libraries)
            for _ in range(rounds)]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of the imports")
    args = parser.parse_args()
    print(f"{machine()}\n\n{lines_table()}\n")
    code = cells()
    total = sum(kinds(path.read_text(encoding="utf-8")).total() for path in modules())
    ratios = import_ratios(args.rounds)
    figures = [
        ("public names", public_names(), "at most 700"),
        ("exported lines", f"{total:,}", "at most 20,000"),
        (f"cells over {LONG} lines, of {len(code):,}", sum(len(c) > LONG for c in code), "few"),
        ("words of README.md, without code and tables", readme_words(), "at most 900"),
        ("retired words in names", retired_words(), "0"),
        ("`import synth_nb.data` after torch, / NumPy, pandas and scikit-learn's data sets",
         f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})", "no slower"),
    ]
    print("| figure | now | aim |\n| --- | --- | --- |")
    print(*(f"| {name} | {value} | {aim} |" for name, value, aim in figures), sep="\n")
