"The embedding-to-image notebook as a user runs it: by papermill, in small."

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

ROOT = Path(__file__).parent.parent
SMALL = dict(
    epochs=1, images_per_epoch=16, batch_size=8, vae_steps=4, n_samples=12, sampling_steps=2
)


def papermill(out: Path, **parameters) -> subprocess.CompletedProcess:
    "Run the notebook from another folder than its own."
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    env["SYNTH_NB_CACHE"] = str(out.parent / "cache")
    given = [word for k, v in parameters.items() for word in ("-p", k, str(v))]
    command = [sys.executable, "-m", "papermill", str(ROOT / "nbs/05_e2i.ipynb"), str(out), *given]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    done.text = done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    "The folder of a small finished run."
    folder = tmp_path_factory.mktemp("outputs")
    done = papermill(folder / "out.ipynb", outputs=folder, run_name="small", **SMALL)
    assert done.returncode == 0, done.text
    return folder / "05_e2i" / "small"


def test_the_run_folder_explains_itself(finished):
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["status"] == "complete" and manifest["ended"]
    assert manifest["parameters"]["epochs"] == 1 and manifest["seed"] == 0
    assert manifest["data"]["fingerprint"] and manifest["environment"]["packages"]["torch"]
    pictures = {p.name for p in finished.glob("*.png")}
    wanted = {"comparison.png", "synthetic.png", "loss.png", "by_epoch.png", "tsne.png"}
    assert wanted <= pictures
    table = pd.read_csv(finished / "evaluation.csv", index_col="set")
    sets = ["synthetic", "first draws", "untrained", "reconstructions", "real, training"]
    assert list(table.index) == sets
    for extractor in ("efficientnet_lite2@128", "efficientnet_lite0@128"):
        assert table[[f"frechet_{extractor}", f"kernel_{extractor}"]].notna().all(axis=None)
    assert len(list(finished.glob("events.*"))) == 1


def test_any_model_is_sampled_the_same_way(finished):
    from synth_nb.runs import load_model

    model = load_model(finished, "cpu")
    few, more = model.sample(3, seed=5), model.sample(20, seed=5)
    assert few.images.shape == (3, 3, 64, 64) and len(more) == 20
    assert few.keys[0].startswith("ihc/") and few.conditions.shape[0] == 3
    assert (few.images - more.images[:3]).abs().max() < 1e-4
    assert not torch.equal(few.images, model.sample(3, seed=6).images)
    kept = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert model.sample_like(kept, seed=1).images.shape == (2, 3, 64, 64)


def test_the_saved_model_is_a_stock_pipeline(finished):
    code = """
import sys, torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], text_encoder=None, tokenizer=None)
parts = load_file(sys.argv[1] + "/conditions.safetensors")
c = ((parts["embeddings"][:2] - parts["mean"]) @ parts["components"])[:, None]
out = pipe(prompt_embeds=c, negative_prompt_embeds=torch.zeros_like(c), num_inference_steps=2,
           guidance_scale=2.0, height=64, width=64, output_type="pt",
           generator=[torch.Generator().manual_seed(int(s)) for s in sys.argv[3:]]).images
assert not any(name.startswith("synth_nb") for name in sys.modules)
torch.save(out * 2 - 1, sys.argv[2])
"""
    from synth_nb.runs import load_model, stream

    result, seeds = finished.parent / "stock.pt", [str(stream(0, i)) for i in range(2)]
    words = [sys.executable, "-c", code, str(finished / "model"), str(result), *seeds]
    subprocess.run(words, check=True)
    options = dict(seed=0, guidance_scale=2.0, sampling_steps=2, precision="fp32", candidates=1)
    ours = load_model(finished, "cpu").sample(2, **options).images
    assert torch.equal(torch.load(result), ours)


def test_a_complete_run_is_left_alone_and_more_epochs_extend_it(finished):
    model = finished / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    first = model.read_bytes()
    outputs = finished.parent.parent
    same = papermill(outputs / "again.ipynb", outputs=outputs, run_name="small", **SMALL)
    assert same.returncode == 0, same.text
    assert model.read_bytes() == first
    more = papermill(
        outputs / "more.ipynb", outputs=outputs, run_name="small", **SMALL | {"epochs": 2}
    )
    assert more.returncode == 0, more.text
    assert model.read_bytes() != first
    rows = (finished / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows] == ["epoch", "1", "2"]


def test_a_given_model_is_judged_without_training(finished):
    outputs = finished.parent.parent
    given = dict(outputs=outputs, run_name="judged", model=finished, seed=1)
    done = papermill(outputs / "judged.ipynb", **SMALL | given)
    assert done.returncode == 0, done.text
    folder = outputs / "05_e2i" / "judged"
    assert not (folder / "checkpoints").exists() and not (folder / "model").exists()
    assert (folder / "evaluation.csv").exists()
    assert json.loads((folder / "manifest.json").read_text())["status"] == "complete"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (dict(epoch=10), "no parameter `epoch`; did you mean `epochs`?"),
        (dict(epochs=0), "parameter `epochs` must be at least 1, got 0"),
        (dict(lr=-1e-3), "parameter `lr` must be above 0, got -0.001"),
        (dict(epochs="ten"), "parameter `epochs` must be int, got 'ten'"),
        (dict(dataset="no/such folder"), "no/such folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(parameters, said, tmp_path):
    done = papermill(tmp_path / "out.ipynb", outputs=tmp_path, **parameters)
    assert done.returncode != 0
    assert said in done.text.splitlines()[-1] or said in done.text
    assert not (tmp_path / "05_e2i").exists()


def test_a_name_that_holds_another_run_is_refused(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    outputs = finished.parent.parent
    other = papermill(outputs / "x.ipynb", outputs=outputs, run_name="small", **SMALL | {"lr": 0.5})
    assert "holds another run (`lr` 0.001 there, 0.5 now)" in other.text
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
