"Encoders from folders and the Hub's cache, the Inception file, and image sets under stress."

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from synth_nb.core.devices import quiet_logging
from synth_nb.core.testing import assert_near
from synth_nb.embedders import embed_images, inception, load_embedder
from synth_nb.embedders.base import Embedder
from synth_nb.embedders.hub import WARNED
from synth_nb.embedders.images import cache_folder

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

VIT = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
CONV = dict(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
SWIN = dict(embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, patch_size=4)
FAMILIES = {  # configuration, network, what its makers call the feature
    "vit": ("ViT", VIT | dict(patch_size=8), "token"),
    "deit": ("DeiT", VIT | dict(patch_size=8), "token"),
    "dinov2": ("Dinov2", VIT | dict(patch_size=8), "token"),
    "dinov2_with_registers": ("Dinov2WithRegisters", VIT | dict(patch_size=8), "token"),
    "dinov3_vit": ("DINOv3ViT", VIT | dict(patch_size=8, num_register_tokens=2), "token"),
    "ijepa": ("IJepa", VIT | dict(patch_size=8), "mean"),
    "clip_vision_model": ("CLIPVision", VIT | dict(patch_size=8, projection_dim=6), "image_embeds"),
    "siglip_vision_model": ("SiglipVision", VIT | dict(patch_size=8), "pooler_output"),
    "resnet": ("ResNet", dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]), "pool"),
    "convnext": ("ConvNext", CONV, "pooler_output"),
    "convnextv2": ("ConvNextV2", CONV, "pooler_output"),
    "swin": ("Swin", SWIN, "pooler_output"),
    "swinv2": ("Swinv2", SWIN, "pooler_output"),
}


def processor(**options):
    size = {"height": 32, "width": 32}
    options = dict(size=size, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25]) | options
    return transformers.ViTImageProcessor(**options)


def saved(folder, network, prepare=None):
    "A network as its makers save it, in a folder."
    with quiet_logging(transformers.utils.logging):
        network.save_pretrained(folder)
    (prepare or processor()).save_pretrained(folder)
    return network.eval()


def tiny(kind="vit"):
    name, options, feature = FAMILIES[kind]
    config = getattr(transformers, f"{name}Config")(**options, image_size=32)
    model = "CLIPVisionModelWithProjection" if name == "CLIPVision" else f"{name}Model"
    torch.manual_seed(0)
    return getattr(transformers, model)(config), feature


def pixels(n=3, size=32):
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_gives_what_its_library_gives(kind, tmp_path):
    network, feature = tiny(kind)
    for parameter in network.parameters():  # no symmetric start: zeros would hide a mistake
        torch.nn.init.normal_(parameter, 0, 0.2)
    theirs, images = saved(tmp_path, network), pixels()
    out = theirs(**processor()(images, return_tensors="pt"))
    if feature in ("token", "mean"):
        tokens = out.last_hidden_state
        expected = tokens[:, 0] if feature == "token" else tokens.mean(1)
    else:
        name = "pooler_output" if feature == "pool" else feature
        expected = out[name].flatten(1)
    embedder = load_embedder(f"hf:{tmp_path}")
    assert_near(embedder(images / 255), expected)
    assert embedder.dim == expected.shape[1] and embedder.input_size == 32
    assert expected.std(0).max() > 1e-3  # the images are told apart
    larger = load_embedder(f"hf:{tmp_path}@64")
    assert larger(images / 255).shape == expected.shape and larger.id.endswith("@64")
    x = (images / 255).requires_grad_()
    assert torch.autograd.grad(embedder(x).square().sum(), x)[0].norm() > 0
    found, last = embedder.tokens(images / 255), out.last_hidden_state
    first = {"deit": 2, "dinov2_with_registers": 5, "dinov3_vit": 3, "ijepa": 0}.get(kind, 1)
    first = 0 if kind.startswith(("siglip", "swin")) else first  # tokens before the patches
    last = last.flatten(2).mT if last.ndim == 4 else last[:, first:]
    assert_near(found, last)
    assert found.shape[1] in (1, 4, 16, 64) and torch.autograd.grad(embedder.tokens(x).sum(), x)


def test_whole_clip_and_classifier_checkpoints_give_their_encoder(tmp_path):
    vision = VIT | dict(patch_size=8, image_size=32)
    text = VIT | dict(vocab_size=99, max_position_embeddings=9)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
    clip = saved(tmp_path / "clip", transformers.CLIPModel(config))
    images = pixels()
    seen = processor()(images, return_tensors="pt")
    expected = clip.visual_projection(clip.vision_model(**seen).pooler_output)
    embedder = load_embedder(f"hf:{tmp_path / 'clip'}")
    assert_near(embedder(images / 255), expected)
    network = transformers.ViTForImageClassification(transformers.ViTConfig(**vision))
    network = saved(tmp_path / "network", network.half()).float()
    embedder = load_embedder(f"hf:{tmp_path / 'network'}")
    expected = network.vit(**seen).last_hidden_state[:, 0]
    assert_near(embedder(images / 255), expected)


