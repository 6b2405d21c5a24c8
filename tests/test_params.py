"Parameter files name parameters that exist, with allowed values; two notebooks stay twins."

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from synth_nb.core.parameters import ParameterError
from synth_nb.data.dataset import data_options, open_dataset
from synth_nb.stylegan2.config import ORIGINAL_ANSWERS, answer_original
from synth_nb.tools.grid import check_values

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers'
NOTEBOOKS = Path(__file__).parent.parent / "nbs"
FILES = sorted((NOTEBOOKS / "params").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_parameter_file_fits_its_notebook(file):
    notebook = NOTEBOOKS / f"{file.stem.split('.')[0]}.ipynb"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    check_values(values, json.loads(notebook.read_text(encoding="utf-8"))["cells"])


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_defaults_are_checked_without_a_word(notebook, capsys):
    check_values({}, json.loads(notebook.read_text(encoding="utf-8"))["cells"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("profile", ["smoke", "offline", "recommended", "reported"])
def test_a_profile_has_every_experiment(profile):
    every = {file.name.split(".")[0] for file in FILES}
    assert {file.name.split(".")[0] for file in FILES if f".{profile}." in file.name} == every


def test_what_nothing_is_downloaded_for_names_no_download():
    for file in FILES:
        if file.name.split(".")[1] in ("smoke", "offline"):
            text = file.read_text(encoding="utf-8")
            assert not any(f": {kind}:" in text for kind in ("hub", "hf", "kaggle", "em")), file


DATA_STORIES = ["01_data_prep", "02_dcgan", "03_embedding_gan", "04_stylegan2", "05_t2i", "05_i2i",
                "05_e2i", "06_em_ddpm", "06_em_segmentation", "06_em_protocol", "06_em_stacks",
                "07_emnist", "08_evaluation"]


def declared(notebook: str) -> dict[str, str]:
    "Name → line of every parameter of a story."
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    [cell] = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    return {line.split(":")[0]: line for line in "".join(cell["source"]).splitlines()}


@pytest.mark.parametrize("notebook", DATA_STORIES)
def test_every_story_opens_data_by_the_same_parameters(notebook):
    shared = ["val_fraction", "crop", "group_by", "intensity", "tile", "mpp", "mpp_of_slide",
              "tiles_per_slide"]
    here, first = declared(notebook), declared(DATA_STORIES[0])
    own = {"val_fraction"} if notebook.startswith("06") else set()  # there of sections
    assert own < here.keys()
    assert {n: here[n] for n in shared if n not in own} == {
        n: first[n] for n in shared if n not in own}
    text = (NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8")
    assert "data_options(parameters" in text or "open_experiment(" in text


def experiment(name: str) -> list[str]:
    "Code cells of a notebook from its experiment on."
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    start = next(i for i, c in enumerate(cells) if "".join(c["source"]).startswith("## Experiment"))
    code = ("".join(c["source"]) for c in cells[start:] if c["cell_type"] == "code")
    return [source.replace(name, "NAME").replace(name[3:], "NAME") for source in code]


def test_two_embeddings_are_compared_by_one_experiment():
    assert experiment("05_e2i") == experiment("05_i2i")


OPTIONS = {  # of the original StyleGAN2 program
    "train": "outdir gpus snap metrics seed dry_run data cond subset mirror cfg gamma kimg batch "
             "aug p target augpipe resume freezed fp32 nhwc nobench allow_tf32 workers",
    "generate": "network seeds trunc class_idx noise_mode projected_w outdir",
    "projector": "network target num_steps seed save_video outdir",
    "style_mixing": "network rows cols styles trunc noise_mode outdir",
    "dataset_tool": "source dest max_images transform width height resolution",
}  # fmt: skip


@pytest.mark.parametrize("program", OPTIONS)
def test_every_option_of_the_original_is_taken_or_answered(program):
    for option in OPTIONS[program].split():
        if option in declared("04_stylegan2"):
            assert option not in ORIGINAL_ANSWERS
        else:
            with pytest.raises(ParameterError, match=f"no parameter `{option}`: "):
                answer_original([option])


def test_answers_name_parameters_that_are_there():
    known = declared("04_stylegan2").keys() | {"save_film"}
    words = {word for text in ORIGINAL_ANSWERS.values() for word in re.findall(r"`(\w+)`", text)}
    assert words <= known


OFFLINE = [file for file in FILES if file.stem.split(".")[1] == "offline"
           and file.stem[:2] in ("02", "03", "04", "05")
           and "dataset:" in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("file", OFFLINE, ids=lambda file: file.stem)
def test_what_comes_with_us_has_enough_images_of_that_size(file):
    declared_values = {name: ast.literal_eval(line.partition("=")[2].partition("  #")[0].strip())
                       for name, line in declared(file.stem.split(".")[0]).items() if "=" in line}
    values = declared_values | yaml.safe_load(file.read_text(encoding="utf-8"))
    data = open_dataset(values["dataset"], values["image_size"], values.get("channels", 3),
                        **data_options(values))
    held_out = sum(part != "train" for part in data.split)
    assert 40 <= held_out < len(data) / 2
