"Trainings in several processes: the same curve as one, killed, on two machines, stopped."

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from synth_nb.core.files import display_path
from synth_nb.core.seeding import seed_everything
from synth_nb.training.loop import Phase, Plan, Trainer, read_metrics

fresh = multiprocessing.get_context("spawn")  # a fork may wait for threads it does not have


class Noise:
    "Images that change each time, as the trainer takes them; one process may die of them."
    keys = tuple(str(i) for i in range(50))
    x = torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    dies = -1  # at this step

    def __len__(self):
        return 50

    def __getitem__(self, i):
        if self.trainer.at.step == self.dies and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return dict(x=self.x[i] + 0.1 * torch.randn(len(i), 3, 8, 8))


def fake(nets, batch):
    return nets["G"](torch.randn(len(batch["x"]), 8)).view_as(batch["x"])


def loss_d(nets, batch):
    real, made = nets["D"](batch["x"]), nets["D"](fake(nets, batch).detach())
    return F.softplus(-real).mean() + F.softplus(made).mean()


def loss_g(nets, batch):
    return F.softplus(-nets["D"](fake(nets, batch))).mean()


def new_gan(folder: Path, processes: int, nodes: int = 1, dies: int = -1, epochs=6) -> Trainer:
    seed_everything(0)
    G = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 192))
    D = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
                      nn.Linear(576, 1))
    opt_d, opt_g = (torch.optim.Adam(m.parameters(), 1e-3) for m in (D, G))
    phases = [Phase(loss_d, opt_d, "D"), Phase(loss_g, opt_g, "G", every=2)]
    plan = Plan(epochs, 12, 120, device="cpu", num_processes=processes, num_nodes=nodes)
    data = Noise()
    data.trainer = trainer = Trainer(folder, data, dict(G=G, D=D), phases, plan, dict(G=0.9),
                                     lambda epoch: dict(score=float(torch.rand(()))))
    data.dies = dies
    return trainer


def trained_gan(*args):
    "A whole training, and its end in a file, for a process of its own."
    trainer = new_gan(*args)
    trainer.fit()
    torch.save({k: m.state_dict() for k, m in trainer.modules.items()}, args[0] / "end.pt")


