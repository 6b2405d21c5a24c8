"What a run leaves alone: a finished manifest, the GPU, random streams outside."

import json
import os
import subprocess
import sys

import numpy as np
import torch

from synth_nb.core.devices import pick_precision
from synth_nb.core.fingerprint import code_version
from synth_nb.core.runs import open_run
from synth_nb.core.seeding import derive_seed, fork_rng, random_state, set_random_state
from synth_nb.training.processes import check_launch


def test_a_seed_out_of_an_array_is_the_same_seed():
    assert derive_seed(np.int64(7), np.int32(1)) == derive_seed(7, 1) != derive_seed(8, 1)


def test_a_cell_run_twice_does_not_undo_the_end_of_its_run(tmp_path):
    code = """
import sys
from synth_nb.core.runs import open_run
opened = [open_run("none", dict(outputs=sys.argv[1], run_name="mine"), dict(fingerprint="a"))
          for _ in range(2)]
if "finish" in sys.argv:
    opened[1].finish(step=3)
"""
    outside = {k: v for k, v in os.environ.items() if k != "IN_TEST"}

    def status(*words):
        command = [sys.executable, "-c", code, str(tmp_path), *words]
        subprocess.run(command, env=outside, check=True)
        manifest = json.loads((tmp_path / "none" / "mine" / "manifest.json").read_text())
        return manifest["status"], manifest.get("step")

    assert status("finish") == ("complete", 3)
    assert status()[0] == "failed"


def untouchable(monkeypatch):
    "Two GPUs that must not be used yet."
    def begin(*_):
        raise AssertionError("this begins with the GPU")

    for name in ("torch.cuda._lazy_init", "torch.cuda.random._lazy_init"):
        monkeypatch.setattr(name, begin)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)


def test_what_comes_before_several_processes_leaves_the_gpus_alone(tmp_path, monkeypatch):
    untouchable(monkeypatch)
    states = dict(outputs=str(tmp_path), run_name="two", device="auto", num_processes=2)
    run = open_run("none", states, dict(fingerprint="a"))
    run.finish()
    assert run.manifest["environment"]["device"] == "cuda"
    assert pick_precision("auto", "cuda", num_processes=2) == "auto"
    with fork_rng(1):
        torch.rand(1)
    check_launch(2)


def test_every_process_goes_on_with_the_numbers_of_its_own_gpu(monkeypatch):
    states = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_rng_state", states.append)
    monkeypatch.setattr("torch.cuda.manual_seed", states.append)
    own, never_used = torch.zeros(1), torch.ones(1)
    set_random_state(random_state() | dict(cuda=[own, never_used]))
    torch.manual_seed(11)
    set_random_state(random_state() | dict(cuda=[]))  # of a run that had no GPU
    assert states[0] is own and states[1] == 11


def test_a_run_of_another_machine_goes_on_here():
    state, drawn = random_state(), torch.rand(1)
    set_random_state(state | dict(cuda=[torch.zeros(16)], mps=[torch.zeros(16)]))
    assert torch.rand(1) == drawn


def test_the_commit_of_another_project_is_not_taken_for_ours(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    (written := tmp_path / "notebooks").mkdir()
    (written / "settings.ini").write_text("[DEFAULT]\nlib_name = synth_nb\n")
    git("init")
    git("add", "-A")
    monkeypatch.chdir(written)
    assert code_version() == {}
    git("commit", "-m", "notebooks of a wheel, in somebody's repository")
    assert code_version() == {}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = synth_nb\n")
    assert len(code_version()["commit"]) == 40


def test_a_word_that_looks_like_a_path_stays_a_word(tmp_path):
    words = dict(outputs=str(tmp_path), word="~5 cells", prompt="a/" + "b" * 300)
    run = open_run("none", words, dict(fingerprint="a"))
    there = run.manifest["parameters"]
    assert (there["word"], there["prompt"]) == (words["word"], words["prompt"])
