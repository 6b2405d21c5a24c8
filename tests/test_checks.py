"Odd values of every parameter of every story: its check cells refuse them before anything starts."

import ast
import contextlib
import io
import json
import math
from functools import cache
from pathlib import Path

import pytest

from synth_nb.core.parameters import ParameterError
from synth_nb.stylegan2.config import ORIGINAL_PARAMETERS
from synth_nb.tools.grid import check_values, declared_parameters, head_of
from synth_nb.training.loop import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers'
NOTEBOOKS = Path(__file__).parent.parent / "nbs"
STORIES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
ODD = (-1, 0, 0.5, 1e9, math.nan, math.inf, None, True, [], [[]], [None], {},
       "", " ", "nothing", "two\nlines", "zero\0", "outputs/nowhere", "../..", "x" * 5000)

# what is looked up, or shown, when the data and models are opened, and may be any line of text
FREE = """dataset data group_by masks export_to outputs outdir run_name pretrained resume
    comparison_dataset autoencoder captions text_encoder prompt negative_prompt characters word
    real synthetic train runs profile folder licence repo_id""".split()
# what has no highest value, since it only costs time
LONG = """epochs images_per_epoch kimg snapshot_every snap max_minutes ada_kimg vae_epochs
    vae_steps pair_steps pretrain_steps steps segmenter_steps classifier_steps cnn_steps patience
    gap epoch tiles_per_slide n_real_per_class seed""".split()
MEANS_SOMETHING = {  # value → parameters; `NN:` of stories alone, `-NN:` of others
    0: """08_e:curve_counts power_draws mpp mpp_of_slide -06:chunk 06_em_seg:chunk
        images_per_epoch gamma beta1 beta2 ema
        lr_decay_fraction beta stride lora_rank snr_gamma logit_mean dropout
        -07:p_uncond condition_noise guidance_scale gap seed path_weight projection_steps label
        freeze_d freezed truncation trunc sample_seeds 04:seeds patience snapshot_every snap
        max_minutes min_object_size threshold epoch cnn_steps -06:val_fraction tiles_per_slide
        ada_kimg 04:batch_size 04:batch 04:accumulate 04:channel_base 04:channel_max 04:lr
        04:z_dim 04:mirror 04:cond 05:vae_steps 06_em_seg:window 08_e:image_size 08_s:n_samples
        alpha overlap overlap_steps""",
    0.5: """alpha mpp mpp_of_slide val_fraction test_fraction beta1 beta2 ema lr_decay_fraction
        gamma lr vae_lr kimg ada_target ada_kimg truncation trunc path_weight snr_gamma logit_mean
        dropout p_uncond condition_noise guidance_scale beta fractions threshold max_minutes
        overlap""",
    -1: "logit_mean truncation trunc 04:gamma 06:ema",
    True: "upright 04:mirror 04:cond",
    "": """05:lora augment model tracker baseline_input 06:sampler 06:embedder threshold
        resume_from run slide cfg batch gpus mirror snap 04:network 04:seeds trunc cond aug
        augpipe freezed""",
    "../..": "model 04:network resume_from run",  # is there, and refused when it is opened
    (): "tile n_real_per_class labels_per_class 05:runs 07:eval_embedders",
}


def listed(story: str, name: str, words: str) -> bool:
    "Whether a parameter of a story is among words, as `MEANS_SOMETHING` has them."
    for where, colon, word in (w.rpartition(":") for w in words.split()):
        here = story.startswith(where.lstrip("-")) != where.startswith("-")
        if word == name and (here or not colon):
            return True
    return False


def allowed(story: str, name: str, kind, value) -> bool:
    "Whether a value that looks odd is one of this parameter."
    if kind is bool:  # two of them need more
        return value == 0 or (value is True and name not in ("push", "umap"))
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if name == "runs" and kind is not str and number:
        return True  # a list of one
    if value == 1e9 and name in LONG:
        return True
    key = () if value == [] else value if isinstance(value, str | float | int) else None
    if listed(story, name, MEANS_SOMETHING.get(key, "")):
        return True
    if name not in FREE or kind is not str:
        return False
    if name in ("masks", "captions") and story.startswith("06"):  # of `em:`, or one word
        return value == ""
    if name == "run_name":
        return value in (0, 0.5, 1e9, True, "", "nothing")
    if name in ("dataset", "outputs") and value == "":
        return False
    return number or value is True or value in ("", "nothing", "outputs/nowhere", "../..")


