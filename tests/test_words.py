"""The lint of words: it reads the glossary's tables, and names the right word."""

import ast
import json

import pytest
import words

from synth_nb.core.parameters import RENAMED_PARAMETERS

TABLE = dict(
    parameter={"views": "symmetry"}, part={"judge": "eval_embedders", "kept": "cached"},
    definition={"Plan": "TrainingConfig", "shown": "display_path"})  # fmt: skip


@pytest.mark.parametrize("name, kind, found", [
    ("views", "parameter", ["views"]), ("views", "name", []),
    ("judge_run", "definition", ["judge"]), ("JudgeRun", "definition", ["judge"]),
    ("judgement", "name", []), ("embedder", "name", []),
    ("Plan", "definition", ["Plan"]), ("Plan", "name", []), ("plan", "definition", []),
    ("shown", "name", []), ("_kept", "name", ["kept"]), ("KEPT_RUNS", "name", ["kept"]),
])  # fmt: skip
def test_words_of_a_name(name, kind, found):
    one = words.Name(name, kind, "nbs/x.ipynb", "cell 1:1")
    assert [word for word, _ in words.wrong_words(one, TABLE)] == found


def test_every_kind_of_definition_is_seen():
    code = """
import numpy as kept_1
class A:
    kept_2: int
    def kept_3(self, kept_4, *kept_5): self.kept_6 = [kept_7 for kept_7 in kept_4]
with open("f") as kept_8: pass
print(unknown.kept)
"""
    names = sorted({name for name, *_ in words.defined(ast.parse(code)) if "kept" in name})
    assert names == [f"kept_{i}" for i in range(1, 9)]


def test_a_retired_word_is_refused_with_the_right_one(tmp_path, monkeypatch, capsys):
    page = (words.ROOT / words.PAGE).read_text(encoding="utf-8").split("\n## Still open")[0]
    for folder in ("nbs/guides", "nbs/params"):
        (tmp_path / folder).mkdir(parents=True)
    cells = [dict(cell_type="code", metadata=dict(tags=["parameters"]), source=["judge: str = ''"]),
             dict(cell_type="code", metadata={}, source=["%time\n", "def eyes_of(x): ..."])]
    (tmp_path / "nbs/x.ipynb").write_text(json.dumps(dict(cells=cells)))
    (tmp_path / "nbs/params/x.smoke.yaml").write_text("views: 2\nepochs: 1\n")
    (tmp_path / words.PAGE).write_text(page)
    monkeypatch.setattr(words, "ROOT", tmp_path)
    assert words.main([]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "nbs/x.ipynb:cell 0:1: judge: say eval_embedders (nbs/guides/glossary.md)",
        "nbs/x.ipynb:cell 1:2: eyes (in eyes_of): say embedder, encoder (nbs/guides/glossary.md)",
        "nbs/params/x.smoke.yaml:1: views: say symmetry (nbs/guides/glossary.md)"]  # fmt: skip
    assert words.main(["--report"]) == 0
    assert "3 retired words in names" in capsys.readouterr().out
    (tmp_path / words.PAGE).write_text(f"{page}\n## Still open\n\n- `eyes`\n- `kept`\n")
    assert words.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "kept" in lines[0] and len(lines) == 3 and "eyes" not in "".join(lines)
    words.main(["--close"])
    assert (tmp_path / words.PAGE).read_text() == f"{page}\n## Still open\n\n- `eyes`\n"


def test_the_page_retires_and_no_word_is_both():
    table = words.retired((words.ROOT / words.PAGE).read_text(encoding="utf-8"))
    assert min(map(len, table.values())) > 20
    right = {word for kind in table for words in table[kind].values() for word in words.split(", ")}
    assert right & table["part"].keys() == set()


def test_every_renamed_parameter_is_on_the_page():
    page = (words.ROOT / words.PAGE).read_text(encoding="utf-8")
    table = words.retired(page)["parameter"]
    lost = {old: new for old, new in RENAMED_PARAMETERS.items() if new not in table.get(old, "")}
    assert lost == {}, f"{words.PAGE} does not list these"


def test_the_project_uses_no_retired_word():
    assert words.main([]) == 0