@pytest.mark.parametrize(
    "kind, options, count",
    [
        ("vit_tiny_patch16_224", dict(img_size=64, depth=1, reg_tokens=3), 16),
        ("swin_tiny_patch4_window7_224", dict(img_size=64, depths=(1, 1, 1, 1)), 4),
        ("resnet10t", {}, 4),
    ],
)
def test_patch_tokens_of_timm_keep_their_places(kind, options, count, tmp_path):
    network = timm.create_model(kind, **options).eval()
    timm.models.save_for_hf(network, tmp_path, safe_serialization=True)
    embedder = load_embedder(f"timm:{tmp_path}@64")
    x = torch.full((1, 3, 64, 64), 0.5)
    x[..., :8, 56:] = 1.0  # something at the top right
    plain = embedder.tokens(torch.full((1, 3, 64, 64), 0.5))
    changed = (embedder.tokens(x) - plain).norm(dim=2)[0]
    side = int(count**0.5)
    assert changed.shape == (count,) and changed.argmax() == side - 1


@pytest.mark.parametrize(
    "options", [dict(do_normalize=False), dict(rescale_factor=1 / 127.5), dict(do_rescale=False)]
)
def test_unusual_processors_are_followed(options, tmp_path):
    prepare = processor(**options)
    theirs, images = saved(tmp_path, tiny()[0], prepare), pixels()
    expected = theirs(**prepare(images, return_tensors="pt")).last_hidden_state[:, 0]
    embedder = load_embedder(f"hf:{tmp_path}")
    assert_near(embedder(images / 255), expected)


def refused(name, kind=ValueError):
    with pytest.raises(kind) as caught:
        load_embedder(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return str(caught.value)


def test_broken_folders_are_refused_in_one_sentence(tmp_path):
    from safetensors.torch import load_file, save_file

    original = tmp_path / "whole"
    saved(original, tiny()[0])

    def broken(name):
        return Path(shutil.copytree(original, tmp_path / name))

    folder = broken("unprepared")
    (folder / "preprocessor_config.json").unlink()
    assert "does not say how images are prepared" in refused(f"hf:{folder}")
    folder = broken("sizeless")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings |= dict(size=None, do_resize=False)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert load_embedder(f"hf:{folder}").input_size == 32  # the network says it too
    folder = broken("half")
    weights = load_file(folder / "model.safetensors")
    weights.pop(sorted(k for k in weights if "attention" in k)[0])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "lack 1 tensors that fit the network" in refused(f"hf:{folder}")
    folder = broken("misfit")
    weights = load_file(original / "model.safetensors")
    key = sorted(weights)[0]
    save_file(weights | {key: torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})
    assert "lack 1 tensors" in (message := refused(f"hf:{folder}")) and key in message
    folder = broken("cut")
    (folder / "model.safetensors").write_bytes((original / "model.safetensors").read_bytes()[:999])
    assert "cannot be read" in refused(f"hf:{folder}")
    folder = broken("text")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert "is a model of type `bert`" in refused(f"hf:{folder}")
    folder = broken("garbled")
    (folder / "config.json").write_text("{")
    assert "config.json" in refused(f"hf:{folder}") and "config.json" in refused(f"timm:{folder}")
    assert "the size must be 32 or 40" in refused(f"hf:{original}@36")


@pytest.fixture
def offline_hub(tmp_path, monkeypatch):
    "The Hub's cache in a folder of its own, and nothing behind it."
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    WARNED.clear()

    def publish(name, commit="0123456789" * 4):
        repo = tmp_path / "hub" / ("models--" + name.replace("/", "--"))
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(commit)
        return repo / "snapshots" / commit

    return publish


def test_models_that_were_fetched_once_work_without_a_network(offline_hub, capsys):
    folder = offline_hub("owner/eye")
    saved(folder, tiny("dinov2")[0])
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    for name, id in (("hf:owner/eye", "hf:owner/eye@32"),
                     ("hf:owner/eye@main@48", "hf:owner/eye@main@48")):
        embedder = load_embedder(name)
        assert (embedder.id, embedder.revision) == (id, "01234567")
        assert embedder.licence == "cc-by-nc-4.0"
    load_embedder("hf:owner/eye")
    message = capsys.readouterr().out.splitlines()
    assert [line.split("`")[1] for line in message] == ["hf:owner/eye", "hf:owner/eye@main"]
    assert "https://huggingface.co/owner/eye" in message[0] and "cc-by-nc-4.0" in message[0]
    assert cache_folder(embedder).name == "hf--owner--eye@main@48-01234567-1"
    assert "out of reach" in refused("hf:owner/eye@v7", ConnectionError)
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in refused("hf:owner/eye", OSError)


def test_tissue_encoders_by_their_short_names(offline_hub, capsys):
    for short, kind in (("kaiko", "kaiko_ai_towards_large_pathology_fms"), ("lunit", "lunit_dino")):
        folder = offline_hub(f"1aurent/vit_small_patch16_224.{kind}")
        vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1).eval()
        timm.models.save_for_hf(vit, folder, safe_serialization=True)
        embedder = load_embedder(f"{short}-vits16")
        assert (embedder.id, embedder.revision) == (f"{short}-vits16@64", "01234567")
        assert embedder.licence == f"{short}-non-commercial"
        x = torch.rand(2, 3, 64, 64)
        vit.reset_classifier(0)
        assert_near(embedder(x), vit((x - 0.5) / 0.5))
        load_embedder(f"{short}-vits16@96")
    assert len(capsys.readouterr().out.splitlines()) == 2  # once each


