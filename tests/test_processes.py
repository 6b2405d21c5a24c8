"Trainings in several processes: equal in all, killed, on two machines, stopped, as good as in one."

import multiprocessing
import os
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from synth_nb.core.files import display_path
from synth_nb.core.seeding import seed_everything
from synth_nb.training.log import read_metrics
from synth_nb.training.loop import Phase, Trainer, TrainingConfig

fresh = multiprocessing.get_context("spawn")  # a fork may wait for threads it does not have


class Noise:
    "Images that change each time, as the trainer takes them; one process may die of them."
    keys = tuple(str(i) for i in range(50))
    x = torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    dies = -1  # at this step

    def __len__(self):
        return 50

    def __getitem__(self, i):
        if self.trainer.position.step == self.dies and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return dict(x=self.x[i] + 0.1 * torch.randn(len(i), 3, 8, 8))


def fake(nets, batch):
    return nets["G"](torch.randn(len(batch["x"]), 8)).view_as(batch["x"])


def loss_d(nets, batch):
    real, synthetic = nets["D"](batch["x"]), nets["D"](fake(nets, batch).detach())
    return F.softplus(-real).mean() + F.softplus(synthetic).mean()


def loss_g(nets, batch):
    return F.softplus(-nets["D"](fake(nets, batch))).mean()


def new_gan(folder: Path, processes: int, nodes: int = 1, dies: int = -1, epochs=6) -> Trainer:
    seed_everything(0)
    G = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 192))
    D = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
                      nn.Linear(576, 1))
    opt_d, opt_g = (torch.optim.Adam(m.parameters(), 1e-3) for m in (D, G))
    phases = [Phase(loss_d, opt_d, "D"), Phase(loss_g, opt_g, "G", every=2)]
    plan = TrainingConfig(epochs, 12, 120, device="cpu", num_processes=processes, num_nodes=nodes)
    data = Noise()
    data.trainer = trainer = Trainer(folder, data, dict(G=G, D=D), phases, plan, dict(G=0.9),
                                     lambda epoch: dict(score=float(torch.rand(()))))
    data.dies = dies
    return trainer


def trained_gan(*args):
    "A whole training, for a process of its own."
    new_gan(*args).fit()


def weights(folder: Path) -> list[torch.Tensor]:
    "Networks and averages of the newest checkpoint."
    state = torch.load(folder / "checkpoints" / "newest.pt", weights_only=True)
    nets = [*state["modules"].values(), *state["averages"].values()]
    return [tensor for net in nets for tensor in net.values()]


def assert_same(one: Path, other: Path):
    "Bit for bit: a sum of two gradients does not depend on their order."
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))
    losses = [[(row["loss_D"], row["loss_G"], row["score"]) for row in read_metrics(folder)]
              for folder in (one, other)]
    assert losses[0] == losses[1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    "A training in two processes that nothing disturbed."
    folder = tmp_path_factory.mktemp("pair")
    new_gan(folder, 2).fit()
    return folder


def test_a_killed_process_ends_the_run_and_it_goes_on_as_if_nothing_had_been(
        tmp_path, pair, capfd):
    message = (r"process 2 of 2 was killed \(SIGKILL\); what was reached is in .*newest.pt; "
               "start again")
    with pytest.raises(RuntimeError, match=message):
        new_gan(tmp_path, 2, 1, 35).fit()
    capfd.readouterr()
    new_gan(tmp_path, 2).fit()
    assert "steps 30 to 60 on cpu, 2 processes" in capfd.readouterr().out
    assert_same(pair, tmp_path)
    assert len(read_metrics(tmp_path)) == 6


def test_two_machines_train_one_model_and_each_keeps_it(tmp_path, pair, monkeypatch):
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
        assert_same(pair, tmp_path / str(n))


def test_one_process_is_as_good_as_two_and_continues_what_they_reached(tmp_path, pair):
    alone = new_gan(tmp_path / "alone", 1)
    alone.fit()
    shutil.copytree(pair, tmp_path / "pair")
    further = new_gan(tmp_path / "pair", 1, epochs=7)
    assert further.position.step == 60
    further.fit()
    rows = [read_metrics(tmp_path / name) for name in ("alone", "pair")]
    losses = [[row["loss_D"] for row in part] for part in rows]
    assert losses[1][:6] != losses[0]  # noise of its own in each process
    # a mean over ten batches of 12; without learning it stays above 1.3
    assert losses[1][5:] == pytest.approx([losses[0][5]] * 2, rel=0.3)


def stopped_gan(*args):
    "A training that is stopped, and its message in a file."
    trainer = new_gan(*args)
    try:
        trainer.fit()
    except KeyboardInterrupt as stop:
        (args[0] / "message").write_text(f"{trainer.position.step}: {stop}")


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
    message = (
        f"stopped at step {step} of 10000, kept in {display_path(tmp_path)}; start again to go on"
    )
    assert (tmp_path / "message").read_text() == f"{step}: {message}"


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
    plan = TrainingConfig(3, 8, 32, device="cpu", precision="fp32", num_processes=processes)

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
    plan = TrainingConfig(3, 8, 16, device="cpu", precision="fp32", num_processes=processes)
    return Trainer(folder, Faces(), dict(G=G, D=D), gan_phases(losses, G, D, 1e-3, (0.0, 0.99)),
                   plan)


def new_conditioned(folder: Path, processes: int) -> Trainer:
    from synth_nb.diffusion.experiment import ConditionedLatents, DiffusionConfig
    from synth_nb.diffusion.latents import Latents, LatentSet

    seed_everything(0)
    latents = Latents(torch.randn(2, 12, 4, 4, 4), torch.rand(2, 12, 4, 4, 4))
    config = DiffusionConfig()
    data = LatentSet(latents, torch.randn(1, 12, 1, 8), [str(i) for i in range(12)])
    unet = config.unet(8, latents)
    phase = Phase(config.loss(), torch.optim.AdamW(unet.parameters(), 1e-3))
    plan = TrainingConfig(2, 4, 4, device="cpu", precision="fp32", num_processes=processes)
    conditioned = ConditionedLatents(data, torch.zeros(1, 1, 8), 0.3)
    return Trainer(folder, conditioned, dict(unet=unet), [phase], plan)


def new_segmenter(folder: Path, processes: int) -> Trainer:
    from synth_nb.segmentation.fit import Pairs, new_training
    from synth_nb.segmentation.networks import ResidualUNet

    seed_everything(0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 1, 32, 32), np.uint8)
    pairs = Pairs(images, (images > 128).astype(np.uint8), 16, "dihedral", True)
    plan = TrainingConfig(2, 4, 12, device="cpu", precision="fp32", num_processes=processes)
    return new_training(folder, pairs, ResidualUNet(1, (4, 8)), plan)


