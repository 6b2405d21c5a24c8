"A training that is killed with SIGKILL again and again ends with the same weights."

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

PROGRAM = """
import sys, torch
from torch import nn
from synth_nb.core.seeding import seed_everything
from synth_nb.training.loop import Phase, Trainer, TrainingConfig
from synth_nb.training.schedules import warmup

class Noise:
    keys = [str(i) for i in range(50)]
    x = torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    def __len__(self): return 50
    def __getitem__(self, i): return dict(x=self.x[i])

def fake(nets, batch): return nets["G"](torch.randn(len(batch["x"]), 8)).view_as(batch["x"])
def loss_d(nets, batch):
    soft, made = nn.functional.softplus, fake(nets, batch).detach()
    return soft(-nets["D"](batch["x"])).mean() + soft(nets["D"](made)).mean()
def loss_g(nets, batch): return nn.functional.softplus(-nets["D"](fake(nets, batch))).mean()

seed_everything(0)
G = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 192))
D = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(576, 1))
opt_d, opt_g = (torch.optim.Adam(m.parameters(), 1e-3) for m in (D, G))
phases = [Phase(loss_d, opt_d, "D"), Phase(loss_g, opt_g, "G", every=2, scheduler=warmup(opt_g, 9))]
config = TrainingConfig(epochs=30, batch_size=12, images_per_epoch=120, device="cpu", best="score",
                        checkpoint_minutes=0.0005)
evaluate = lambda epoch: dict(score=float(torch.rand(())))
trainer = Trainer(sys.argv[1], Noise(), dict(G=G, D=D), phases, config, dict(G=0.9), evaluate)
print("ready", flush=True)
trainer.fit()
torch.save([trainer.state()["modules"], trainer.state()["averages"]], sys.argv[1] + "/end.pt")
"""


def start(folder: Path) -> subprocess.Popen:
    program = folder.parent / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def tensors(folder: Path) -> list[torch.Tensor]:
    groups = torch.load(folder / "end.pt", weights_only=True)
    return [t for group in groups for net in group.values() for t in net.values()]


def test_killed_at_random_moments_ends_bit_for_bit(tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert start(alone).wait() == 0
    moments, kills = random.Random(0), 0
    for _ in range(4):
        process = start(killed)
        for line in process.stdout:
            if line.startswith("ready"):
                break
        time.sleep(moments.uniform(0.05, 0.6))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2, "the training was over before it could be killed"
    process = start(killed)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert all(torch.equal(a, b) for a, b in zip(tensors(alone), tensors(killed), strict=True))
    rows = [line.split(",")[0] for line in (killed / "metrics.csv").read_text().splitlines()[1:]]
    assert rows == [str(10 * n) for n in range(1, 31)]
    assert len(list(killed.glob("events.*"))) == 1


def test_sigterm_writes_a_checkpoint_and_stops(tmp_path):
    process = start(tmp_path / "run")
    while not process.stdout.readline().startswith("ready"):
        pass
    time.sleep(0.3)
    process.terminate()
    output = process.communicate()[0]
    assert "KeyboardInterrupt: stopped at step" in output
    assert (tmp_path / "run" / "checkpoints" / "newest.pt").exists()


def test_a_run_folder_belongs_to_one_process(tmp_path):
    code = """
import sys
from synth_nb.core.runs import open_run
parameters = dict(outputs=sys.argv[1], run_name="mine")
run = open_run("none", parameters, dict(fingerprint="a"), "synth_nb.core.runs:none")
print(run.manifest["status"], flush=True)
sys.stdin.readline()
"""
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    options = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    first = subprocess.Popen(command, **options)
    assert first.stdout.readline() == "running\n"
    second = subprocess.run(command, input="\n", capture_output=True, text=True, env=env)
    assert "another process is writing" in second.stderr
    first.communicate("\n")
    manifest = (tmp_path / "none" / "mine" / "manifest.json").read_text()
    assert '"status": "failed"' in manifest  # it ended without `finish`
    third = subprocess.run(command, input="\n", capture_output=True, text=True, env=env)
    assert third.stdout == "running\n"
