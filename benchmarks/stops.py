"""How long a training takes to stop: every notebook by papermill, its offline profile, SIGTERM.

Each notebook is stopped in each part of its training (autoencoder, classifier, steps, evaluation
after an epoch), and the next start goes on from there to the next part. Networks, images and
evaluations are those of the offline profile; epochs are short and batches small, so that a core
comes to an evaluation; for that 05 has 64 pixels in place of 256. Seconds from the signal to the
checkpoint and to the end of papermill, and those of the processor that the kernel spent on it,
beside those of one step.
Run: OMP_NUM_THREADS=1 python benchmarks/stops.py [NOTEBOOK …] [--signal SIGTERM]
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from common import machine

from synth_nb.core.progress import read_feed

ROOT = Path(__file__).parent.parent
QUICK = dict(device="cpu", compile="off", run_name="mine")
CASES = {  # notebook → what is smaller than in its offline profile; parts in which it is stopped
    "02_dcgan": (dict(batch_size=32, images_per_epoch=160), ("training", "evaluation")),
    "03_embedding_gan": (dict(batch_size=32, images_per_epoch=96), ("training", "evaluation")),
    "04_stylegan2": (dict(batch_size=16, images_per_epoch=64, comparison_dataset=""),
                     ("training", "evaluation")),
    "05_e2i": (dict(batch_size=2, images_per_epoch=8, vae_steps=60, image_size=64,
                    symmetry="none"), ("autoencoder", "training", "evaluation")),
    "06_em_ddpm": (dict(batch_size=8, images_per_epoch=64, vae_steps=40),
                   ("autoencoder", "training", "evaluation")),
    "06_em_segmentation": (dict(batch_size=8, images_per_epoch=64), ("training", "evaluation")),
    "07_emnist": (dict(batch_size=32, images_per_epoch=320),
                  ("classifier", "training", "evaluation")),
}  # fmt: skip


def start(notebook: str, home: Path, values: dict) -> subprocess.Popen:
    "papermill on a notebook, with a cache, an output folder and temporary files of its own."
    parameters = home / "parameters.yaml"
    profile = ROOT / "nbs/params" / f"{notebook}.offline.yaml"
    parameters.write_text(profile.read_text() + "\n")
    command = [sys.executable, "-m", "papermill", "--engine", "synth_nb",
               str(ROOT / "nbs" / f"{notebook}.ipynb"), str(home / "out.ipynb"), "-f",
               str(parameters), "--no-progress-bar"]
    for name, value in (QUICK | values | dict(outputs=str(home / "outputs"))).items():
        command += ["-p", name, str(value)]
    without = ("IN_TEST", "SYNTH_NB_PROGRESS", "PYTEST_CURRENT_TEST")
    env = {k: v for k, v in os.environ.items() if k not in without} | dict(
        SYNTH_NB_CACHE=str(home / "cache"), TMPDIR=str(home), MPLBACKEND="agg", HF_HUB_OFFLINE="1")
    return subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True,
                            start_new_session=True)


def line_of(home: Path) -> str:
    "What the kernel says that it does."
    feeds = sorted(home.glob("kernel-*/feed.json"), key=os.path.getmtime)
    return " · ".join(map(str, read_feed(feeds[-1])["line"])) if feeds else ""


def is_in(part: str, line: str, steps: int) -> bool:
    "Whether a line of progress is that of a part; `steps` of the training are an epoch."
    found = re.search(r"(\d+)/(\d+)", line)
    if part in ("training", "evaluation"):
        word = re.match(r"(training|pairs|StyleGAN2|segmenter)", line)
        step = int(found[1]) if word and found else 0
        return step > 0 and (step % steps == 0) == (part == "evaluation")
    return part in line and bool(found) and int(found[1]) > 0


def newest_checkpoint(home: Path) -> float:
    "When a checkpoint was last written."
    times = [p.stat().st_mtime for p in home.rglob("newest.pt")]
    return max(times, default=0.0)


def stopped(notebook: str, home: Path, values: dict, part: str, number: int) -> dict:
    "Start a notebook, stop it in a part, and see what that took."
    process = start(notebook, home, values)
    steps = values["images_per_epoch"] // values["batch_size"]
    while not is_in(part, line := line_of(home), steps):
        if process.poll() is not None:
            raise SystemExit(f"{notebook} ended before `{part}`: {process.stderr.read()[-2000:]}")
        time.sleep(0.05)
    time.sleep(0.5)
    [kernel] = psutil.Process(process.pid).children()
    spent, began, used = kernel.cpu_times(), time.time(), 0.0
    process.send_signal(number)
    while process.poll() is None:
        try:
            now = kernel.cpu_times()
            used = now.user + now.system - spent.user - spent.system
        except psutil.Error:
            pass
        time.sleep(0.02)
    ended = time.time() - began
    manifest = next((home / "outputs").rglob("manifest.json"))
    lines = process.stderr.read().strip().splitlines()
    return dict(notebook=notebook, part=part, line=line, checkpoint=newest_checkpoint(home) - began,
                end=ended, cpu=used, status=json.loads(manifest.read_text())["status"],
                code=process.returncode, message=lines[-1] if lines else "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", help=f"of {', '.join(CASES)}; none: all")
    parser.add_argument("--signal", default="SIGTERM", help="or SIGINT, SIGHUP")
    chosen = parser.parse_args()
    print(machine(), "\n")
    print("| notebook | stopped in | checkpoint, s | papermill's end, s | CPU, s | status |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for notebook in chosen.notebooks or CASES:
        values, parts = CASES[notebook]
        with tempfile.TemporaryDirectory() as home:
            for part in parts:
                row = stopped(notebook, Path(home), values, part, getattr(signal, chosen.signal))
                print(f"| {notebook} | {part} (`{row['line']}`) | {row['checkpoint']:.1f} | "
                      f"{row['end']:.1f} | {row['cpu']:.1f} | {row['status']}, {row['code']} |",
                      row["message"], flush=True)
