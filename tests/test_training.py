"What a step of the trainer must not do: wait for the device, break a graph, depend on readers."

import math
import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_processes import Faces, new_conditioned, new_dcgan, new_pairs, new_segmenter
from torch import nn

from synth_nb.core.parameters import ParameterError
from synth_nb.core.seeding import thread_generator, thread_seed
from synth_nb.core.testing import assert_near
from synth_nb.data.loader import in_random_views
from synth_nb.diffusion.autoencoder import ReconstructionLoss, new_autoencoder
from synth_nb.diffusion.masks import PairUNet
from synth_nb.diffusion.model import UNET_LAYOUTS, new_unet
from synth_nb.diffusion.objective import SAMPLERS, DiffusionLoss, new_scheduler
from synth_nb.diffusion.sampling import SamplingConfig, denoise
from synth_nb.em.autoencoder import SectionImages, SectionVAE, VAELoss
from synth_nb.emnist.classifier import random_affine
from synth_nb.emnist.model import letter_scheduler
from synth_nb.emnist.model import new_unet as new_letter_unet
from synth_nb.emnist.training import denoising_phase
from synth_nb.evaluation.useful import random_flip
from synth_nb.figures.plots import save_samples
from synth_nb.segmentation.fit import augment_photometric, random_warps
from synth_nb.training import batches, loop
from synth_nb.training.loop import Phase, Trainer, TrainingConfig
from synth_nb.training.schedules import BatchOrder
from synth_nb.training.waits import blind_steps


class Letters:
    "Images with labels."
    keys = tuple(str(i) for i in range(8))
    images = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def __len__(self):
        return 8

    def __getitem__(self, rows):
        labels = torch.tensor(rows) % 3
        return dict(image=self.images[rows], label=labels, key=[self.keys[i] for i in rows])


class Pairs:
    "Latents with conditions, and padding among them."
    keys = tuple(str(i) for i in range(8))

    def __init__(self, channels=4, tokens=2, width=8, side=8):
        self.latents, self.tokens = torch.randn(8, channels, side, side), (tokens, width)

    def __len__(self):
        return 8

    def __getitem__(self, rows):
        condition, mask = torch.randn(len(rows), *self.tokens), torch.ones(len(rows), 1)
        return dict(latent=self.latents[rows], condition=condition, condition_mask=mask,
                    key=[self.keys[i] for i in rows])


def trainer_of(folder, data, module, phase, name="unet", **options) -> Trainer:
    options = dict(epochs=2, batch_size=4, device="cpu", precision="fp32") | options
    return Trainer(folder, data, {name: module}, [phase], TrainingConfig(**options), {name: 0.9})


def denoising(folder, unet, data, **options) -> Trainer:
    adam = torch.optim.AdamW(unet.parameters(), 1e-3, fused=True)
    loss = DiffusionLoss(new_scheduler(), timesteps="stratified", snr_gamma=5.0)
    return trainer_of(folder, data, unet, Phase(loss, adam), **options)


def letters(folder, **options) -> Trainer:
    torch.manual_seed(0)
    unet = new_letter_unet(3)
    phase = denoising_phase(unet, letter_scheduler(), 3)
    return trainer_of(folder, Letters(), unet, phase, **options)


def latent_autoencoder(folder, **options) -> Trainer:
    vae = new_autoencoder(1, (8, 16))
    phase = Phase(ReconstructionLoss(None), torch.optim.AdamW(vae.parameters()))
    return trainer_of(folder, Faces(), vae, phase, "vae", **options)


def section_autoencoder(folder, **options) -> Trainer:
    vae, images = SectionVAE(2, 3, 8), np.zeros((8, 1, 16, 16), np.uint8)
    phase = Phase(VAELoss(), torch.optim.Adam(vae.parameters()))
    return trainer_of(folder, SectionImages(images, images), vae, phase, "vae", **options)


def section_pairs(folder) -> Trainer:
    training = new_pairs(folder, 1)
    unet = training.new_network()
    return denoising(folder, unet, training.data)


STEPS = dict(
    conditioned=lambda folder: new_conditioned(folder, 1),
    tokens=lambda folder: denoising(folder, new_unet(8, 8), Pairs()),
    pairs=section_pairs, letters=letters, latents=latent_autoencoder, sections=section_autoencoder,
    segmenter=lambda folder: new_segmenter(folder, 1), dcgan=lambda folder: new_dcgan(folder, 1),
    accumulated=lambda folder: letters(folder, accumulate=3),
)  # fmt: skip


@pytest.mark.parametrize("new", STEPS.values(), ids=STEPS)
def test_a_step_reads_nothing_from_the_device_and_copies_only_the_batch(new, tmp_path):
    assert blind_steps(new(tmp_path)).copies == 0


