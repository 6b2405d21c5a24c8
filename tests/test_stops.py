"""Trainings that are stopped in every way: a checkpoint within one step, `stopped`, one sentence.

Each is a real notebook whose steps last longer than ipykernel waits for a parent that is gone.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import torch
import yaml
from torch import nn

from synth_nb.training.checkpoints import read_checkpoint
from synth_nb.training.log import read_metrics
from synth_nb.training.loop import Phase, Trainer, TrainingConfig

ROOT = Path(__file__).parent.parent
STEP = 2  # seconds
CELLS = [
    "outputs: str = ''\nlr: float = 0.1\nepochs: int = 50\nseed: int = 0",
    """
import os, time
from pathlib import Path
import torch
from synth_nb.core.parameters import check_parameters
parameters = check_parameters(globals())
""",
    """
from synth_nb.core.runs import open_run
from synth_nb.training.loop import Phase, Trainer, TrainingConfig

class Data:
    def __len__(self): return 8
    def __getitem__(self, rows): return dict(x=torch.ones(len(rows), 1), key=list(map(str, rows)))

def loss(nets, batch):
    if run.path("measured").exists():  # the trainer measures two steps first
        run.path("training").write_text(str(os.getpid()))
        time.sleep(STEP)
    return nets["net"](batch["x"]).square().mean()

