"""A published pipeline is trained on as it is: its loss, its latents, its schedule, its text.

The stand-in and what is measured on it come from the benchmark; here it is trained for some steps.
"""

import json
import shutil
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from test_conditions import SMALL, here

from synth_nb.core.parameters import ParameterError
from synth_nb.core.seeding import derive_seed
from synth_nb.core.testing import assert_near
from synth_nb.data import open_dataset
from synth_nb.diffusion import new_autoencoder
from synth_nb.diffusion.captions import open_captions
from synth_nb.diffusion.checkpoint import open_checkpoint
from synth_nb.diffusion.experiment import DiffusionConfig, load, new_trainer, open_autoencoder
from synth_nb.diffusion.text import (
    TextConditioner,
    TextImageProjection,
    new_text_model,
    new_tokenizer,
)
from synth_nb.training.loop import TrainingConfig

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import pretrained as standin  # noqa: E402

ANSWER = SimpleNamespace(headers={}, request=None)  # of the Hub
FAST = dict(lr=0.1, ema=0.1)  # four steps of a warm-up are to be seen
CASES = [(condition, rank) for condition in ("t2i", "i2i", "e2i") for rank in (0, 4)]


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory):
    "All tests here share embeddings and latents."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNTH_NB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_cache(monkeypatch):
    monkeypatch.setenv("IN_TEST", "1")


@pytest.fixture(scope="module")
def images():
    demo = open_dataset("demo", 64)
    train, held_out = (part.select(slice(0, None, 20)) for part in (demo.train, demo.held_out))
    return train, held_out, open_captions("auto", demo)


@pytest.fixture(scope="module")
def base(images, tmp_path_factory):
    "A folder of a stock pipeline, and the losses that it was saved with."
    torch.manual_seed(0)
    tokenizer = new_tokenizer(sorted({*images[2].values()}))
    projection = TextImageProjection(torch.randn(64, 8), torch.zeros(1280), torch.randn(1280, 8))
    encoder = new_text_model(tokenizer).eval().requires_grad_(False)
    text = TextConditioner(tokenizer, encoder, projection, standin.ENCODER)
    folder = tmp_path_factory.mktemp("published") / "base"
    return folder, standin.stand_in(folder, *images, steps=12, text=text)


def trained(condition, base, images, folder, **options):
    "A short training that continues the stand-in; the trainer, and its model."
    config, data = standin.continued(condition, base[0], *images, **options)
    plan = TrainingConfig(1, 8, 32, device="cpu", precision="fp32")
    how = dict(guidance_scale=2.0, sampling_steps=4, best_of=1, precision="fp32")
    trainer, model = new_trainer(folder, data, config, plan, "none", **how)
    trainer.fit()
    return trainer, model()


@pytest.mark.parametrize(("condition", "rank"), CASES)
def test_a_continued_network_starts_with_the_loss_that_it_was_saved_with(
    condition, rank, base, images
):
    folder, saved = base
    config, data = standin.continued(condition, folder, *images, lora_rank=rank)
    start = standin.error_of(config, data, data.unet(config, (4, 16, 16)))
    assert start == pytest.approx(saved["text" if condition == "t2i" else "empty"], rel=1e-4)
    if condition == "t2i" and not rank:  # whitened latents and v are not what it knows
        assert standin.as_a_new_one(folder, data) > 1.5 * start


@pytest.mark.parametrize("condition", ["t2i", "e2i"])
def test_lora_is_saved_alone_and_merged_for_diffusers(condition, base, images, tmp_path):
    trainer, model = trained(condition, base, images, tmp_path / "run", lora_rank=4, **FAST)
    unet, average = trainer.modules["unet"], trainer.averages["unet"].module
    assert average.conv_in.weight is unet.conv_in.weight  # what is not trained is there once
    frozen = sum(p.nbytes for p in trainer.fixed(unet))
    assert (tmp_path / "run/checkpoints/newest.pt").stat().st_size < 1.5 * frozen
    apart, moved = standin.saved_and_opened(model, tmp_path / "model", base[0])
    assert moved > 0.01 and apart < 0.05 * moved
    unet = DiffusionPipeline.from_pretrained(tmp_path / "model").unet
    assert not any("lora" in name for name in unet.state_dict())
    assert unet.config.encoder_hid_dim is None  # Stable Diffusion's own layout
    again, ours = load(tmp_path / "model"), model.sample(2, seed=1).images
    assert_near(again.sample(2, seed=1).images, ours)
    again.pipeline.load_lora_weights(tmp_path / "model/lora")  # on top of a finished run
    assert (again.sample(2, seed=1).images - ours).abs().max() > 1e-3


