"""The three conditioned notebooks as a user runs them: in small, on a folder.

One is run by papermill. The others are given their parameters as papermill gives them, and their
cells run in this process, which has imported what each kernel would need ten seconds for.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
import torch
from execnb.shell import CaptureShell
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from PIL import Image

from synth_nb.core.testing import assert_near

ROOT = Path(__file__).parent.parent
SMALL = dict(epochs=1, images_per_epoch=16, batch_size=8, vae_steps=4, n_samples=24,
             sampling_steps=2, best_of=2, embedder="efficientnet_lite0@64",
             eval_embedders=["efficientnet_lite2@64"])


@pytest.fixture(autouse=True)
def one_cache(own_cache, monkeypatch, tmp_path_factory):
    "The three share autoencoder, latents and embeddings, so all tests here share a cache."
    monkeypatch.setenv("SYNTH_NB_CACHE", str(tmp_path_factory.getbasetemp() / "conditions"))


def papermill(notebook: str, out: Path, **parameters):
    "Run a notebook as a user does."
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    kwargs = [word for k, v in parameters.items() for word in ("-p", k, str(v))]
    command = [sys.executable, "-m", "papermill", str(ROOT / f"nbs/{notebook}.ipynb"), str(out)]
    done = subprocess.run([*command, *kwargs], cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)


def here(notebook: str, **parameters):
    "Run a notebook's cells in this process; raises what a cell raises."
    kwargs = {k: str(v) if isinstance(v, Path) else v for k, v in parameters.items()}
    path = str(ROOT / f"nbs/{notebook}.ipynb")
    cells = parameterize_notebook(load_notebook_node(path), kwargs).cells
    shell = CaptureShell()
    with patch.dict(os.environ):
        os.environ.pop("IN_TEST", None)
        for cell in cells:
            if cell.cell_type == "code":
                done = shell.run_cell(cell.source, store_history=True)  # parameters are read there
                if done.exception:
                    raise done.exception


@pytest.fixture(scope="session")
def finished(patches, tmp_path_factory):
    "Small finished runs, by condition; each runs when it is first needed."
    outputs, folders = tmp_path_factory.mktemp("outputs"), {}

    def run(condition: str) -> Path:
        if condition not in folders:
            kwargs = dict(dataset=patches, outputs=outputs, run_name="small", **SMALL)
            if condition == "e2i":
                papermill("05_e2i", outputs / "e2i.ipynb", **kwargs)
            else:
                here(f"05_{condition}", **kwargs)
            folders[condition] = outputs / f"05_{condition}" / "small"
        return folders[condition]

    return run


@pytest.mark.parametrize("condition", ["t2i", "i2i", "e2i"])
def test_the_run_folder_explains_itself(finished, condition):
    folder = finished(condition)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "complete" and manifest["ended"]
    assert manifest["loader"] == "synth_nb.diffusion.experiment:load"
    pictures = {p.name for p in folder.glob("*.png")}
    wanted = {"architecture", "comparison", "synthetic", "loss", "by_epoch", "tsne", "walk",
              "guidance", "strength", "by_class", "training_images"}
    assert {f"{name}.png" for name in wanted} <= pictures
    fidelity = pd.read_csv(folder / "fidelity.csv")
    sets = ["synthetic", "first draws", "untrained", "reconstructions"]
    assert list(dict.fromkeys(fidelity.set)) == sets
    numbers = pd.read_csv(folder / "evaluation.csv")
    assert set(numbers.extractor) == {"efficientnet_lite2@64", "efficientnet_lite0@64"}
    assert {"real, conditioning half", "real, training", *sets} == set(numbers.set)
    kernel = numbers[(numbers.metric == "kernel")]
    assert kernel[["value", "low", "high", "floor"]].notna().all(axis=None)
    assert "features of efficientnet_lite2@64" in (folder / "evaluation.md").read_text()


@pytest.mark.parametrize("condition", ["t2i", "i2i", "e2i"])
def test_any_model_is_sampled_the_same_way(finished, condition):
    from synth_nb.core.runs import load_model

    model = load_model(finished(condition), "cpu")
    three, six = model.sample(3, seed=5), model.sample(6, seed=5)
    assert three.images.shape == (3, 3, 64, 64) and len(six) == 6
    assert three.keys[0].startswith("val/") and three.conditions.shape[0] == 3
    assert_near(three.images, six.images[:3], rel=1e-3)  # a batch of another size rounds otherwise
    assert not torch.equal(three.images, model.sample(3, seed=6).images)
    if condition == "t2i":
        assert model.conditions[:2] == ["dark tissue 0", "pale tissue 1"]
        one, other = (model.sample_for(["pale tissue"], 1, negative_prompt=x) for x in ("", "dark"))
        assert not torch.equal(one.images, other.images)
    else:
        images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
        assert model.sample_like(images, seed=1).images.shape == (2, 3, 64, 64)


STOCK = """
import sys, torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
result, *words = sys.argv[1:]
seeds, samples = words[-2:], {}
for folder in words[:-2]:
    parts = load_file(folder + "/conditions.safetensors")
    conditions = dict(prompt=["dark tissue 0", "pale tissue 1"])
    if "embeddings" in parts:
        c = ((parts["embeddings"][:2] - parts["mean"]) @ parts["components"])[:, None]
        conditions = dict(prompt_embeds=c + parts["prompt"])
    pipe = DiffusionPipeline.from_pretrained(folder)
    out = pipe(**conditions, num_inference_steps=2, guidance_scale=2.0, height=64, width=64,
               generator=[torch.Generator().manual_seed(int(s)) for s in seeds],
               output_type="pt").images
    samples[folder] = out * 2 - 1
