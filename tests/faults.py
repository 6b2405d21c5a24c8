"""Trainings of every notebook, killed by SIGKILL again and again: each ends bit for bit.

    python tests/faults.py                 # 20 kills of each notebook: what `make test-faults` runs
    python tests/faults.py 05_e2i --kills 50 --seed 1
    python tests/faults.py --papermill --kills 4

A notebook's own cells run with small networks, as far as the model is saved. One run is left alone.
Others are killed at moments drawn at random: after some time, at a step, in the middle of a file,
before and after a renaming, between the two renamings of a folder; in the run and in the cache.
Each goes on from what it finds until it is complete, and then has the tensors, tables and states of
the one that was left alone, and no temporary file. With `--papermill` whole notebooks run by it,
and after some time their kernel is killed, by itself or with papermill. `test_faults.py` has few
kills, and the faults that a training tells of: a full disk, a signal, a batch of NaN, too little
memory.
"""

import argparse
import atexit
import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from unittest.mock import patch

import psutil
import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from notebooks import processes  # noqa: E402 - it lies beside this file

LITE = dict(eval_embedders=["efficientnet_lite2@64"], device="cpu")
CONDITIONED = LITE | dict(image_size="32", unet_size="mini", epochs=2, images_per_epoch=48,
                          batch_size=16, vae_steps=8, n_samples=24, sampling_steps=2, best_of=1,
                          symmetry="none", snapshot_every=1)  # fmt: skip
SMALL = {
    "02_dcgan": LITE | dict(image_size=32, width=4, epochs=4, images_per_epoch=24, batch_size=8,
                            n_samples=24, snapshot_every=2),
    "03_embedding_gan": LITE | dict(image_size=32, width=4, hidden=8, epochs=3, images_per_epoch=24,
                                    batch_size=8, n_samples=24, snapshot_every=2),
    "04_stylegan2": LITE | dict(kimg=0.064, images_per_epoch=16, image_size="32", batch_size=8,
                                n_samples=24, channel_base=256, channel_max=16, z_dim=16,
                                path_weight=2.0, comparison_dataset="", snapshot_every=2),
    "05_t2i": CONDITIONED,
    "05_i2i": CONDITIONED,
    "05_e2i": CONDITIONED | dict(head="tuned"),
    "06_em_ddpm": LITE | dict(sections=48, image_size="64", chunk=64, vae_steps=8, vae_width=8,
                              epochs=3, width=16, images_per_epoch=32, n_samples=16,
                              sampling_steps=2, segmenter_steps=4, snapshot_every=1),
    "06_em_segmentation": dict(sections=48, image_size="64", chunk=64, epochs=4, width=4,
                               images_per_epoch=64, device="cpu", snapshot_every=2),
    "06_em_protocol": dict(sections=64, image_size="64", chunk=32, steps=4, width=4, n_synthetic=8,
                           pair_width=16, vae_steps=4, pair_steps=4, sampling_steps=2, seeds=2,
                           fractions=[0.5], arms="R,S,T", mode="mask_conditioned",
                           device="cpu"),
    "06_em_stacks": LITE | dict(sections=128, vae_steps=8, vae_width=8, latent_channels=4, epochs=3,
                                width=16, images_per_epoch=32, n_stacks=2, sampling_steps=2,
                                snapshot_every=1),
    "07_emnist": LITE | dict(epochs=3, images_per_epoch=64, batch_size=16, n_samples=20,
                             epoch_samples=10, classifier_steps=20, classifier_width=4,
                             sampling_steps=2, snapshot_every=1, n_real_per_class=[],
                             n_draws=1),
}  # fmt: skip
LAST = {"05_t2i": "train_model(experiment", "05_i2i": "train_model(experiment",
        "05_e2i": "train_model(experiment", "06_em_protocol": "run_protocol(run.folder"}
SAVED = 'atomic_folder(run.path("model"))'  # in the last cell of the others
ASIDE = ("ten = open_dataset", "x, late =", "with torch.device", "optimal = ", "scales = {",
         "tissue = open_dataset", "tokens = one[", "captions.items())[:", "curves(")  # fmt: skip


