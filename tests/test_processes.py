"Trainings in several processes: killed, on two machines, and in a notebook's kernel."

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

PROGRAM = """
import os, signal, sys, torch
from pathlib import Path
from torch import nn
from synth_nb.runs import seed_everything
from synth_nb.training import Phase, Plan, Trainer

folder, processes, nodes, dies = Path(sys.argv[1]), *map(int, sys.argv[2:5])

class Noise:
    keys = [str(i) for i in range(50)]
    x = torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    def __len__(self): return 50
    def __getitem__(self, i):
        if trainer.at.step == dies and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return dict(x=self.x[i] + 0.1 * torch.randn(len(i), 3, 8, 8))

def fake(nets, batch): return nets["G"](torch.randn(len(batch["x"]), 8)).view_as(batch["x"])
def loss_d(nets, batch):
    soft, made = nn.functional.softplus, fake(nets, batch).detach()
    return soft(-nets["D"](batch["x"])).mean() + soft(nets["D"](made)).mean()
def loss_g(nets, batch): return nn.functional.softplus(-nets["D"](fake(nets, batch))).mean()

seed_everything(0)
G = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 192))
D = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(576, 1))
opt_d, opt_g = (torch.optim.Adam(m.parameters(), 1e-3) for m in (D, G))
phases = [Phase(loss_d, opt_d, "D"), Phase(loss_g, opt_g, "G", every=2)]
plan = Plan(6, 12, 120, device="cpu", num_processes=processes, num_nodes=nodes)
trainer = Trainer(folder, Noise(), dict(G=G, D=D), phases, plan, dict(G=0.9),
                  lambda epoch: dict(score=float(torch.rand(()))))
trainer.fit()
torch.save({k: m.state_dict() for k, m in trainer.modules.items()}, folder / "end.pt")
"""


def start(folder: Path, processes: int, nodes: int = 1, dies: int = -1, **env) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, program, folder, *(str(n) for n in (processes, nodes, dies))]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, env=os.environ | env, **pipes)


def finished(process: subprocess.Popen) -> str:
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


def largest_difference(one: Path, other: Path) -> float:
    ends = [torch.load(folder / "end.pt", weights_only=True) for folder in (one, other)]
    values = [[t for net in end.values() for t in net.values()] for end in ends]
    return max((a - b).abs().max().item() for a, b in zip(*values, strict=True))


def test_a_killed_process_ends_the_run_and_it_goes_on_as_if_nothing_had_been(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finished(start(whole, 1))
    process = start(killed, 2, dies=35)
    output = process.communicate(timeout=300)[0]
    assert process.returncode != 0
    last = output.strip().splitlines()[-1]
    assert "process 2 of 2 was killed (SIGKILL); what was reached is in" in last
    assert last.endswith("newest.pt; start again to go on")
    assert "steps 30 to 60 on cpu, 2 processes" in finished(start(killed, 2))
    assert largest_difference(whole, killed) < 1e-5
    rows = [(folder / "metrics.csv").read_text().splitlines() for folder in (whole, killed)]
    assert len(rows[0]) == len(rows[1]) == 7


def test_two_machines_train_one_model_and_each_keeps_it(tmp_path):
    alone, machines = tmp_path / "alone", [tmp_path / "first", tmp_path / "second"]
    finished(start(alone, 1))
    address = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(29000 + os.getpid() % 900))
    both = [start(place, 1, 2, NODE_RANK=str(n), **address) for n, place in enumerate(machines)]
    for process in both:
        finished(process)
    for place in machines:
        assert largest_difference(alone, place) < 1e-5


def test_a_stop_from_outside_leaves_a_checkpoint(tmp_path):
    process = start(tmp_path / "run", 2)
    while "processes" not in process.stdout.readline():
        pass
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    reached = torch.load(tmp_path / "run" / "checkpoints" / "newest.pt", weights_only=True)
    assert 0 < reached["position"]["step"] <= 60