assert not any(name.startswith("synth_nb") for name in sys.modules)
torch.save(samples, result)
"""


def test_the_saved_models_are_stock_pipelines(finished, tmp_path):
    from synth_nb.core.runs import load_model
    from synth_nb.core.seeding import derive_seed

    result = tmp_path / "stock.pt"
    folders = [finished(condition) for condition in ("t2i", "i2i", "e2i")]
    seeds = [str(derive_seed(0, i)) for i in range(2)]
    words = [str(result), *(str(folder / "model") for folder in folders), *seeds]
    subprocess.run([sys.executable, "-c", STOCK, *words], check=True)
    stock = torch.load(result)
    options = dict(seed=0, guidance_scale=2.0, guidance_interval=(0.0, 1.0), sampling_steps=2,
                   precision="fp32", best_of=1)  # a stock pipeline guides everywhere
    for folder in folders:
        ours = load_model(folder, "cpu").sample(2, **options).images
        assert_near(stock[str(folder / "model")], ours)


@pytest.mark.parametrize("condition", ["t2i", "i2i", "e2i"])
def test_what_a_model_says_of_its_use_is_all_one_needs(finished, condition, tmp_path):
    "Its own lines, in a process that knows diffusers and safetensors, but not this library."
    from synth_nb.tools.share import export_model

    home = export_model(finished(condition), tmp_path / "export")
    text = (home / "model/README.md").read_text()
    assert text in (home / "README.md").read_text()
    lines = text.split("```")[1].removeprefix("python\n").strip().split("\n")
    assert sum(bool(line) for line in lines) <= 10
    end = "import sys\nassert not any(name.startswith('synth_nb') for name in sys.modules)"
    path = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", "\n".join([*lines, end])], check=True, cwd=home, env=path)
    assert Image.open(home / "image.png").size == (64, 64)


def test_a_complete_run_is_left_alone_and_more_epochs_extend_it(finished, patches):
    folder = finished("e2i")
    model = folder / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    first, outputs = model.read_bytes(), folder.parent.parent
    kwargs = dict(dataset=patches, outputs=outputs, run_name="small")
    here("05_e2i", **kwargs, **SMALL | {"epochs": 2})
    assert model.read_bytes() != first
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows] == ["epoch", "1", "2"]
    longer = model.read_bytes()
    here("05_e2i", **kwargs, **SMALL | {"epochs": 2})
    assert model.read_bytes() == longer


@pytest.mark.parametrize("condition", ["t2i", "i2i", "e2i"])
def test_a_given_model_is_evaluated_without_training(finished, patches, condition):
    folder = finished(condition)
    outputs = folder.parent.parent
    kwargs = dict(outputs=outputs, run_name="evaluated", model=folder, seed=1, dataset=patches)
    here(f"05_{condition}", **SMALL | kwargs)
    evaluated = outputs / f"05_{condition}" / "evaluated"
    assert not (evaluated / "checkpoints").exists() and not (evaluated / "model").exists()
    assert (evaluated / "evaluation.csv").exists()
    assert json.loads((evaluated / "manifest.json").read_text())["status"] == "complete"


def test_finished_runs_are_compared(finished):
    from synth_nb.diffusion.comparison import collect, comparison_table, samples_side_by_side

    folders = [str(finished(condition)) for condition in ("i2i", "t2i")]
    runs = collect(folders)
    assert set(runs.condition) == {"text", "image embedding"}
    assert runs[runs.extractor == "efficientnet_lite0@64"].used.all()
    table = comparison_table(runs, "efficientnet_lite2@64")
    assert list(table.index) == ["text", "image embedding", "real, conditioning half",
                                 "real against real"]
    assert samples_side_by_side(folders) is not None


def test_runs_of_older_words_are_compared():
    "Kept runs have other names of parameters and of the half that gives the conditions."
    from synth_nb.diffusion.comparison import collect

    runs = collect([str(ROOT / f"outputs/05_{name}/readme") for name in ("t2i", "i2i", "e2i")])
    assert runs.condition.nunique() == 3 and runs.kernel_halves.notna().all()


def test_a_parameter_that_is_not_there_has_a_neighbour(patches, tmp_path):
    with pytest.raises(RuntimeError, match="no parameter `epoch`; did you mean `epochs`"):
        papermill("05_e2i", tmp_path / "out.ipynb", dataset=patches, outputs=tmp_path, epoch=10)


@pytest.mark.parametrize(
    ("condition", "parameters", "message"),
    [
        ("e2i", dict(epochs=0), "parameter `epochs` must be at least 1, got 0"),
        ("e2i", dict(dataset="no/such folder"), "no/such folder"),
        ("i2i", dict(guidance_scale=-1), "parameter `guidance_scale` must be at least 0"),
        ("t2i", dict(captions="nowhere.csv"), "there is no file"),
    ],
)
def test_what_is_wrong_is_one_sentence(condition, parameters, message, patches, tmp_path):
    kwargs = dict(dataset=patches, outputs=tmp_path) | SMALL | parameters
    with pytest.raises((ValueError, OSError)) as e:
        here(f"05_{condition}", **kwargs)
    assert message in str(e.value)


def test_a_hub_name_without_a_network_is_one_sentence(monkeypatch, tmp_path):
    import huggingface_hub

    from synth_nb.diffusion.text import load_text_model

    def away(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", away)
    with pytest.raises(OSError, match="openai/clip-vit-large-patch14 is not on this machine"):
        load_text_model("openai/clip-vit-large-patch14")


def test_conditions_of_another_width_are_refused(finished):
    from synth_nb.core.parameters import ParameterError
    from synth_nb.core.runs import load_model

    model = load_model(finished("e2i"), "cpu")
    with pytest.raises(ValueError, match="the embeddings have 384 numbers"):
        model.sample_for(torch.zeros(1, 384))
    from synth_nb.diffusion import generate

    with pytest.raises(ParameterError, match="conditions must be"):
        generate(model.pipeline, torch.zeros(1, 1, 768), 0)


def test_a_name_that_holds_another_run_is_refused(finished, patches):
    folder = finished("e2i")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    outputs = folder.parent.parent
    with pytest.raises(ValueError, match=r"holds another run \(`lr` 0.002 there, 0.5 now\)"):
        here("05_e2i", dataset=patches, outputs=outputs, run_name="small", **SMALL | {"lr": 0.5})
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