def largest_difference(one: Path, other: Path) -> float:
    """Of two ends of a training, in parts of what Adam can move a weight in its sixty steps.

    Several processes sum gradients in another order, and where a gradient is 0 up to rounding
    Adam makes a step of its sign. Another share of the data would give a difference of about 1.
    """
    ends = [torch.load(folder / "end.pt", weights_only=True) for folder in (one, other)]
    values = [[t for net in end.values() for t in net.values()] for end in ends]
    return max((a - b).abs().max().item() for a, b in zip(*values, strict=True)) / (60 * 1e-3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    trained_gan(folder, 1)
    return folder


def test_a_killed_process_ends_the_run_and_it_goes_on_as_if_nothing_had_been(
        tmp_path, alone, capfd):
    said = r"process 2 of 2 was killed \(SIGKILL\); what was reached is in .*newest.pt; start again"
    with pytest.raises(RuntimeError, match=said):
        new_gan(tmp_path, 2, 1, 35).fit()
    capfd.readouterr()
    trained_gan(tmp_path, 2)
    assert "steps 30 to 60 on cpu, 2 processes" in capfd.readouterr().out
    assert largest_difference(alone, tmp_path) < 0.01
    rows = [(folder / "metrics.csv").read_text().splitlines() for folder in (alone, tmp_path)]
    assert len(rows[0]) == len(rows[1]) == 7


def test_two_machines_train_one_model_and_each_keeps_it(tmp_path, alone, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(29000 + os.getpid() % 900))
    machines = []
    for n in range(2):
        (tmp_path / str(n)).mkdir()
        monkeypatch.setenv("NODE_RANK", str(n))
        machines.append(fresh.Process(target=trained_gan, args=(tmp_path / str(n), 1, 2)))
        machines[-1].start()
    for n, machine in enumerate(machines):
        machine.join(900)  # a guard against waiting for ever, not a limit
        assert machine.exitcode == 0
        assert largest_difference(alone, tmp_path / str(n)) < 0.01


def stopped_gan(*args):
    "A training that is stopped, and what it said in a file."
    trainer = new_gan(*args)
    try:
        trainer.fit()
    except KeyboardInterrupt as stop:
        (args[0] / "said").write_text(f"{trainer.at.step}: {stop}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_from_outside_leaves_a_checkpoint(tmp_path, number):
    process = fresh.Process(target=stopped_gan, args=(tmp_path, 2, 1, -1, 1000))
    process.start()
    while not (tmp_path / "checkpoints" / "newest.pt").is_file():
        time.sleep(0.1)
    os.kill(process.pid, number)
    process.join(60)
    reached = torch.load(tmp_path / "checkpoints" / "newest.pt", weights_only=True)
    step = reached["position"]["step"]
    assert 0 < step <= 10_000
    said = (
        f"stopped at step {step} of 10000, kept in {display_path(tmp_path)}; start again to go on"
    )
    assert (tmp_path / "said").read_text() == f"{step}: {said}"


class Faces:
    "Images, as the trainers of GANs take them."
    keys = tuple(str(i) for i in range(16))
    x = torch.rand(16, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def __len__(self):
        return 16

    def __getitem__(self, i):
        return dict(image=self.x[i], label=torch.zeros(len(i)), key=[self.keys[k] for k in i])


def new_style_gan(folder: Path, processes: int) -> Trainer:
    from synth_nb.stylegan2.config import choose_settings
    from synth_nb.stylegan2.loss import extra_modules, new_phases
    from synth_nb.stylegan2.model import new_networks

    settings = choose_settings("auto", 16, 8, processes, channel_base=128, channel_max=8, z_dim=8,
                               w_dim=8, group=2, augment="bgc", ada_kimg=0.1, ada_target=0.0,
                               path_weight=2.0, clamp=None)
    seed_everything(0)
    G, D = new_networks(settings, 1)
    phases = new_phases(settings, G.parameters(), D.parameters())
    extra = extra_modules(settings)
    plan = Plan(3, 8, 32, device="cpu", precision="fp32", num_processes=processes)

    def memory(epoch):
        return dict(p=extra["augment"].p.item(), length=extra["path_length"].mean.item(),
                    w_avg=G.mapping.w_avg.square().sum().item())

    modules = dict(generator=G, discriminator=D, **extra)
    return Trainer(folder, Faces(), modules, phases, plan, dict(generator=0.9), memory)


def new_dcgan(folder: Path, processes: int) -> Trainer:
    from synth_nb.dcgan import DiffAugment, Discriminator, GANLosses, Generator, gan_phases

    seed_everything(0)
    G, D = Generator(16, 1, 8, 4), Discriminator(16, 1, 4, "batch")
    augment = DiffAugment("translation,color")
    losses = GANLosses(augment, lambda batch: augment(batch["image"]), 8)
    plan = Plan(3, 8, 16, device="cpu", precision="fp32", num_processes=processes)
    return Trainer(folder, Faces(), dict(G=G, D=D), gan_phases(losses, G, D, 1e-3, (0.0, 0.99)),
                   plan)


def new_conditioned(folder: Path, processes: int) -> Trainer:
    from synth_nb.diffusion.experiment import Conditioned, Recipe
    from synth_nb.diffusion.latents import Latents, LatentSet

    seed_everything(0)
    latents, recipe = Latents(torch.randn(2, 12, 4, 4, 4), torch.rand(2, 12, 4, 4, 4)), Recipe()
    data = LatentSet(latents, torch.randn(1, 12, 1, 8), [str(i) for i in range(12)])
    unet = recipe.unet(8, latents)
    phase = Phase(recipe.loss(), torch.optim.AdamW(unet.parameters(), 1e-3))
    plan = Plan(2, 4, 4, device="cpu", precision="fp32", num_processes=processes)
    return Trainer(folder, Conditioned(data, torch.zeros(1, 1, 8), 0.3), dict(unet=unet), [phase],
                   plan)


def new_segmenter(folder: Path, processes: int) -> Trainer:
    from synth_nb.segmentation.fit import Pairs, new_training
    from synth_nb.segmentation.networks import ResidualUNet

    seed_everything(0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 1, 32, 32), np.uint8)
    pairs = Pairs(images, (images > 128).astype(np.uint8), 16, 8, True)
    plan = Plan(2, 4, 12, device="cpu", precision="fp32", num_processes=processes)
    return new_training(folder, pairs, ResidualUNet(1, (4, 8)), plan)


def new_pairs(folder: Path, processes: int):
    from synth_nb.em.training import PairTrainer, PairTraining

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 1, 16, 16), np.uint8)
    how = PairTraining("joint", 4, vae_width=8, epochs=2, images_per_epoch=12,
                       batch_size=4, widths=(16, 32), device="cpu", num_processes=processes)
    return PairTrainer(folder, how, images, (images > 128).astype(np.uint8))


every = [new_dcgan, new_style_gan, new_conditioned, new_segmenter, new_pairs]


@pytest.mark.parametrize("new", every, ids=lambda new: new.__name__.removeprefix("new_"))
def test_two_processes_give_the_curve_of_one(tmp_path, new):
    curves = []
    for processes in (1, 2):
        training = new(tmp_path / str(processes), processes)
        assert training.fit() == "complete"
        rows = read_metrics(tmp_path / str(processes))
        curves.append([{k: v or 0 for k, v in row.items() if k != "seconds"} for row in rows])
    for one, two in zip(*curves, strict=True):
        # sums in another order, step after step; other data or noise change the first digit
        assert two == pytest.approx(one, rel=1e-3, abs=1e-5)