def test_what_an_embedding_learns_is_saved_without_a_layer_of_its_own(base, images, tmp_path):
    trainer, model = trained("e2i", base, images, tmp_path / "run", **FAST)
    shift = trainer.modules["unet"].encoder_hid_proj
    assert shift.weight.abs().max() > 0
    assert model.conditioner.tokens(model.conditions).shape[1:] == (77, 64)
    assert standin.saved_and_opened(model, tmp_path / "model", base[0]) is None
    again, ours = load(tmp_path / "model").sample(2, seed=1).images, model.sample(2, seed=1).images
    assert_near(again, ours)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "model")  # its negative: the empty prompt
    seeds = [torch.Generator().manual_seed(derive_seed(1, i)) for i in range(2)]
    stock = pipe(prompt_embeds=model.conditioner.tokens(model.conditions[:2]), guidance_scale=2.0,
                 num_inference_steps=4, height=64, width=64, generator=seeds, output_type="pt")
    assert_near(2 * stock.images - 1, ours)


def altered(base, folder: Path, part: str, **values) -> str:
    "A copy of the stand-in with another entry in a configuration; None takes one out."
    shutil.copytree(base[0], folder)
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    config = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return str(folder)


@pytest.mark.parametrize("zero_snr", [True, False])
def test_the_schedule_is_that_of_the_checkpoint(zero_snr, base, tmp_path):
    values = dict(prediction_type="v_prediction", rescale_betas_zero_snr=zero_snr, beta_end=0.02)
    name = altered(base, tmp_path / "other", "scheduler", **values, beta_schedule="linear")
    for sampler in ("ddpm", "ddim", "dpm++", "euler"):
        config = DiffusionConfig(pretrained=name, sampler=sampler).scheduler().config
        found = config.prediction_type, bool(config.get("rescale_betas_zero_snr"))
        assert found == ("v_prediction", zero_snr)
        assert (config.beta_schedule, config.beta_end) == ("linear", 0.02)


@pytest.mark.parametrize("end", ["safetensors", "bin"])
def test_weights_in_half_precision_alone_are_taken(end, base, images, tmp_path):
    folder, saved = tmp_path / "half", base[1]
    pipeline = DiffusionPipeline.from_pretrained(base[0], dtype=torch.float16)
    pipeline.save_pretrained(folder, variant="fp16")
    for file in folder.rglob("*.safetensors") if end == "bin" else ():
        weights, stem = load_file(file), file.name.replace("safetensors", "bin")
        torch.save(weights, file.with_name(stem.replace("model.fp16", "pytorch_model.fp16")
                                           if stem.startswith("model") else stem))
        file.unlink()
    assert [*{file.name for file in folder.glob("unet/*.*") if file.suffix != ".json"}] == [
        f"diffusion_pytorch_model.fp16.{end}"]
    config, data = standin.continued("t2i", folder, *images)
    unet = data.unet(config, (4, 16, 16))
    assert {p.dtype for p in unet.parameters()} == {torch.float32}
    assert standin.error_of(config, data, unet) == pytest.approx(saved["text"], rel=2e-2)


def bare(base, folder: Path) -> str:
    "The stand-in's UNet, without the rest."
    shutil.copytree(base[0] / "unet", folder / "unet")
    return str(folder)


def test_a_setting_that_contradicts_the_checkpoint_is_refused_by_name(base, images, tmp_path):
    name, (train, *_) = str(base[0]), images
    with pytest.raises(ParameterError, match=r"`prediction_type` is 'v_pred.* epsilon"):
        DiffusionConfig(pretrained=name, prediction_type="v_prediction").scheduler()
    assert DiffusionConfig(pretrained=name, prediction_type="epsilon").scheduler()
    with pytest.raises(ParameterError, match=r"`vae_steps` is 600, but .* leave it at 0"):
        open_autoencoder(train, vae_steps=600, pretrained=name)
    new_autoencoder().save_pretrained(tmp_path / "other")
    with pytest.raises(ParameterError, match=r"`autoencoder`: .* \(4, 1.0, 0\), .* 0.18215, 0\)"):
        open_autoencoder(train, str(tmp_path / "other"), pretrained=name)
    shifted = new_autoencoder()  # as Flux's is
    shifted.register_to_config(scaling_factor=0.18215, shift_factor=0.1)
    shifted.save_pretrained(tmp_path / "shifted")
    with pytest.raises(ParameterError, match=r"`autoencoder`: .* \(4, 0.18215, 0.1\)"):
        open_autoencoder(train, str(tmp_path / "shifted"), pretrained=name)
    same = open_autoencoder(train, name, device="cpu", pretrained=name)
    assert same.config.scaling_factor == 0.18215
    alone = bare(base, tmp_path / "bare")
    with pytest.raises(ParameterError, match=r"has no scheduler, .* set `prediction_type`"):
        DiffusionConfig(pretrained=alone).scheduler()
    with pytest.raises(ParameterError, match=r"has no autoencoder .* name that by `autoencoder`"):
        open_autoencoder(train, pretrained=alone)
    flow = altered(base, tmp_path / "flow", "scheduler", num_train_timesteps=4000)
    with pytest.raises(ParameterError, match="of 4000 timesteps"):
        DiffusionConfig(pretrained=flow).scheduler()