def test_old_weights_and_published_names(offline_hub):
    folder = offline_hub("timm/resnet10t.c3_in1k")
    theirs = timm.create_model("resnet10t").eval()
    timm.models.save_for_hf(theirs, folder, safe_serialization=False)
    embedder, x = load_embedder("timm:resnet10t@64"), torch.rand(2, 3, 64, 64)
    theirs.reset_classifier(0)
    mean, std = embedder.mean, embedder.std
    assert_near(embedder(x), theirs((x - mean) / std))
    assert embedder.id == "timm:resnet10t@64" and embedder.dim == 512
    assert "did you mean" in refused("timm:resnet10x")
    assert "did you mean" in refused("timm:resnet50.made_up_tag")


def test_inception_is_fetched_checked_and_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    monkeypatch.setattr(torch.hub, "_hub_dir", None, raising=False)

    def unreachable(url, dst, sha256):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    message = refused("inception", OSError)
    assert inception.INCEPTION_URL in message and str(path) in message
    calls = []

    def served(url, dst, sha256):
        calls.append((url, sha256))
        Path(dst).write_bytes(b"another file")

    monkeypatch.setattr(torch.hub, "download_url_to_file", served)
    assert "begins with" in refused("inception") and path.is_file()
    assert calls == [(inception.INCEPTION_URL, inception.INCEPTION_SHA256)]
    refused("inception")
    assert len(calls) == 1  # what is there is not fetched again
    found = hashlib.sha256(b"another file").hexdigest()
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'synth_nb\[inception\]'"):
        inception.Inception(path, found)


SLOW = """
import sys, time
import numpy as np, torch
from synth_nb.embedders.base import Embedder
from synth_nb.embedders.images import embed_images
from synth_nb.core.testing import assert_near

class Slow(torch.nn.Module):
    def forward(self, x):
        time.sleep(float(sys.argv[1]))
        return x.mean((2, 3))

images = np.random.default_rng(0).integers(0, 256, (120, 3, 8, 8), dtype=np.uint8)
images = images[int(sys.argv[2]) :]
print("begins", flush=True)
features = embed_images(Embedder(Slow(), "slow@8", "", 3, 8), images, 4, write_every=0)
expected = (torch.from_numpy(images) / 255).mean((2, 3)).sub(0.5).div(0.5)
assert_near(features, expected)
print("done", flush=True)
"""


def started(pause, first=0):
    program = [sys.executable, "-c", SLOW, str(pause), str(first)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, text=True)


class Counted(torch.nn.Module):
    images = 0

    def forward(self, x):
        self.images += len(x)
        return x.mean((2, 3))


def all_images():
    return np.random.default_rng(0).integers(0, 256, (120, 3, 8, 8), dtype=np.uint8)


def shards(embedder):
    return list(cache_folder(embedder).glob("[0-9a-f]*.npz"))


def test_a_killed_run_is_continued():
    embedder = Embedder(Counted(), "slow@8", "", 3, 8)
    process = started(0.2)
    deadline = time.monotonic() + 60
    while len(shards(embedder)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = 4 * len(shards(embedder))
    assert 12 <= done < 120
    features = embed_images(embedder, all_images())
    assert embedder.body.images == 120 - done
    assert torch.equal(embed_images(embedder, all_images()), features)
    assert embedder.body.images == 120 - done


def test_what_a_killed_process_left_is_removed_once_nobody_can_be_writing_it():
    embedder = Embedder(Counted(), "left@8", "", 3, 8)
    folder = cache_folder(embedder)
    folder.mkdir(parents=True)
    (old := folder / ".abc-1.npz").touch()
    (fresh := folder / ".abc-2.npz").touch()
    os.utime(old, (0, 0))
    embed_images(embedder, all_images())
    assert fresh.is_file() and not old.exists()


def test_two_processes_share_a_cache():
    processes = [started(0.01), started(0.01, 40)]
    ends = [(p.communicate(timeout=90)[0].split(), p.returncode) for p in processes]
    assert ends == [(["begins", "done"], 0)] * 2
    embedder = Embedder(Counted(), "slow@8", "", 3, 8)
    plain = embed_images(embedder, all_images(), cache=False)
    embedder.body.images = 0
    assert_near(embed_images(embedder, all_images()), plain)
    assert embedder.body.images == 0
    assert not list(cache_folder(embedder).glob(".*"))  # no temporary file is left