def maps(folder, **options) -> Trainer:
    return denoising(folder, PairUNet(3, 2, True, (16, 32)), Pairs(3, 64, 2), **options)


NETWORKS = dict(
    tiny=lambda folder, **options: denoising(folder, new_unet(8, 8), Pairs(), **options),
    small=lambda folder, **options: denoising(folder, new_unet(8, 8, size="small"), Pairs(),
                                              **options),
    checkpointing=lambda folder, **options: denoising(
        folder, new_unet(8, 8, size="mini"), Pairs(), checkpointing=True, **options),
    letters=letters, maps=maps,
    config=lambda folder, **options: letters(folder, checkpointing=True, **options),
)  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("new", NETWORKS.values(), ids=NETWORKS)
def test_networks_compile_to_one_graph_and_keep_their_names(new, precision, tmp_path, monkeypatch):
    if precision == "bf16" and new is not NETWORKS["tiny"]:
        pytest.skip("one of them is enough")
    torch._dynamo.reset()
    small = UNET_LAYOUTS["small"] | dict(widths=(32, 64, 64), layers=1)  # attends, in seconds
    monkeypatch.setitem(UNET_LAYOUTS, "small", small)
    compiling = nn.Module.compile

    def one_graph(module, **options):
        compiling(module, **options | dict(backend="aot_eager", fullgraph=True, mode=None))

    monkeypatch.setattr(nn.Module, "compile", one_graph)
    losses = []
    for choice in ("off", "on"):
        torch.manual_seed(0)
        trainer = new(tmp_path / choice, compile=choice, epochs=1, precision=precision)
        assert len(trainer.compiled) == (choice == "on")
        names = list(trainer.modules["unet"].state_dict())
        assert trainer.fit() == "complete"
        assert list(trainer.modules["unet"].state_dict()) == names
        state = torch.load(tmp_path / choice / "checkpoints/newest.pt", weights_only=True)
        assert list(state["modules"]["unet"]) == names
        assert trainer.modules["unet"]._compiled_call_impl is None  # plain again
        losses.append(trainer.log.rows[-1]["loss"])
    # the same draws, other orders of sums; bf16 rounds at other places
    assert_near(losses[1], losses[0], rel=1e-3 if precision == "fp32" else 0.05)


def test_where_compiling_fails_auto_goes_on_without_it(tmp_path, monkeypatch, capsys):
    def failing(module, **options):
        def call(*args, **kwargs):
            raise RuntimeError("no compiler here")

        module._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", failing)
    with pytest.raises(RuntimeError, match="no compiler here"):
        letters(tmp_path / "on", compile="on").fit()
    monkeypatch.setattr(loop, "COMPILE_STEPS", 0)
    monkeypatch.setattr(Trainer, "gpu_can_compile", lambda self: True)
    trainer = letters(tmp_path / "auto", epochs=1)
    assert trainer.compiled
    assert trainer.fit() == "complete"
    assert "not compiled, since torch.compile fails here with" in capsys.readouterr().out
    assert math.isfinite(trainer.log.rows[-1]["loss"])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_reads_nothing_from_the_device(sampler, prediction_type):
    if (sampler, prediction_type) == ("ddpm", "flow_prediction"):
        pytest.skip("there is no such sampler")

    def unet(noisy, t, conditions, return_dict):
        assert {noisy.device.type, t.device.type, conditions.device.type} == {"meta"}
        return (noisy * t,)

    with torch.inference_mode():
        noise, tokens = (torch.randn(2, *shape, device="meta") for shape in ((4, 8, 8), (1, 8)))
        config = SamplingConfig(sampler, 5, guidance_interval=(0.2, 0.8))
        scheduler = config.scheduler(new_scheduler(prediction_type))
        own = [torch.Generator().manual_seed(i) for i in range(2)]
        latents = denoise(unet, scheduler, noise, tokens, tokens * 0, config, generators=own)
    assert latents.shape == noise.shape and latents.device.type == "meta"


class Shifted(Letters):
    "Letters that are moved at random as they are read."

    def __getitem__(self, rows):
        batch = super().__getitem__(rows)
        shift = torch.rand(len(rows), 1, 1, 1, generator=thread_generator()) / 10
        return batch | dict(image=batch["image"] + shift)


@pytest.mark.parametrize("ahead", [1, 3])
def test_what_is_read_ahead_resumes_bit_for_bit(tmp_path, ahead):
    def weights(folder, epochs, ahead):
        torch.manual_seed(0)
        unet = new_letter_unet(3)
        phase = denoising_phase(unet, letter_scheduler(), 3)
        trainer = trainer_of(folder, Shifted(), unet, phase, epochs=epochs)
        trainer.batches.ahead = ahead
        trainer.fit()
        return trainer.modules["unet"].state_dict()

    complete = weights(tmp_path / "whole", 3, 2)
    weights(tmp_path / "parts", 1, ahead)
    parts = weights(tmp_path / "parts", 3, ahead)
    assert all(torch.equal(complete[name], parts[name]) for name in complete)


