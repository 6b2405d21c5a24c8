"What a stranger wrote stays text: in pages, cards and tables; a damaged record is one sentence."

import json
import re

import nbformat
import pandas as pd
import pytest
import torch
from PIL import Image

from synth_nb.core.parameters import ParameterError
from synth_nb.core.runs import open_run, read_manifest
from synth_nb.data import open_dataset
from synth_nb.data.quality.audit import audit
from synth_nb.diffusion.captions import read_rows
from synth_nb.tools import grid, report
from synth_nb.tools.grid import as_html
from synth_nb.tools.report import compare_originals
from synth_nb.tools.share import card_text, export_model, model_card, read_record
from synth_nb.training.log import read_metrics

TAG, LINK = "<script>alert(1)</script>", "[look](javascript:alert(1))"


def harmful(text: str) -> list[str]:
    return re.findall(r"<script>alert|<img|\]\(\s*javascript:|href=.?javascript:", text)


def test_a_run_s_own_table_reaches_the_page_as_text(tmp_path, monkeypatch):
    cells = json.loads((report.resolve("nbs/08_report.ipynb")).read_text())["cells"]
    source = next("".join(c["source"]) for c in cells if '"comparison.md"' in "".join(c["source"]))
    imports = "\n".join(line for c in cells for line in "".join(c["source"]).splitlines()
                        if line.startswith("from synth_nb.data.tables"))
    (folder := tmp_path / "<img src=x>").mkdir()
    (folder / "comparison.md").write_text(f"# {TAG}\n\n| a |\n| --- |\n| {LINK} |\n")
    shown = []
    exec(f"{imports}\n{source}", dict(folders=[folder], report=report, found={}, Markdown=str,
                                      display=shown.append))
    outputs = [nbformat.v4.new_output("display_data", {"text/markdown": text}) for text in shown]
    cell = nbformat.v4.new_code_cell("", outputs=outputs)
    page = as_html(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A"), cell]))
    body = page[page.index("<body"):]
    assert "<table>" in body and not harmful(body), harmful(body)


def test_names_of_files_are_no_formulas_and_no_markup(tmp_path):
    (tmp_path / "in").mkdir()
    for i, name in enumerate(["=1+cmd", "@sum", f"{TAG.replace('/', '')}", "[a](javascript:b)"]):
        Image.new("RGB", (16, 16), (60 * i, 9, 200 - 50 * i)).save(tmp_path / f"in/{name}.png")
    found = audit(open_dataset(tmp_path / "in", 16, val_fraction=0))
    found.write(tmp_path / "out")
    keys = pd.read_csv(tmp_path / "out/audit.csv", keep_default_na=False)["key"]
    assert {key[0] for key in keys} <= set("'<[") and "'=1+cmd.png" in set(keys)
    assert not harmful((tmp_path / "out/card.md").read_text(encoding="utf-8"))


def run_of(folder, **changes):
    "A finished run whose record a stranger wrote."
    folder.mkdir(parents=True, exist_ok=True)
    record = dict(notebook="02_dcgan", status="complete", seed=0, environment=dict(device=TAG),
                  parameters={"lr": 0.1, "seed = 0; import os; lr": 1, "dataset": f"```\n{TAG}"},
                  code=dict(commit=LINK), data=dict(source=f"a/{LINK}", licence=TAG, about=TAG))
    (folder / "manifest.json").write_text(json.dumps(record | changes))
    (folder / "evaluation.json").write_text(json.dumps(dict(warnings=[TAG, LINK])))
    return folder


def test_a_card_holds_a_stranger_s_words_as_text(tmp_path):
    (run := run_of(tmp_path / "run")).joinpath("evaluation.md").write_text(f"{TAG} {LINK}")
    (run / "model").mkdir()
    (run / "model/README.md").write_text(f"# {LINK}\n{TAG}")
    record = read_record(run)
    text = model_card(record).split("\n---\n", 1)[1] + card_text(record, "")
    fenced = re.findall(r"```yaml\n(.*?)\n```", text, re.DOTALL)
    assert all("import os" not in part for part in fenced) and "lr: 0.1" in fenced[0]
    assert not harmful(re.sub(r"```yaml\n.*?\n```", "", text, flags=re.DOTALL))
    with pytest.raises(ValueError, match=r"manifest\.json names no notebook"):
        read_record(run_of(tmp_path / "run", notebook="a; rm -rf ~"))


@pytest.mark.parametrize("text", ["[1]", "[" * 50_000, '{"parameters": [1]}', '{"starts": 3}', "{",
                                  '{"identity": "a"}', '{"environment": null}'])
def test_a_damaged_manifest_is_one_sentence_with_its_name(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged: ") as error:
        read_manifest(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("text", ["step,loss\n1,abc\n", "step\n1,2\n", 'step\n"1\n', "step\n1.5\n"])
def test_a_damaged_log_is_one_sentence_with_its_name(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged: "):
        read_metrics(tmp_path)


def test_a_caption_may_hold_any_line_separator(tmp_path):
    caption = "pale\u2028tissue\x85here"
    line = json.dumps(dict(file_name="a.png", text=caption), ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(f"{line}\n{line}\n", encoding="utf-8")
    rows = read_rows(tmp_path / "metadata.jsonl")
    assert rows.text.tolist() == [caption, caption]


def test_other_threads_are_said_on_resume(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("IN_TEST")
    what = dict(outputs=str(tmp_path), run_name="a", device="cpu"), dict(fingerprint="f")
    run = open_run("none", *what)
    assert run.manifest["environment"]["threads"] == torch.get_num_threads()
    run.finish("stopped")
    open_run("none", *what).finish("stopped")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    open_run("none", *what).finish("complete")
    message = capsys.readouterr().out
    assert "goes on with threads 7: rounding differs" in message
    open_run("none", *what).finish("complete")
    assert capsys.readouterr().out == ""


def test_a_run_without_a_status_is_no_finished_run(tmp_path):
    run = run_of(tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items()
                                                   if k != "status"}))
    with pytest.raises(ParameterError, match="it is no finished run: its status is None"):
        read_record(run)


def test_an_export_onto_a_file_says_what_to_do(tmp_path):
    (run := run_of(tmp_path / "run")).joinpath("model").mkdir()
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else: choose another `folder`"):
        export_model(run, tmp_path / "taken")


def test_a_log_without_rows_has_no_number(tmp_path):
    run = run_of(tmp_path / "06_em_ddpm" / "run", notebook="06_em_ddpm")
    (run / "autoencoder").mkdir()
    (run / "autoencoder" / "metrics.csv").write_text("step,loss_held_out\n")
    table = compare_originals([run]).loc["micrographs, autoencoder"]
    assert table["ours"] == "none"


@pytest.mark.parametrize("words", [[], ["report"], ["report", "smoke", "two"], ["run", "x", "y"],
                                   ["other", "smoke", "2"]])
def test_a_wrong_call_of_the_grid_shows_its_usage(words, monkeypatch):
    monkeypatch.setattr("sys.argv", ["grid", *words])
    with pytest.raises(SystemExit, match=r"usage: python -m synth_nb\.tools\.grid"):
        grid.main()


def test_a_notebook_that_a_profile_lacks_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["grid", "run", "00_none", "smoke", str(tmp_path / "mark")])
    with pytest.raises(SystemExit, match="profile 'smoke' has no parameter file of '00_none'"):
        grid.main()