def new_pairs(folder: Path, processes: int):
    from synth_nb.em.training import PairTrainer, PairTrainingConfig

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 1, 16, 16), np.uint8)
    config = PairTrainingConfig("joint", 4, vae_width=8, epochs=2, images_per_epoch=12,
                                batch_size=4, widths=(16, 32), device="cpu",
                                num_processes=processes)
    return PairTrainer(folder, config, images, (images > 128).astype(np.uint8))


def sized(func, *args, size=None, **kwargs):
    "`rand(2, 3)`, `rand((2, 3))`, `rand(size=(2, 3))`: for each image the same numbers."
    size = args if size is None else size
    size = tuple(size[0] if len(size) == 1 and isinstance(size[0], (tuple, list)) else size)
    return func((1, *size[1:]), **kwargs).expand(size).clone() if size else func((), **kwargs)


def ranged(func, *args, size=None, **kwargs):
    *bounds, size = args if size is None else (*args, size)
    return func(*bounds, size=(1, *size[1:]), **kwargs).expand(tuple(size)).clone()


def like(func, x, **kwargs):
    return func(x[:1], **kwargs).expand(x.shape).clone()


def dropped(func, x, p=0.5, training=True, inplace=False):
    return x * func(torch.ones_like(x[:1]), p) if training and p else x


RULES = {torch.rand: sized, torch.randn: sized, torch.randint: ranged, torch.randn_like: like,
         torch.rand_like: like, F.dropout: dropped}


class SameForEachImage(TorchFunctionMode):
    """Noise that is the same for every image of a batch, however many images a process has.

    Then two processes compute what one does, up to rounding, and everything that they exchange
    can be held against it: gradients, batch norms, sums over a batch, averages and counts.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        rule = RULES.get(func)
        return rule(func, *args, **kwargs or {}) if rule else func(*args, **kwargs or {})


every = [new_dcgan, new_style_gan, new_conditioned, new_segmenter, new_pairs]


@pytest.mark.parametrize("new", every, ids=lambda new: new.__name__.removeprefix("new_"))
def test_two_processes_compute_what_one_does_where_noise_is_the_same(tmp_path, new, monkeypatch):
    step = Trainer.training_step

    def same_noise(trainer):
        torch.manual_seed(trainer.position.step)
        with SameForEachImage():
            step(trainer)

    monkeypatch.setattr(Trainer, "training_step", same_noise)
    monkeypatch.setattr("synth_nb.training.loop.seed_step", lambda *a: None)
    curves = []
    for processes in (1, 2):
        training = new(tmp_path / str(processes), processes)
        assert training.fit() == "complete"
        rows = read_metrics(tmp_path / str(processes))
        curves.append([{k: v or 0 for k, v in row.items() if k != "seconds"} for row in rows])
    for one, two in zip(*curves, strict=True):
        # sums in another order, step after step; other data or noise change the first digit
        assert two == pytest.approx(one, rel=1e-3)


def test_all_processes_hold_the_same_networks(tmp_path, monkeypatch):
    close = Trainer.open_progress

    @contextmanager
    def keeping(trainer):
        with close(trainer):
            yield
        state = {name: net.state_dict() for name, net in trainer.modules.items()}
        torch.save(state, tmp_path / f"{trainer.accelerator.process_index}.pt")

    monkeypatch.setattr(Trainer, "open_progress", keeping)
    for new in (new_dcgan, new_style_gan):
        assert new(tmp_path / new.__name__, 2).fit() == "complete"
        first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
        for name, net in first.items():
            for key, value in net.items():
                assert torch.equal(value, second[name][key]), (name, key)
