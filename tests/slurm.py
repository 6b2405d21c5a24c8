"""Notebooks as jobs of a real Slurm: cancelled, requeued, two at once, and a small report.

`make test-slurm` runs it. It starts a Slurm of one node of its own in a temporary folder, as root,
from Debian's `slurm-wlm` and `munge`; nothing of a cluster that may be here is touched. Without
these programs, or without snakemake-executor-plugin-slurm, it is skipped and says why.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
import pytest
from test_stops import environment, manifest, wait_for, write_notebook

ROOT = Path(__file__).parent.parent
PROGRAMS = ["munged", "slurmctld", "slurmd", "sbatch"]
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=20
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory={memory} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def programs(folder: Path, *commands: list):
    "Start programs one after another, their words in files; end them in the other order."
    started = []
    try:
        for command in commands:
            with open(folder / f"{command[0]}.log", "w") as log:
                started.append(subprocess.Popen(list(map(str, command)), stdout=log, stderr=log))
            time.sleep(1)
        yield
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    "A folder, while a Slurm of one node runs in it; $SLURM_CONF names it."
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed: apt-get install slurm-wlm munge")
    if os.geteuid():
        pytest.skip("a Slurm of one's own needs root")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    memory = psutil.virtual_memory().total * 9 // 10 // 2**20
    (folder / "slurm.conf").write_text(CONF.format(
        folder=folder, host=socket.gethostname().split(".")[0], memory=memory,
        controller=free_port(), node=free_port()))
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
    munged += [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "seed")]
    conf, shim = folder / "slurm.conf", folder / "bin/srun"
    shim.parent.mkdir()  # the plugin takes $SLURM_CONF away from what it starts by `srun`
    shim.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {shutil.which("srun")} "$@"\n')
    shim.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        patch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
        daemons = [[name, "-D", "-f", conf] for name in ("slurmctld", "slurmd")]
        with programs(folder, munged, *daemons):
            wait_for(lambda: "idle" in output("sinfo", "-h", "-o", "%T"), 60)
            yield folder
            subprocess.run(["scancel", "--user=root"])
            wait_for(lambda: not output("squeue", "-h"), 60)


def output(*words) -> str:
    "What a program writes."
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    return done.stdout.strip()


def guide_script() -> str:
    "The batch script of the guide."
    page = (ROOT / "nbs/guides/how_slurm.md").read_text(encoding="utf-8")
    return re.search(r"```sh\n(#!/bin/sh\n.+?)```", page, re.DOTALL).group(1)


def job_state(job: str) -> str:
    return output("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")


def completes(job: str) -> bool:
    "Whether a job is complete; one that was requeued need not wait its two minutes."
    state = job_state(job)
    if state == "PENDING":
        hurry(job)
    return state == "COMPLETED"


@cache
def hurry(job: str):
    "Let a requeued job start in some seconds; at once, Slurm would find its credential revoked."
    output("scontrol", "update", f"jobid={job}", "StartTime=now+5")


def submitted(folder: Path, name: str) -> tuple[str, Path]:  # number of the job, its run folder
    "The guide's script on the notebook of `test_stops.py`, as a job whose training has begun."
    home = folder / name
    home.mkdir(exist_ok=True)
    write_notebook(home / "a.ipynb")
    command = f"{sys.executable} -m papermill a.ipynb out.ipynb -p outputs {home} -p epochs 5"
    text = re.sub(r"\.venv/bin/papermill(?:.*\\\n)*.*?(?= &$)", command, guide_script(), flags=re.M)
    text = text.replace("--gres=gpu:1 ", "")
    assert command in text and "--signal=B:USR1@" in text
    (home / "job.sh").write_text(text)
    (run := home / "stops/mine").mkdir(parents=True, exist_ok=True)
    (run / "training").unlink(missing_ok=True)
    done = subprocess.run(["sbatch", "--parsable", "job.sh"], cwd=home, capture_output=True,
                          text=True, env=environment())
    wait_for(lambda: (run / "training").exists(), 120)
    return done.stdout.strip(), run


def test_a_requeued_job_goes_on(slurm):
    job, run = submitted(slurm, "requeued")
    subprocess.run(["scontrol", "requeue", job], check=True)  # as for a node that is needed
    wait_for(lambda: manifest(run)["status"] == "stopped", 60)
    wait_for(lambda: completes(job), 180)
    assert manifest(run)["status"] == "complete" and len(manifest(run)["starts"]) == 2


def test_a_job_whose_time_ends_requeues_itself(slurm):
    job, run = submitted(slurm, "time")
    # what `--signal=B:USR1@…` sends, without the wait
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    wait_for(lambda: manifest(run)["status"] == "stopped", 60)
    wait_for(lambda: completes(job), 180)
    assert manifest(run)["status"] == "complete" and len(manifest(run)["starts"]) == 2


def test_a_cancelled_job_goes_on_when_it_is_submitted_again(slurm):
    job, run = submitted(slurm, "cancelled")
    subprocess.run(["scancel", job], check=True)
    wait_for(lambda: job_state(job) == "CANCELLED", 60)
    assert manifest(run)["status"] == "stopped"
    job, run = submitted(slurm, "cancelled")
    wait_for(lambda: completes(job), 180)
    assert manifest(run)["status"] == "complete" and len(manifest(run)["starts"]) == 2


SMALL = {  # notebook → parameters that make it last a minute
    "02_dcgan": dict(dataset="demo", image_size=32, epochs=1, images_per_epoch=64, width=4,
                     batch_size=16, n_samples=12),
    "06_em_segmentation": dict(sections=24, epochs=1, images_per_epoch=16, width=4),
}


def test_a_report_of_two_jobs_at_once(slurm, tmp_path):
    pytest.importorskip("snakemake_executor_plugin_slurm",
                        reason="pip install snakemake-executor-plugin-slurm")
    for name in ("nbs", "synth_nb"):
        shutil.copytree(ROOT / name, tmp_path / name,
                        ignore=shutil.ignore_patterns("__pycache__", "params"))
    for name in ("settings.ini", "Snakefile"):
        shutil.copy(ROOT / name, tmp_path)
    for notebook, parameters in SMALL.items():
        file = tmp_path / "nbs/params" / f"{notebook}.smoke.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(parameters))
    (tmp_path / "snakemake").mkdir()
    (tmp_path / "snakemake/config.yaml").write_text("slurm-init-seconds-before-status-checks: 5\n")
    env = environment() | dict(SNAKEMAKE_PROFILE=str(tmp_path / "snakemake"))
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
    process = subprocess.Popen([sys.executable, "-m", "synth_nb.tools.grid", "report", "smoke", "2",
                                "slurm"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    together = 0
    while process.poll() is None:
        together = max(together, output("squeue", "-h", "-t", "R").count("\n") + 1)
        time.sleep(0.5)
    assert process.returncode == 0, (tmp_path / "outputs/report/smoke/snakemake.log").read_text()
    assert together == 2
    page = (tmp_path / "outputs/report/smoke/index.html").read_text(encoding="utf-8")
    assert all(notebook in page for notebook in SMALL)
    assert "outputs/report/smoke/index.html" in process.stdout.read()