def sources(notebook: str) -> list[str]:
    "Code of a notebook as far as its model is saved, without cells that explain."
    text = (ROOT / "nbs" / f"{notebook}.ipynb").read_text(encoding="utf-8")
    cells = ["".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    last = next(i for i, s in enumerate(cells) if LAST.get(notebook, SAVED) in s)
    return [s for s in cells[: last + 1] if not s.startswith(ASIDE)]


class Moments:
    "Counts what may be interrupted, by name, and lets a fault come at one of them."

    def __init__(self, name: str = "", number: int = 0, fault: str = "kill", log=None):
        self.name, self.number, self.fault, self.log = name, number, fault, log
        self.seen, self.clock = Counter(), time.time

    def is_next(self, name: str) -> bool:
        return (name, self.seen[name] + 1) == (self.name, self.number)

    def pass_by(self, name: str):
        now = self.is_next(name)
        self.seen[name] += 1
        if self.log:
            with open(self.log, "a") as f:
                f.write(f"{name}\n")
        if now and self.fault == "full disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if now:
            number = signal.SIGKILL if self.fault == "kill" else getattr(signal, self.fault)
            os.kill(os.getpid(), number)

    def rename(self, do, source, target):
        # a folder comes into place as `new`, away as `old`
        name = Path(source if Path(source).name == "new" else target).name
        name = re.sub(r"[0-9a-f]{16,}|\d+", "#", name)
        self.pass_by(f"before the renaming of {name}")
        result = do(source, target)
        self.pass_by(f"after the renaming of {name}")
        return result

    def save(self, do, *args, **options):
        result = do(*args, **options)
        file = next(a for a in args if isinstance(a, (str, Path)))
        name = f"in the middle of a {Path(file).suffix} file"
        if self.is_next(name):
            os.truncate(file, os.path.getsize(file) // 2)
        self.pass_by(name)
        return result

    def step(self, do, trainer):
        do(trainer)
        self.pass_by("at a step")

    def batches(self, do, batches, step):
        found = do(batches, step)
        if self.fault == "NaN" and step == self.number:
            for batch, _ in found:
                for name, value in batch.items():
                    if torch.is_tensor(value) and value.is_floating_point():
                        batch[name] = value * torch.nan
        if self.fault == "memory" and step == self.number:
            torch.empty(2**55)
        return found

    def patches(self):
        "Changes of what writes, of the clock, and of the training step."
        import safetensors.torch

        from synth_nb.training.batches import Batches
        from synth_nb.training.loop import Trainer

        def replaced(owner, name, through):
            before = getattr(owner, name)
            return patch.object(owner, name, lambda *a, **k: through(before, *a, **k))

        back = 86_400 * (self.fault == "clock")
        return [replaced(os, "replace", self.rename), replaced(Path, "rename", self.rename),
                replaced(torch, "save", self.save),
                replaced(safetensors.torch, "save_file", self.save),
                replaced(Trainer, "training_step", self.step),
                replaced(Batches, "__call__", self.batches),
                patch("time.time", lambda: self.clock() - back)]  # fmt: skip


def run(notebook: str, values: dict, home: Path, moment: tuple, env: dict, log: Path | None = None):
    "Run a notebook's cells in this process, which is one of its own, and end as a script does."
    os.environ.update(env)
    os.environ.pop("IN_TEST", None)
    out = os.open(home / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(out, number)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        run_cells(notebook, values, Moments(*moment, log=log))
    except BaseException as error:
        sys.last_value = error
        sys.excepthook(type(error), error, error.__traceback__)
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def run_cells(notebook: str, values: dict, moments: Moments):
    space = dict(__name__="notebook")
    injected = "\n".join(f"{k} = {v!r}" for k, v in values.items())
    with ExitStack() as stack:
        for one in (patch("synth_nb.figures.plots.save_figure"),
                    patch("synth_nb.training.loop.Trainer.print_cost"), *moments.patches()):
            stack.enter_context(one)
        for number, source in enumerate(sources(notebook)):
            exec(compile(source, f"{notebook}, cell {number}", "exec"), space)
            if number == 0:
                exec(injected, space)
    opened = space["run"] if "run" in space else space["experiment"].run
    opened.finish()


class Training:
    "A folder with a run of a notebook and a cache of its own."

    def __init__(self, notebook: str, home: Path, values: dict | None = None):
        self.notebook, self.home, self.wrong = notebook, home, []
        self.values = SMALL[notebook] | dict(outputs=str(home / "outputs"), run_name="mine")
        self.values |= values or {}
        self.folder = home / "outputs" / notebook / "mine"
        home.mkdir(parents=True, exist_ok=True)

    def environment(self) -> dict[str, str]:
        return dict(SYNTH_NB_CACHE=str(self.home / "cache"), MPLBACKEND="agg", HF_HUB_OFFLINE="1",
                    SYNTH_NB_PROGRESS="", TMPDIR=str(self.home), OMP_NUM_THREADS="1")

    def start(self, moment: tuple = (), log: Path | None = None):
        "A process that runs the notebook."
        work = self.notebook, self.values, self.home, moment, self.environment(), log
        process = processes().Process(target=run, args=work)
        process.start()
        return process

    def output(self) -> str:
        return (self.home / "output").read_text(errors="replace")

    def finish(self):
        code = self.ends()
        assert code == 0, f"{self.notebook}: {self.output()[-3000:]}"

    def ends(self, moment: tuple = ()) -> int:
        "Exit code of a start."
        process = self.start(moment)
        process.join()
        return process.exitcode

    def status(self) -> str:
        return json.loads((self.folder / "manifest.json").read_text())["status"]

    def leftovers(self) -> list[str]:
        from synth_nb.core.files import TEMPORARY

        return [p.name for p in self.folder.rglob(".*") if TEMPORARY.fullmatch(p.name)]

    def result(self) -> dict[str, str]:
        "Content hash of each file that a run has to end with; of a checkpoint, of its tensors."
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.suffix == ".pt" and path.stem != "previous":
                found[name] = state_digest(path)
            elif path.suffix in (".safetensors", ".npy", ".npz"):
                found[name] = hashlib.sha1(path.read_bytes()).hexdigest()
            elif path.name == "metrics.csv":
                found[name] = json.dumps(without_seconds(path))
            elif "cells" in path.parts and path.suffix == ".json":
                found[name] = path.read_text()
        return found

    def compare(self, wanted: dict[str, str]):
        "With the result of a run that was left alone."
        found = self.result()
        different = [k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k)]
        assert not different, f"{self.notebook}: {different} differ, see {self.home}"
        assert not self.leftovers(), f"{self.notebook}: {self.leftovers()}"


class ByPapermill(Training):
    "A run of a whole notebook by papermill."

    def start(self) -> subprocess.Popen:
        import yaml

        parameters = self.home / "parameters.yaml"
        parameters.write_text(yaml.safe_dump(self.values))
        command = [sys.executable, "-m", "papermill", "--engine", "synth_nb", "--no-progress-bar",
                   f"nbs/{self.notebook}.ipynb", self.home / "out.ipynb", "-f", parameters]
        inherited = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
        with open(self.home / "output", "w") as output:
            return subprocess.Popen(command, cwd=ROOT, env=inherited | self.environment(),
                                    stdout=output, stderr=output)

    def ends(self) -> int:
        return self.start().wait()

    def is_killed(self, seconds: float, kernel_only: bool) -> bool:
        "Start it and kill its kernel after some time, or all of it; whether before its end."
        process = self.start()
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(seconds)
            assert code == 0, f"{self.notebook}: {self.output()[-3000:]}"
            return False
        parts = psutil.Process(process.pid).children(recursive=True)
        if not kernel_only:
            process.kill()
        for one in parts:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        code = process.wait()  # 138: papermill's for a kernel that died
        assert code in (0, 138, -signal.SIGKILL), f"{self.notebook}: {self.output()[-3000:]}"
        return code != 0


def papermill_kills(notebook: str, home: Path, kills: int, seed: int) -> tuple[Counter, int, int]:
    "Kill runs of a notebook by papermill, each until it ends; kills, runs, files compared."
    rng, alone = random.Random(f"{notebook}{seed}"), ByPapermill(notebook, home / "alone")
    started = time.monotonic()
    alone.finish()
    seconds, wanted = time.monotonic() - started, alone.result()
    count, runs = Counter(), 0
    while count.total() < kills:
        training = ByPapermill(notebook, home / f"killed {runs}")
        while count.total() < kills:
            kernel_only = rng.random() < 0.5
            if not training.is_killed(rng.uniform(0.2, 0.8) * seconds, kernel_only):
                break
            count["kernel alone" if kernel_only else "papermill and kernel"] += 1
        training.finish()
        training.compare(wanted)
        shutil.rmtree(training.home)
        runs += 1
    return count, runs, len(wanted)


def state_digest(path: Path) -> str:
    "Content hash of all that a checkpoint holds, apart from the time it took."
    h = hashlib.sha1()

    def add(value):
        if isinstance(value, torch.Tensor):
            h.update(f"{value.dtype}{tuple(value.shape)}".encode())
            h.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
                     if value.numel() else b"")
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                if key != "seconds":
                    h.update(str(key).encode())
                    add(value[key])
        elif isinstance(value, (list, tuple)):
            for one in value:
                add(one)
        else:
            h.update(repr(value).encode())

    add(torch.load(path, map_location="cpu", weights_only=True))
    return h.hexdigest()


def without_seconds(path: Path) -> list[dict]:
    import csv

    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


class Victims:
    "Runs of one notebook that are killed, beside one that is left alone."

    def __init__(self, notebook: str, home: Path, seed: int = 0):
        self.notebook, self.home, self.random = notebook, home, random.Random(f"{notebook}{seed}")
        self.alone = Training(notebook, home / "alone")
        started, log = time.monotonic(), home / "moments"
        process = self.alone.start(log=log)
        process.join()
        assert process.exitcode == 0, f"{notebook}: {self.alone.output()[-3000:]}"
        self.seconds = time.monotonic() - started
        self.wanted = self.alone.result()
        self.moments = Counter(log.read_text().splitlines())
        for name in list(self.moments):  # what `next` copies
            if "#.npy" in name or "#.npz" in name or "#.json" in name:
                del self.moments[name]
        self.kills, self.count, self.ended = Counter(), 0, 0

    def next(self) -> Training:
        "Another run; images are decoded and embedded, since nothing in that can be half done."
        self.count += 1
        training = Training(self.notebook, self.home / f"killed {self.count}")
        for name in ("images", "embeddings"):
            there = self.alone.home / "cache" / name
            if there.is_dir():
                shutil.copytree(there, training.home / "cache" / name)
        return training

    def kill(self, training: Training, left: list[str]) -> bool:
        "Start a run and kill it at a moment; whether that came before its end."
        if left and self.random.random() < 0.75:  # every kind of moment in turn
            name = left.pop()
            number = self.random.randint(1, max(self.moments[name] // 3, 1))
            code = training.ends((name, number))
        else:
            name = "after some time"
            process = training.start()
            process.join(self.random.uniform(0.2, 0.9) * self.seconds)
            process.kill()
            process.join()
            code = process.exitcode
        assert code in (0, -signal.SIGKILL), f"{self.notebook}, {name}: {training.output()[-3000:]}"
        self.kills[name] += code != 0
        return code != 0

    def check(self, training: Training):
        "Let a run end, kill it while its model is exchanged for itself, and compare both times."
        started = time.monotonic()
        training.finish()
        self.seconds = min(self.seconds, time.monotonic() - started)
        training.compare(self.wanted)
        if (training.folder / "model").is_dir():
            name = "between two renamings of model"
            self.kills[name] += training.ends(("after the renaming of old", 1)) == -signal.SIGKILL
            assert self.kills[name] and not (training.folder / "model").exists()
            training.finish()
            training.compare(self.wanted)
        shutil.rmtree(training.home)
        self.ended += 1

    def spend(self, kills: int, each: int = 5):
        "Kill runs, `each` times one, and compare each of them."
        left = []
        while self.kills.total() < kills:
            training = self.next()
            for _ in range(each):
                if not left:
                    left = list(self.moments)
                    self.random.shuffle(left)
                if not self.kill(training, left) or self.kills.total() >= kills:
                    break
            self.check(training)


def main():
    words = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words.add_argument("notebooks", nargs="*", help=f"of {', '.join(SMALL)}; none: all")
    words.add_argument("--kills", type=int, default=20, help="of each notebook")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--papermill", action="store_true", help="whole notebooks, by papermill")
    args = words.parse_args()
    print("| notebook | kills | runs | files compared | s | moments |", flush=True)
    print("|" + " --- |" * 6, flush=True)
    for notebook in args.notebooks or SMALL:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as home:
            if args.papermill:
                kills, runs, files = papermill_kills(notebook, Path(home), args.kills, args.seed)
            else:
                victims = Victims(notebook, Path(home), args.seed)
                victims.spend(args.kills)
                kills, runs, files = victims.kills, victims.ended, len(victims.wanted)
        moments = ", ".join(f"{name} {n}" for name, n in sorted(kills.items()) if n)
        row = (notebook, kills.total(), runs, files, round(time.monotonic() - started), moments)
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