@pytest.mark.parametrize("name", ["conditioned", "pairs", "sections", "segmenter", "dcgan"])
def test_a_thread_reads_by_its_seed_and_moves_no_shared_stream(name, tmp_path):
    data = STEPS[name](tmp_path).data
    before, found = torch.get_rng_state(), []
    for seed in (5, 5):
        with thread_seed(seed):
            found.append({k: v for k, v in data[[0, 1, 2]].items() if torch.is_tensor(v)})
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("draw", [
    lambda x: random_warps(3, (16, 16)), augment_photometric, random_flip, random_affine,
    lambda x: in_random_views(((x + 1) * 127).byte(), 8),
], ids=["warps", "photometric", "flip", "affine", "views"])
def test_what_data_sets_draw_follows_the_thread(draw, tmp_path):
    images = torch.linspace(-1, 1, 3 * 16 * 16).view(3, 1, 16, 16)
    torch.manual_seed(5)
    expected = draw(images)
    before = torch.get_rng_state()
    with thread_seed(5):
        assert torch.equal(draw(images), expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_for_a_gpu_a_thread_reads_on_its_device_into_pinned_memory(monkeypatch):
    chosen, pinned, here = [], [], threading.get_ident()
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device",
                        lambda device: chosen.append((device, threading.get_ident() != here)))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x.shape) or x)
    monkeypatch.setattr(batches, "to_device", lambda batch, device: batch)
    reading = batches.Batches(Shifted(), BatchOrder(8, 4, 0), torch.device("cuda"))
    torch.manual_seed(0)
    with closing(reading):
        found = [reading(step)[0][0] for step in range(3)]
    assert chosen == [(3, True)]  # one thread, and not this one
    assert len(pinned) >= 6 and set(pinned) == {(4, 1, 28, 28), (4,)}
    assert len({float(batch["image"].sum()) for batch in found}) == 3
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(0)))


def test_the_first_step_that_is_not_finite_is_named_however_late_it_is_read(tmp_path):
    trainer = letters(tmp_path, epochs=1, images_per_epoch=400)
    trainer.data.images = trainer.data.images.clone()
    trainer.data.images[trainer.order(30)[0]] = math.nan  # every pass of two steps has it
    first = next(s for s in range(4) if trainer.order(30)[0] in trainer.order(s))
    with pytest.raises(FloatingPointError, match=f"loss is nan at step {first}; batch: "):
        trainer.fit()
    assert trainer.position.step <= loop.READ_STEPS
    assert not (tmp_path / "checkpoints").exists()


class Service(GeneralTracker):
    "What accelerate's class for W&B offers, in a list."

    name, requires_logging_directory, seen = "wandb", False, []

    def __init__(self, project, name, id, resume, dir):
        super().__init__()
        self.id = id

    def log(self, values, step):
        self.seen.append((step, sorted(values)))

    def log_images(self, values, step):
        self.seen.append((step, [picture.size for picture in values["samples"]]))

    @property
    def tracker(self):
        return self


def test_a_training_reports_its_rows_and_sheets(tmp_path, monkeypatch):
    with pytest.raises(ParameterError, match="`tracker` must name some of tensorboard, wandb"):
        letters(tmp_path, tracker="tensorboard,neptune")
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Service)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.WANDB])
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: name)
    monkeypatch.setattr(Service, "seen", [])
    for epochs in (1, 2):  # the second start goes on in the same run
        trainer = letters(tmp_path, epochs=epochs, tracker="wandb,tensorboard")
        sheet = torch.zeros(2, 1, 8, 8)
        trainer.evaluate = lambda epoch, sheet=sheet: (save_samples(sheet, tmp_path, epoch), {})[1]
        trainer.fit()
    assert [step for step, _ in Service.seen] == [2, 2, 4, 4]
    assert Service.seen[0][1] == ["epoch", "images", "loss", "lr", "seconds"]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Images("samples")] == [2, 4]
    assert [event.step for event in events.Scalars("loss")] == [2, 4]


def test_a_lazy_phase_counts_by_its_share(tmp_path, monkeypatch):
    clock, net = [0.0], nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])

    def phase(name, seconds, every):
        def loss(nets, batch):
            clock[0] += seconds
            return nets["net"](batch["image"][:, 0, 0, :1].float()).mean()

        return Phase(loss, optimizer, name, every)

    phases = [phase("main", 1.0, 1), phase("lazy", 8.0, 16)]
    config = TrainingConfig(1, 2, device="cpu")
    assert Trainer(tmp_path, Faces(), dict(net=net), phases, config).step_seconds() == 1.5
