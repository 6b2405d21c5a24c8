"""Refuse retired words as names, and say the right one. Run by `make lint`.

The words stand in one place, the tables of `nbs/guides/glossary.md`. Names are those that the
project defines: functions, classes, parameters, fields, variables, and the parameters of
notebooks and of their files. Words that the page lists under "Still open" are only counted.

    python tests/words.py            # what is refused
    python tests/words.py --report   # all that is there, by word and by file; always succeeds
    python tests/words.py --close    # strike words from "Still open" that are gone
"""

import ast
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = "nbs/guides/glossary.md"
TABLES = {"Retired parameters": "parameter", "Retired words": "part",
          "Retired functions and classes": "definition"}  # fmt: skip
PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
MAGIC = re.compile(r"^( *)[%!].*$", re.M)
# proper names of other things: file → names
OTHERS = {}


class Name(NamedTuple):
    "A name that the project defines."

    word: str
    kind: str  # parameter (of a notebook), definition (function or class), or name
    file: str
    where: str  # line of a script, cell and line of a notebook


def sections(text: str) -> dict[str, str]:
    "Heading → text of a page's second-level sections."
    parts = re.split(r"^## (.+)\n", text, flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def retired(text: str) -> dict[str, dict[str, str]]:
    "Kind (parameter, part, definition) → retired word → what to say, from the page's tables."
    found = {}
    for heading, kind in TABLES.items():
        found[kind] = {}
        for row in re.findall(r"^\| (`.+?`) \| (.+?) \|$", sections(text)[heading], flags=re.M):
            old, new = (re.findall(r"`(\w+)`", cell) for cell in row)
            paired = kind != "part" and len(old) == len(new)
            right = new if paired else [row[1].replace("`", "")] * len(old)
            found[kind] |= dict(zip(old, right, strict=True))
    return found


def still_open(text: str) -> set[str]:
    "Words that are counted and not refused yet."
    return set(re.findall(r"^- `(\w+)`$", sections(text).get("Still open", ""), flags=re.M))


def defined(tree: ast.AST) -> list[tuple[str, str, int]]:
    "Name, kind and line of what code defines, in functions and classes too."
    found = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.append((node.name, "definition", line))
        elif isinstance(node, ast.arg):
            found.append((node.arg, "name", line))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.append((node.id, "name", line))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.append((node.attr, "name", line))
        elif isinstance(node, ast.alias) and node.asname:
            found.append((node.asname, "name", line))
    return found


def in_notebook(path: Path) -> list[Name]:
    "Names of a notebook's cells; those of its parameter cell are parameters."
    found, file = [], path.relative_to(ROOT).as_posix()
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse(MAGIC.sub(r"\1pass", "".join(cell["source"])))
        is_parameters = "parameters" in cell["metadata"].get("tags", [])
        found += [Name(word, "parameter" if is_parameters else kind, file, f"cell {number}:{line}")
                  for word, kind, line in defined(tree)]  # fmt: skip
    return found


def in_script(path: Path) -> list[Name]:
    file, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
    return [Name(word, kind, file, str(line)) for word, kind, line in defined(tree)]


def in_parameters(path: Path) -> list[Name]:
    "Keys of a parameter file."
    file, lines = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8").splitlines()
    keys = ((re.match(r"(\w+):", line), number) for number, line in enumerate(lines, 1))
    return [Name(key[1], "parameter", file, str(number)) for key, number in keys if key]


def all_names() -> list[Name]:
    "What notebooks, parameter files, tests and benchmarks define; the library comes of notebooks."
    books = (path for path in sorted((ROOT / "nbs").rglob("*.ipynb"))
             if ".ipynb_checkpoints" not in path.parts)  # fmt: skip
    scripts = (path for folder in ("nbs/_site", "tests", "benchmarks")
               for path in sorted((ROOT / folder).glob("*.py")))  # fmt: skip
    files = sorted((ROOT / "nbs/params").glob("*.yaml"))
    groups = ((in_notebook, books), (in_script, scripts), (in_parameters, files))
    return [name for read, paths in groups for path in paths for name in read(path)]


def wrong_words(name: Name, table: dict[str, dict[str, str]]) -> list[tuple[str, str]]:
    "Retired words in a name, each with the right one."
    if name.word in OTHERS.get(name.file, ()) or name.word.startswith("test_"):  # a sentence
        return []
    if name.kind in table and name.word in table[name.kind]:
        return [(name.word, table[name.kind][name.word])]
    parts = [part.lower() for part in PARTS.findall(name.word)]
    return [(part, table["part"][part]) for part in dict.fromkeys(parts) if part in table["part"]]


def report(found: list[tuple[Name, str, str]], waiting: set[str]):
    "Counts by word and by file."
    words, files = Counter(word for _, word, _ in found), Counter(name.file for name, *_ in found)
    for word, count in words.most_common():
        print(f"{count:6} {word}{'  (still open)' if word in waiting else ''}")
    print()
    for file, count in files.most_common():
        mine = Counter(word for name, word, _ in found if name.file == file)
        print(f"{count:6} {file}: {', '.join(f'{w} {n}' for w, n in mine.most_common(8))}")
    print(f"\n{len(found)} retired words in names, {len(words)} different ones")


def main(arguments: list[str]) -> int:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    table, waiting = retired(text), still_open(text)
    found = [(name, *pair) for name in all_names() for pair in wrong_words(name, table)]
    if "--report" in arguments:
        report(found, waiting)
        return 0
    gone = waiting - {word for _, word, _ in found}
    if "--close" in arguments:
        lines = [line for line in text.splitlines(True) if line.strip("- `\n") not in gone]
        (ROOT / PAGE).write_text("".join(lines), encoding="utf-8")
    elif gone:
        print(f"gone, so no longer open: {', '.join(sorted(gone))} (python tests/words.py --close)")
    refused = [one for one in found if one[1] not in waiting]
    for name, word, right in refused:
        inside = "" if name.word == word else f" (in {name.word})"
        print(f"{name.file}:{name.where}: {word}{inside}: say {right} ({PAGE})")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