run = open_run("stops", parameters | dict(run_name="mine"), dict(fingerprint="a"))
net = torch.nn.Linear(1, 1)
phase = Phase(loss, torch.optim.SGD(net.parameters(), lr))
trainer = Trainer(run.folder, Data(), dict(net=net), [phase], TrainingConfig(epochs, 8))
trainer.print_cost = lambda: run.path("measured").touch()
trainer.fit()
run.finish()
""".replace("STEP", str(STEP)),
]


def environment() -> dict:
    "That of a person who starts a program."
    without = ("IN_TEST", "SYNTH_NB_PROGRESS", "PYTEST_CURRENT_TEST")
    env = {k: v for k, v in os.environ.items() if k not in without}
    return env | dict(PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")])))


def write_notebook(path: Path) -> Path:
    "The notebook above."
    nb = nbformat.v4.new_notebook()
    nb.metadata.kernelspec = dict(name="python3", display_name="python3", language="python")
    nb.cells = [nbformat.v4.new_code_cell(text) for text in CELLS]
    nb.cells[0].metadata.tags = ["parameters"]
    nbformat.write(nb, path)
    return path


HEARS_HANGUPS = """import runpy, signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
runpy.run_module("papermill", run_name="__main__", alter_sys=True)
"""


def papermill(folder: Path, *words) -> subprocess.Popen:
    "papermill on the notebook above, in a session of its own."
    source = write_notebook(folder / "a.ipynb")
    command = [sys.executable, "-c", HEARS_HANGUPS, source, folder / "out.ipynb", *words]
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True,
                            env=environment(), start_new_session=True)


def wait_for(what, seconds: float):
    "Wait until a function returns something true, and return that."
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def manifest(run: Path) -> dict:
    return json.loads((run / "manifest.json").read_text(encoding="utf-8"))


WAYS = [("default", "SIGTERM"), ("default", "SIGHUP"), ("default", "SIGKILL"),
        ("nbclient", "all SIGTERM")]  # fmt: skip


@pytest.mark.parametrize("engine, number", WAYS)
def test_a_training_stores_what_it_reached(tmp_path, engine, number):
    words = [] if engine == "default" else ["--engine", engine]
    process, run = papermill(tmp_path, "-p", "outputs", tmp_path, *words), tmp_path / "stops/mine"
    mark = run / "training"
    kernel = int(wait_for(lambda: mark.exists() and mark.read_text(), 180))
    wanted = getattr(signal, number.split()[-1])
    began = time.time()
    process.send_signal(wanted)
    if number.startswith("all"):  # as Slurm does
        os.kill(kernel, wanted)
    errors = process.communicate(timeout=180)[1]
    wait_for(lambda: not psutil.pid_exists(kernel), 180)
    newest = run / "checkpoints/newest.pt"
    assert newest.stat().st_mtime - began < STEP + 30  # 5 on a machine with nothing else to do
    assert manifest(run)["status"] == "stopped"
    assert torch.load(newest, weights_only=True)["position"]["step"] >= 1
    if engine == "default" and number != "SIGKILL":
        assert process.returncode == 128 + wanted and "Traceback" not in errors
        last = errors.strip().splitlines()[-1]
        assert re.match(r"Stopped at step \d of 50, kept in ", last), last


def test_a_parameter_s_name_is_never_run(tmp_path):
    ran, file = tmp_path / "ran", tmp_path / "parameters.yaml"
    hostile = f"seed = 0; open({str(ran)!r}, 'w'); lr"
    file.write_text(yaml.safe_dump({hostile: 1e-3, "outputs": str(tmp_path)}))
    process = papermill(tmp_path, "-f", file)
    errors = process.communicate(timeout=180)[1]
    assert process.returncode and not ran.exists() and not (tmp_path / "stops").exists()
    assert "no parameter `seed = 0; open(" in errors.strip().splitlines()[-1]
    process = papermill(tmp_path, "-f", file, "--engine", "nbclient")  # comes too late, and says so
    errors = process.communicate(timeout=180)[1]
    assert process.returncode and ran.exists() and not (tmp_path / "stops").exists()
    assert "what was given as a parameter is code, and ran: open(" in errors


class Rows:
    "Numbers, as a data set of batches."

    def __len__(self):
        return 24

    def __getitem__(self, rows):
        return dict(x=torch.tensor(rows)[:, None] / 24, key=list(map(str, rows)))


def small_training(folder: Path, stops=(), **options) -> Trainer:
    "A training that gets a signal in the middle of the evaluations after these epochs."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    phase = Phase(lambda nets, batch: (nets["net"](batch["x"]) - 1).square().mean(),
                  torch.optim.Adam(net.parameters(), 0.01))
    stops = list(stops)

    def evaluate(epoch):
        torch.rand(epoch)
        if epoch in stops:
            stops.remove(epoch)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return dict(score=float(torch.rand(())))

    config = TrainingConfig(**dict(epochs=3, batch_size=8, device="cpu", best="score") | options)
    return Trainer(folder, Rows(), dict(net=net), [phase], config, dict(net=0.9), evaluate,
                   lambda at: torch.save(net.state_dict(), at / "net.pt"))


def stop_in_evaluation(folder: Path, epoch: int, **options):
    began, trainer = time.monotonic(), small_training(folder, [epoch], **options)
    with pytest.raises(KeyboardInterrupt, match=f"stopped at step {3 * epoch} of "):
        trainer.fit()
    assert time.monotonic() - began < 40 and trainer.modules["net"].training
    assert read_checkpoint(folder / "checkpoints/newest.pt")["position"]["due"]
    assert len(read_metrics(folder)) == epoch - 1


def assert_same_end(one: Trainer, other: Trainer):
    for name, value in one.state()["averages"]["net"].items():
        assert torch.equal(value, other.state()["averages"]["net"][name]), name
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(t.folder)]
            for t in (one, other)]
    assert rows[0] == rows[1] and one.position.best == other.position.best


@pytest.mark.parametrize("options", [dict(), dict(patience=2, epochs=9)], ids=["plain", "patience"])
def test_an_evaluation_is_broken_off_and_made_by_the_next_start(tmp_path, options):
    alone = small_training(tmp_path / "alone", **options)
    assert alone.fit() == "complete"
    stopped = tmp_path / "stopped"
    for epoch in range(1, alone.position.step // 3 + 1):
        stop_in_evaluation(stopped, epoch, **options)
    ended = small_training(stopped, **options)
    assert not ended.finished and ended.fit() == "complete"
    assert_same_end(alone, ended)
    again = small_training(stopped, **options)  # a complete one is left alone
    assert again.finished and again.fit() == "complete"


def test_an_evaluation_that_was_due_is_logged_once(tmp_path):
    "The process dies after the row was written, and before the checkpoint."
    alone = small_training(tmp_path / "alone", snapshot_every=1)
    alone.fit()
    stop_in_evaluation(tmp_path / "stopped", 2, snapshot_every=1)
    dying = small_training(tmp_path / "stopped", snapshot_every=1)
    dying.save_snapshot = lambda epoch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        dying.fit()
    assert len(read_metrics(tmp_path / "stopped")) == 2
    ended = small_training(tmp_path / "stopped", snapshot_every=1)
    assert ended.fit() == "complete"
    assert_same_end(alone, ended)
    assert len(list((tmp_path / "stopped/checkpoints").glob("epoch_*/net.pt"))) == 3