@cache
def head(story: str) -> tuple:  # the parameters' namespace, and the compiled checks
    cells = json.loads((NOTEBOOKS / f"{story}.ipynb").read_text(encoding="utf-8"))["cells"]
    checks = [compile(source, story, "exec") for source in head_of(cells)[1:]]
    return declared_parameters(cells), checks


def refusal(story: str, **values) -> Exception | None:
    "What the check cells raise for values."
    declared, checks = head(story)
    space = declared | values
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            for code in checks:
                exec(code, space)
        except Exception as error:
            return error
    return None


@pytest.mark.parametrize("story", STORIES)
def test_an_odd_value_is_refused_in_one_sentence(story):
    wrong, declared = [], head(story)[0]
    for name, kind in declared["__annotations__"].items():
        for value in ODD:
            found = refusal(story, **{name: value})
            if (found is None) != allowed(story, name, kind, value):
                wrong.append(f"{name}={value!r:.20}: {found or 'accepted'!s:.90}")
            names = (name, ORIGINAL_PARAMETERS.get(name, "?")[0])
            names += ("repo_id",) if name == "push" else ()
            message = f"{found}"
            if found and not (isinstance(found, ParameterError) and "\n" not in message
                              and any(f"`{n}`" in message for n in names)):
                wrong.append(f"{name}={value!r:.20}: {type(found).__name__} {found!s:.90}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("story", STORIES)
def test_a_word_with_a_letter_missing_is_refused(story):
    declared = head(story)[0]
    for name, kind in declared["__annotations__"].items():
        near = declared[name][:-1] if kind is str else None
        if near and name not in (*FREE, "image_size", "sample_seeds"):  # 12, 1-1 are some
            assert f"`{name}`" in f"{refusal(story, **{name: near})}", (name, near)


@pytest.mark.parametrize("story", STORIES)
def test_a_name_with_a_letter_missing_is_refused(story):
    cells = json.loads((NOTEBOOKS / f"{story}.ipynb").read_text(encoding="utf-8"))["cells"]
    declared = head(story)[0]
    for name in declared["__annotations__"]:
        if name[:-1] not in declared["__annotations__"]:
            with pytest.raises(ParameterError, match=f"no parameter `{name[:-1]}`"):
                check_values({name[:-1]: declared[name]}, cells)


TOGETHER = [
    ("02_dcgan", dict(batch_size=100_000), "batch_size"),
    ("02_dcgan", dict(batch_size=5000), "images_per_epoch"),
    ("02_dcgan", dict(accumulate=32), "accumulate"),
    ("02_dcgan", dict(num_processes=3), "num_processes"),
    ("02_dcgan", dict(norm="batch"), "gamma"),
    ("02_dcgan", dict(image_size=100), "image_size"),
    ("02_dcgan", dict(eval_embedders=["efficientnet_lite"]), "eval_embedders"),
    ("02_dcgan", dict(tracker="tensorboard,wandbb"), "tracker"),
    ("03_embedding_gan", dict(gamma=1.0, discriminator_input="layers"), "gamma"),
    ("03_embedding_gan", dict(baseline_input="embeding"), "baseline_input"),
    ("03_embedding_gan", dict(embedder="efficientnet_lite2"), "eval_embedders"),
    ("04_stylegan2", dict(label=2), "label"),
    ("04_stylegan2", dict(truncation=3.0), "truncation"),
    ("04_stylegan2", dict(comparison_channels=2), "comparison_channels"),
    ("04_stylegan2", dict(sample_seeds="1-1000000000"), "sample_seeds"),
    ("04_stylegan2", dict(seeds="3-1"), "sample_seeds"),
    ("04_stylegan2", dict(image_size="96"), "image_size"),
    ("04_stylegan2", dict(freeze_d=3), "freeze_d"),
    ("05_e2i", dict(components=100_000), "components"),
    ("05_e2i", dict(head="tune"), "head"),
    ("05_e2i", dict(sampler="ddpm"), "sampler"),
    ("05_e2i", dict(dropout=1.0), "dropout"),
    ("05_e2i", dict(guidance_interval=[0.6, 0.1]), "guidance_interval"),
    ("05_e2i", dict(guidance_interval=[0.6]), "guidance_interval"),
    ("05_e2i", dict(prediction_type="v"), "prediction_type"),
    ("05_e2i", dict(lora_rank=4), "lora_rank"),
    ("05_e2i", dict(lora="weights.safetensors"), "lora"),
    ("05_e2i", dict(vae_width=12), "vae_width"),
    ("05_t2i", dict(template="a scan"), "template"),
    ("05_t2i", dict(components=63), "components"),
    ("06_em_ddpm", dict(segmenter_steps=-1), "segmenter_steps"),
    ("06_em_ddpm", dict(min_object_size=-5), "min_object_size"),
    ("06_em_ddpm", dict(val_fraction=0.5, test_fraction=0.5), "test_fraction"),
    ("06_em_ddpm", dict(masks="data/masks"), "masks"),
    ("06_em_ddpm", dict(levels=6), "levels"),
    ("06_em_ddpm", dict(latent_channels=99), "latent_channels"),
    ("06_em_ddpm", dict(embedder="efficientnet_lite0"), "embedder"),
    ("06_em_ddpm", dict(mode="mask_conditioned", caption_guidance_scale=2.0), "captions"),
    ("06_em_ddpm", dict(channels=3), "channels"),
    ("06_em_protocol", dict(arms="R,Z"), "arms"),
    ("06_em_protocol", dict(fractions=[0.0, 1.0]), "fractions"),
    ("06_em_protocol", dict(pair_width=20), "pair_width"),
    ("06_em_segmentation", dict(loss_terms="bce+iuo"), "loss_terms"),
    ("06_em_segmentation", dict(threshold="high"), "threshold"),
    ("06_em_segmentation", dict(window=100), "window"),
    ("07_emnist", dict(p_uncond=0.0), "guidance_scale"),
    ("07_emnist", dict(n_real_per_class=[10, 0]), "n_real_per_class"),
    ("07_emnist", dict(model="outputs", resume_from="outputs"), "resume_from"),
    ("08_share", dict(push=True, repo_id="mine"), "repo_id"),
]


@pytest.mark.parametrize("story, values, name", TOGETHER, ids=lambda x: str(x)[:40])
def test_what_does_not_go_together_is_refused(story, values, name):
    found = refusal(story, **values)
    assert isinstance(found, ParameterError) and f"`{name}`" in str(found), found


LATER = [  # what only data, other sets, embedders or names can tell, in what says it
    ("03_embedding_gan", dict(embedder="hf:./nowhere"), "nowhere"),
    ("04_stylegan2", dict(comparison_dataset="outputs/nowhere"), "nowhere"),
    ("04_stylegan2", dict(dataset="digits", conditional=True, label=10), "`label` is 10"),
    ("05_t2i", dict(captions="captions.csv"), "`captions`"),
    ("05_e2i", dict(autoencoder="./nowhere"), "nowhere"),
    ("05_e2i", dict(prediction_type="epsilon", pretrained="./nowhere"), "nowhere"),
    ("06_em_ddpm", dict(eval_embedders=["timm:./nowhere"]), "nowhere"),
    ("07_emnist", dict(word="cab"), "cannot write c, a, b"),
    ("07_emnist", dict(eval_embedders=["timm:./nowhere"]), "nowhere"),
    ("07_emnist", dict(epoch=7), "epoch 7"),
]


@pytest.mark.parametrize("story, values, message", LATER, ids=lambda x: str(x)[:40])
def test_nothing_is_trained_before_a_refusal(story, values, message, monkeypatch):
    def trains(*arguments, **options):
        raise AssertionError("a training began")

    monkeypatch.setattr(Trainer, "print_cost", trains)
    monkeypatch.setattr("synth_nb.diffusion.conditions.tune_head", trains)
    cells = json.loads((NOTEBOOKS / f"{story}.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = [(c["cell_type"], "".join(c["source"])) for c in cells]
    start = next(i for i, (_, text) in enumerate(sources) if "### Data" in text)
    imports = [ast.unparse(node) for kind, text in sources[:start] if kind == "code"
               for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
    quick = [text for _, text in sources[:start] if text.startswith("#| hide")]
    space = head(story)[0] | values
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises((ValueError, OSError)) as error:
        for code in head(story)[1]:
            exec(code, space)
        for text in imports + quick + [text for kind, text in sources[start:] if kind == "code"]:
            exec(compile(text, story, "exec"), space)
    assert message in str(error.value)
