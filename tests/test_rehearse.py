"""One profile of each notebook rehearsed in small; all of them at true size: `make rehearse`.

The published configurations are what their weights are for, to the last parameter.
"""

import importlib.util
import json
import subprocess
import sys

import pytest
import rehearse
import stand_ins
import torch
import yaml

CHOSEN = [f"{notebook}.reported" for notebook in rehearse.SHORT if notebook != "05_e2i"]
CHOSEN += ["05_e2i.recommended"]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory) -> dict[str, dict]:
    "What each took, in one process that imports once."
    needed = ("tensorflow", "datasets", "openslide", "torch_fidelity")  # found, not imported
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    home = tmp_path_factory.mktemp("rehearsal")
    command = [sys.executable, rehearse.__file__, *CHOSEN, "--here", "--small", "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize("name", CHOSEN)
def test_a_profile_runs_through(rehearsed, name):
    found = rehearsed[name]
    assert rehearse.problems(found) == []
    trained = found["weights"]
    assert sum(trained.values()) > 0 and min(found["steps"].values()) >= 2
    assert found["gpu"]["thousand"] > 0
    assert rehearse.line(found).count("|") == rehearse.HEAD.split("\n")[0].count("|")


def elsewhere(name: str) -> bool:
    "Whether a profile's data have to be fetched."
    values = yaml.safe_load((rehearse.ROOT / f"nbs/params/{name}.yaml").read_text())
    return any(mark in values.get("dataset", values.get("data", "demo")) for mark in ":/")


@pytest.mark.parametrize("name", [*filter(elsewhere, rehearse.names([]))])
def test_a_profile_whose_data_is_not_there_is_one_sentence(name, monkeypatch, tmp_path):
    "The data, or the pipeline that is asked for before them; with the place to get it."
    def away(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("socket.socket.connect", away)
    monkeypatch.setattr("socket.getaddrinfo", away)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("SYNTH_NB_CACHE", str(tmp_path))
    monkeypatch.delenv("IN_TEST", raising=False)
    monkeypatch.chdir(tmp_path)
    notebook = name.split(".")[0]
    cells = json.loads((rehearse.ROOT / f"nbs/{notebook}.ipynb").read_text())["cells"]
    values = yaml.safe_load((rehearse.ROOT / f"nbs/params/{name}.yaml").read_text())
    with pytest.raises((OSError, ValueError)) as caught:
        rehearse.run_cells(notebook, cells, values | dict(outputs=str(tmp_path), device="cpu"))
    message = str(caught.value)
    assert "https://" in message and "\n" not in message and len(message) < 350, message
    assert any(way in message for way in ("download", "fetch")), message
    assert not list(tmp_path.glob("0*"))  # no run was begun


def parameters(make) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


def test_published_configurations_have_their_weights():
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPConfig, CLIPModel

    networks = {"sd-vae-ft-mse": AutoencoderKL.from_config,
                "sd15-unet": UNet2DConditionModel.from_config,
                "clip-vit-large-patch14": lambda config: CLIPModel(CLIPConfig(**config))}
    for name, make in networks.items():
        file = stand_ins.PUBLISHED / f"{name}.json"
        config = stand_ins.published(name)
        expected = json.loads(file.read_text(encoding="utf-8"))["_weights"]
        assert parameters(lambda make=make, config=config: make(config)) == expected, name


def test_our_layouts_are_the_published_ones():
    from synth_nb.diffusion.model import UNET_LAYOUTS, unet_from_layout
    from synth_nb.emnist.model import new_unet

    published = stand_ins.published("sd15-unet")
    with torch.device("meta"):
        ours = unet_from_layout(UNET_LAYOUTS["sd15"], 768, 64)
    for name in ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block",
                 "cross_attention_dim", "attention_head_dim", "norm_num_groups"):
        own = ours.config[name]
        assert (list(own) if isinstance(own, tuple) else own) == published[name], name
    assert round(parameters(lambda: new_unet(52, network="documented")) / 1e6, 1) == 113.7