def test_latents_of_sixteen_channels_are_refused_for_a_unet_of_four(base, tmp_path):
    config = DiffusionConfig(pretrained=str(base[0]))
    with pytest.raises(ParameterError, match="works on 4 latent channels, the autoencoder has 16"):
        config.unet(8, (16, 8, 8))


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_weights_of_another_network_are_one_sentence(part, base, tmp_path):
    wide = dict(unet=dict(block_out_channels=[64, 192]), vae=dict(block_out_channels=[16, 32, 96]))
    name = altered(base, tmp_path / "other", part, **wide[part])
    with pytest.raises(OSError, match=f"the weights in .*{part} cannot be read, get them again"):
        if part == "unet":
            DiffusionConfig(pretrained=name).unet(64, (4, 16, 16), "text")
        else:
            open_autoencoder(None, pretrained=name)


def test_lora_of_another_network_is_refused(base, images, tmp_path):
    _, model = trained("t2i", base, images, tmp_path / "run", lora_rank=2)
    standin.save(model, tmp_path)
    for name, changes, why in (
        ("wide", dict(block_out_channels=(32, 128)), "has 64 inputs in it, 32 in that of"),
        ("short", dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D")), "has no `"),
    ):
        UNet2DConditionModel(**standin.LAYOUT | changes).save_pretrained(tmp_path / name / "unet")
        config = DiffusionConfig(pretrained=str(tmp_path / name), lora=str(tmp_path / "lora"))
        with pytest.raises(ParameterError, match=f"`lora`: .* is for another UNet: .*{why}"):
            config.unet(64, (4, 16, 16), "text")
    with pytest.raises(OSError, match="holds LoRA weights without the model they belong to"):
        DiffusionConfig(pretrained=str(tmp_path / "lora")).unet(64, (4, 16, 16), "text")


def as_kohya(weights: dict, alpha: float) -> dict:
    "LoRA weights as the kohya scripts name and scale them, with some for a text encoder."
    other = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    found = {f"{other}.lora_{end}.weight": torch.ones(2, 2) for end in ("down", "up")}
    for name, weight in weights.items():
        layer, _, end = name.removeprefix("unet.").partition(".lora.")
        layer = "lora_unet_" + layer.replace(".", "_")
        found |= {f"{layer}.lora_{end}": weight, f"{layer}.alpha": torch.tensor(alpha)}
    return found


def test_lora_from_a_file_is_where_a_training_starts(base, images, tmp_path):
    "Of an earlier run: as good as that run was; by another program: at its own scale."
    _, model = trained("t2i", base, images, tmp_path / "run", lora_rank=4, **FAST)
    standin.save(model, tmp_path)
    weights = load_file(tmp_path / "lora/pytorch_lora_weights.safetensors")
    save_file(as_kohya(weights, 1.0), tmp_path / "kohya.safetensors")
    stock = UNet2DConditionModel.from_pretrained(base[0] / "unet").state_dict()
    merged, change = model.pipeline.unet.state_dict(), {}
    for name, file in dict(own="lora", kohya="kohya.safetensors").items():
        config, data = standin.continued("t2i", base[0], *images, lora=str(tmp_path / file))
        with warnings.catch_warnings(record=True) as caught:
            unet = data.unet(config, (4, 16, 16))
        assert ("text encoder is left out" in str([w.message for w in caught])) == (name == "kohya")
        change[name] = {k: v - stock[k] for k, v in unet.state_dict().items()}
    size = max(moved.abs().max().item() for moved in change["own"].values())
    assert size > 1e-3
    for key, moved in change["own"].items():
        assert_near(moved + stock[key], merged[key])
        assert_near(change["kohya"][key] * 4, moved, rel=1e-3, size=size)  # alpha 1 of rank 4


def test_lora_that_peft_wrote_is_read_with_its_own_scale(base, images, tmp_path):
    from peft import LoraConfig, get_peft_model

    stock = UNet2DConditionModel.from_pretrained(base[0] / "unet")
    targets = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_v"])
    thin = get_peft_model(stock, targets)
    torch.manual_seed(0)
    for name, weight in thin.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    thin.save_pretrained(tmp_path / "peft")
    config, data = standin.continued("t2i", base[0], *images, lora=str(tmp_path / "peft"))
    found = data.unet(config, (4, 16, 16)).state_dict()
    for name, weight in thin.merge_and_unload().state_dict().items():
        assert_near(found[name], weight)
    (tmp_path / "peft/adapter_config.json").unlink()
    with pytest.raises(OSError, match="cannot be read"):
        data.unet(config, (4, 16, 16))


def test_lora_on_lora_is_saved_as_the_second_alone(base, images, tmp_path):
    _, first = trained("t2i", base, images, tmp_path / "one", lora_rank=4, **FAST)
    standin.save(first, tmp_path / "first")
    file = str(tmp_path / "first/lora")
    _, second = trained("t2i", base, images, tmp_path / "two", lora=file, lora_rank=2, **FAST)
    standin.save(second, tmp_path / "second")
    card = (tmp_path / "second/README.md").read_text()
    assert f"for a pipeline of `{base[0]}`, with `{file}` loaded" in card
    pipe = DiffusionPipeline.from_pretrained(base[0])
    for name in ("first", "second"):
        pipe.load_lora_weights(tmp_path / name / "lora", adapter_name=name)
    pipe.set_adapters(["first", "second"])
    latents, tokens, times = torch.randn(2, 4, 16, 16), torch.randn(2, 7, 64), torch.tensor([5, 7])
    with torch.no_grad():
        both = pipe.unet(latents, times, tokens).sample
        assert_near(second.pipeline.unet(latents, times, tokens).sample, both)
        assert (both - first.pipeline.unet(latents, times, tokens).sample).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ConnectionError("no route"), OSError, "not on this machine and the Hub is out of reach"),
        (errors.GatedRepoError("gated", response=ANSWER), OSError, "is gated: accept its terms at"),
        (errors.RepositoryNotFoundError("no", response=ANSWER), ValueError, "the Hub has no model"),
    ],
)
def test_a_name_on_the_hub_that_cannot_be_had_is_one_sentence(error, kind, message, monkeypatch):
    import huggingface_hub

    def away(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", away)
    with pytest.raises(kind, match=message):
        DiffusionConfig(pretrained="someone/stable-diffusion").scheduler()


def test_a_name_on_the_hub_is_checked_before_its_weights_are_fetched(base, monkeypatch, tmp_path):
    import huggingface_hub

    calls = []

    def download(name, revision, allow_patterns):
        calls.append((name, revision, allow_patterns))
        return str(base[0])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = open_checkpoint("someone/stable-diffusion@main")
    assert found.config("unet")["cross_attention_dim"] == 64
    assert not any("safetensors" in p or "bin" in p for _, _, ps in calls for p in ps)
    DiffusionConfig(pretrained="someone/stable-diffusion@main").unet(64, (4, 16, 16), "text")
    name, revision, patterns = calls[-1]
    assert (name, revision) == ("someone/stable-diffusion", "main")
    assert "unet/diffusion_pytorch_model.safetensors" in patterns
    assert not any(p.startswith(("vae", "safety")) for p in patterns)


@pytest.mark.parametrize(("condition", "rank"), [("t2i", 0), ("e2i", 2)])
def test_a_story_trains_on_a_published_pipeline(condition, rank, base, patches, tmp_path):
    options = dict(dataset=patches, outputs=tmp_path, run_name="run", pretrained=base[0])
    options |= dict(lora_rank=rank, lr=1e-8)
    here(f"05_{condition}", **SMALL | options | dict(vae_steps=0))
    folder = tmp_path / f"05_{condition}" / "run"
    assert (folder / "model/lora/pytorch_lora_weights.safetensors").is_file() == bool(rank)
    pipe = DiffusionPipeline.from_pretrained(folder / "model")
    assert pipe.vae.config.scaling_factor == 0.18215
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert not pipe.scheduler.config.get("rescale_betas_zero_snr")
    for name, weight in DiffusionPipeline.from_pretrained(base[0]).unet.state_dict().items():
        assert_near(pipe.unet.state_dict()[name], weight)  # at such a rate nothing moved
    assert (folder / "training_images.png").is_file()
