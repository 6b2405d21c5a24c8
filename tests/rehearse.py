"""Rehearse profiles on the CPU: their notebooks, with every network at its true configuration.

    python tests/rehearse.py                     # all profiles of all notebooks; hours
    python tests/rehearse.py 05_e2i.reported 07_emnist
    python tests/rehearse.py --small 02_dcgan.reported

A rehearsal runs the notebook's own cells with the profile's parameters, made short: two training
steps on a few images. What comes from elsewhere is made up in its true form (`stand_ins.py`), so
the code that loads it is the real one. The first start is interrupted after its first step, as by
a person; the second one goes on from that checkpoint, samples and evaluates. `--small` takes narrow
networks, to see in seconds that nothing is missing.

For each profile a line says what it took: weights that are trained, memory, a checkpoint, and the
time on a GPU. That time is an estimate: the operations of a step, counted by PyTorch, at a share
of an A100's speed in bfloat16.
"""

import argparse
import ast
import contextlib
import ctypes
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
PEAK, SHARE = 312e12, 0.3  # operations a second of an A100 in bfloat16, and what is assumed of it
LIMIT = 20 * 2**30  # bytes
PROFILES = ("offline", "recommended", "reported")
IMAGES = {  # that an epoch has where a profile says all of them
    "emnist:byclass": 353_625,  # labels 10 to 61
    "em:data/epfl/training.tif": 12 * 165,  # of 256 pixels, without overlap
    "em:data/epfl/volumedata.tif": 12 * 1065,
    "data/brain-cancer-mri-dataset": 2048,
}

BATCH = {"04_stylegan2": 4, "02_dcgan": 4, "03_embedding_gan": 4}  # of others: 2
CONDITIONED = dict(n_samples=24, sampling_steps=2, best_of=1, vae_steps=4, symmetry="none")
SHORT = {  # what makes a rehearsal short, and changes no network
    "02_dcgan": dict(n_samples=12, tiles_per_slide=6),
    "03_embedding_gan": dict(n_samples=12, tiles_per_slide=6),
    "04_stylegan2": dict(n_samples=12, kimg=0.008, projection_steps=1, comparison_dataset=""),
    "05_t2i": CONDITIONED,
    "05_i2i": CONDITIONED,
    "05_e2i": CONDITIONED,
    "06_em_ddpm": dict(vae_steps=4, vae_epochs=2, vae_batch_size=2, accumulate=1, n_samples=12,
                       sampling_steps=2, segmenter_steps=2, sections=48, stride=0),
    "06_em_segmentation": dict(sections=32),
    "06_em_stacks": dict(vae_steps=4, n_stacks=2, sampling_steps=2, overlap_steps=2, depth=2,
                         stack_sections=8, sections=128, stride=0, gap=0, test_fraction=0.34),
    "06_em_protocol": dict(vae_steps=4, pair_steps=2, steps=2, n_synthetic=4, sampling_steps=2,
                           arms="R,S,P,F", pretrain_steps=2, fractions=[1.0], seeds=2,
                           sections=32),
    "07_emnist": dict(n_samples=52, epoch_samples=52, sampling_steps=2, classifier_steps=60,
                      n_draws=1, n_real_per_class=[]),
}  # fmt: skip
QUICK = dict(eval_embedders=["efficientnet_lite2@64"])
NARROW = {  # what makes it small
    "02_dcgan": dict(width=4, **QUICK),
    "03_embedding_gan": dict(width=4, hidden=8, **QUICK),
    "04_stylegan2": dict(channel_base=1024, channel_max=16, z_dim=16, image_size="128", **QUICK),
    "05_t2i": dict(image_size="64", **QUICK),
    "05_i2i": dict(image_size="64", **QUICK),
    "05_e2i": dict(image_size="64", **QUICK),
    "06_em_ddpm": dict(width=16, vae_width=8, downsample=4, chunk=64, **QUICK),
    "06_em_segmentation": dict(width=4, downsample=4, chunk=64),
    "06_em_protocol": dict(width=4, pair_width=16, vae_width=8, downsample=4),
    "06_em_stacks": dict(width=16, vae_width=8, downsample=4, chunk=64, **QUICK),
    "07_emnist": dict(classifier_width=4, n_samples=12, epoch_samples=10),
}
LARGE = dict(optimizer="adafactor", checkpointing=True, accumulate=2)  # of 860 million weights


def declared(cells: list[dict]) -> dict:
    "Parameters of a notebook with their defaults."
    source = next("".join(c["source"]) for c in cells
                  if "parameters" in c["metadata"].get("tags", []))
    lines = [node for node in ast.parse(source).body if isinstance(node, ast.AnnAssign)]
    return {node.target.id: ast.literal_eval(node.value) for node in lines}


def parameters(notebook: str, profile: str, small: bool, home: Path, defaults: dict) -> dict:
    "A profile's values, those of a short run instead where they say how long it is."
    import yaml

    file = ROOT / "nbs" / "params" / f"{notebook}.{profile}.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    batch = BATCH.get(notebook, 2)
    short = dict(device="cpu", seed=0, outputs=str(home / "outputs"), max_minutes=0, epochs=1,
                 run_name=f"{profile}{'-small' * small}", snapshot_every=0, batch_size=batch,
                 images_per_epoch=2 * batch)
    short |= SHORT[notebook] | (NARROW[notebook] if small else {})
    if values.get("unet_size") == "sd15" or values.get("pretrained"):
        short |= LARGE
    if values.get("autoencoder") or values.get("pretrained"):
        short.pop("vae_steps", None)  # none is trained
    if not str(values.get("dataset", "")).startswith("wsi:"):
        short.pop("tiles_per_slide", None)
    if "batch" in values:  # the original's words
        short |= dict(batch=short.pop("batch_size"), seeds="1-2")
        short.pop("snapshot_every")
        values.pop("snap", None), values.pop("mirror", None)
    own = {k: v for k, v in short.items() if k in defaults or k == "batch"}
    for name in ("data", "dataset", "masks"):
        if name in values:
            own[name] = data(values[name], home, small)
    return values | own


def data(name: str, home: Path, small: bool) -> str:
    "The made-up data set that stands for a data set's name; the name of what needs none."
    import stand_ins

    kind, _, rest = name.partition(":")
    if kind == "hub":
        stand_ins.hub_data(home / "huggingface", rest, dict(train=12, test=24))
    elif kind == "wsi":
        stand_ins.slides(home / rest)
        return f"wsi:{home / rest}"
    elif kind == "em" or name.endswith(".tif"):
        path = home / name.removeprefix("em:")
        stand_ins.volume(path, 6 if small else 12, 2 if "volumedata" in name else 1)
        return f"{'em:' if kind == 'em' else ''}{path}"
    elif kind == "emnist":
        stand_ins.letters(home / "cache" / "downloads" / "EMNIST" / "raw", 12)
    elif "/" in name:
        stand_ins.heads(home / name, 160)
        return str(home / name)
    return name


def networks(values: dict, defaults: dict, home: Path, small: bool):
    "Lay down what a profile loads by name."
    import stand_ins

    all_values = defaults | values
    names = [all_values.get(k, "") for k in ("autoencoder", "pretrained", "text_encoder")]
    embedders = [all_values.get("embedder", ""), *all_values.get("eval_embedders", [])]
    names += [name.removeprefix("hf:") for name in embedders if name.startswith("hf:")]
    names += ["google/path-foundation"] if "path-foundation" in embedders else []
    for name in filter(None, names):
        stand_ins.hub_network(home / "huggingface", name, small)
    if "inception" in embedders:
        stand_ins.inception(home / "torch")


def environment(home: Path):
    "Caches of this rehearsal alone, and no network; before anything reads them."
    os.environ.pop("IN_TEST", None)
    os.environ.update(
        HF_HOME=str(home / "huggingface"), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1",
        TORCH_HOME=str(home / "torch"), SYNTH_NB_CACHE=str(home / "cache"), MPLBACKEND="agg",
        TF_CPP_MIN_LOG_LEVEL="3", HF_HUB_DISABLE_PROGRESS_BARS="1",
        TRANSFORMERS_VERBOSITY="error")  # fmt: skip


@contextlib.contextmanager
def operations():
    "Count floating-point operations; without PyTorch's table by module, which refuses R1."
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Unwatched()
    with counter:
        yield counter


class Unwatched(contextlib.nullcontext):
    "In place of the modules that are watched."
    parents = frozenset({"Global"})


class Watch:
    "What a rehearsal notes of the trainings: weights, operations, checkpoints, an interruption."

    def __init__(self):
        self.weights, self.operations, self.images = Counter(), {}, {}
        self.steps, self.checkpoint, self.interrupted, self.resumed = Counter(), 0, False, False
        self.name = ""  # of the training that is interrupted

    def main(self, trainer) -> bool:
        "Whether this is the training that is interrupted: the run's own, or its first of pairs."
        return trainer.what == "pairs" or (trainer.folder / "manifest.json").is_file()

    def patches(self):
        "Changes of the trainer that count and interrupt."
        from synth_nb.emnist.classifier import compare_samplers
        from synth_nb.training.loop import Trainer

        watch, step, save = self, Trainer.training_step, Trainer.save_checkpoint
        tried, back = Trainer.step_seconds, Trainer.backward

        def training_step(trainer):
            if watch.main(trainer):
                watch.resumed |= watch.interrupted and trainer.position.step == 1
            step(trainer)
            watch.steps[trainer.what] += 1
            if watch.main(trainer) and not watch.interrupted:
                watch.interrupted, watch.name = True, trainer.what
                os.kill(os.getpid(), signal.SIGINT)

        def backward(trainer, phase, microbatches):
            if not trainer.__dict__.get("counts"):
                return back(trainer, phase, microbatches)
            with operations() as counter:
                found = back(trainer, phase, microbatches)
            key = trainer.what, phase.name
            watch.operations[key] = counter.get_total_flops() / phase.every
            return found

        def save_checkpoint(trainer, best=False):
            save(trainer, best)
            newest = trainer.folder / "checkpoints" / "newest.pt"
            if watch.main(trainer):
                watch.checkpoint = newest.stat().st_size

        def step_seconds(trainer):
            trained = {p for phase in trainer.phases for p in phase.parameters}
            watch.weights[trainer.what] = sum(p.numel() for p in trained)
            watch.images[trainer.what] = trainer.config.batch_size
            trainer.counts = True
            seconds = tried(trainer)
            trainer.counts = False
            return seconds

        def two_samplers(letters, classifier, configs, n, seed):
            return compare_samplers(letters, classifier, configs[:2], 10, seed)

        return (patch("synth_nb.emnist.classifier.compare_samplers", two_samplers),
                patch.object(Trainer, "training_step", training_step),
                patch.object(Trainer, "backward", backward),
                patch.object(Trainer, "step_seconds", step_seconds),
                patch.object(Trainer, "save_checkpoint", save_checkpoint),
                patch("synth_nb.embedders.inception.check_file"))


def run_cells(notebook: str, cells: list[dict], values: dict) -> dict:
    "Run a notebook's cells as papermill does; returns its namespace."
    from matplotlib import pyplot as plt

    injected = "# Parameters\n" + "\n".join(f"{k} = {v!r}" for k, v in values.items())
    space = dict(__name__="notebook", In=[injected])
    for number, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        exec(compile("".join(cell["source"]), f"{notebook}, cell {number}", "exec"), space)
        if "parameters" in cell["metadata"].get("tags", []):
            exec(injected, space)
        plt.close("all")
    return space


def narrow(small: bool):
    "Patches that make the large layouts narrow."
    from synth_nb.diffusion.model import UNET_LAYOUTS
    from synth_nb.emnist.model import NETWORKS

    if not small:
        return ()
    sd15 = UNET_LAYOUTS["sd15"] | dict(widths=(32, 32, 64, 64), layers=1)
    documented = NETWORKS["documented"] | dict(widths=(64,) * 6, layers=1)
    return (patch.dict(UNET_LAYOUTS, sd15=sd15, small=sd15 | dict(attends=(True,) * 3 + (False,))),
            patch.dict(NETWORKS, documented=documented, middle=NETWORKS["small"]))


def forget():
    "Give memory back that nobody holds, as the end of a process would."
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps the room of smaller tensors
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def rehearse(name: str, home: Path, small: bool) -> dict:
    "Run a profile in this process, interrupted once; returns what it took."
    import torch

    from synth_nb.training.memory import peak_bytes, reset_peak

    notebook, profile = name.split(".")
    cells = json.loads((ROOT / "nbs" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    defaults = declared(cells)
    values = parameters(notebook, profile, small, home, defaults)
    networks(values, defaults, home, small)
    shutil.rmtree(home / "outputs" / notebook / values["run_name"], ignore_errors=True)
    forget()
    reset_peak(torch.device("cpu"))
    watch, start, text = Watch(), time.monotonic(), io.StringIO()
    with contextlib.ExitStack() as stack:
        for one in (*watch.patches(), *narrow(small)):
            stack.enter_context(one)
        stack.enter_context(contextlib.redirect_stdout(text))
        with contextlib.suppress(KeyboardInterrupt):
            run_cells(notebook, cells, values)
        forget()
        space = run_cells(notebook, cells, values)
    run = space["run"] if "run" in space else space["experiment"].run
    manifest = json.loads((run.folder / "manifest.json").read_text())
    evaluation = [p.name for p in run.folder.glob("evaluation.*")]
    evaluation += [p.name for p in run.folder.glob("protocol*")]
    found = dict(
        name=name, seconds=time.monotonic() - start, memory=peak_bytes(torch.device("cpu")),
        weights=dict(watch.weights), steps=dict(watch.steps), interrupted=watch.interrupted,
        resumed=watch.resumed, checkpoint=watch.checkpoint,
        evaluated=evaluation, status=manifest["status"], folder=str(run.folder),
        gpu=gpu_seconds(notebook, profile, defaults, watch))  # fmt: skip
    return found


def gpu_seconds(notebook: str, profile: str, defaults: dict, watch: Watch) -> dict:
    "Seconds of a thousand images, and of the training where its length is known, by estimate."
    import yaml

    file = ROOT / "nbs" / "params" / f"{notebook}.{profile}.yaml"
    values = defaults | yaml.safe_load(file.read_text(encoding="utf-8"))
    main = watch.name
    each = sum(n for (what, _), n in watch.operations.items() if what == main)
    thousand = 1000 * each / watch.images[main] / (PEAK * SHARE)
    images = values.get("images_per_epoch", 0) or IMAGES.get(values.get("dataset"), 0)
    images *= values.get("epochs", 0)
    images = 1000 * values["kimg"] if "kimg" in values else images
    return dict(thousand=thousand, all=thousand * images / 1000 if images else None)


def line(found: dict) -> str:
    "A row of the table."
    weights = " + ".join(f"{n / 1e6:.1f}" for n in found["weights"].values())
    gpu = found["gpu"]
    everything = f"{gpu['all'] / 3600:.1f} h" if gpu.get("all") else "–"
    thousand = f"{gpu['thousand']:.1f} s" if gpu else "–"
    cells = [found["name"], weights, f"{found['memory'] / 2**30:.1f}",
             f"{found['checkpoint'] / 1e6:.0f}", thousand, everything, f"{found['seconds']:.0f}"]
    return f"| {' | '.join(cells)} |"


HEAD = """| profile | million weights | memory, GiB | checkpoint, MB | GPU, 1000 images \
| GPU, all | here, s |
| --- | --- | --- | --- | --- | --- | --- |"""


def problems(found: dict) -> list[str]:
    "What a rehearsal lacks."
    wrong = {"is not complete": found["status"] != "complete",
             "was not interrupted": not found["interrupted"],
             "did not go on from its checkpoint": not found["resumed"],
             "was not evaluated": not found["evaluated"],
             "wrote no checkpoint": not found["checkpoint"],
             f"took more than {LIMIT / 2**30:.0f} GiB": found["memory"] > LIMIT}
    return [what for what, is_so in wrong.items() if is_so]


def names(words: list[str]) -> list[str]:
    "Profiles by name, `05_e2i.reported` or all of `05_e2i`; none: all that train."
    every = [f"{notebook}.{profile}" for notebook in SHORT for profile in PROFILES]
    chosen = [name for name in every
              if not words or name in words or name.split(".")[0] in words]
    if unknown := [w for w in words if not any(w in (n, n.split(".")[0]) for n in every)]:
        sys.exit(f"no profile {unknown[0]}; there are {', '.join(every)}")
    return chosen


def main():
    words = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words.add_argument("profiles", nargs="*", help="05_e2i.reported, or a notebook; none: all")
    words.add_argument("--small", action="store_true", help="narrow networks, for a test")
    words.add_argument("--home", type=Path, default=ROOT / "outputs" / "cache" / "rehearsal")
    words.add_argument("--here", action="store_true", help="in this process, a line of JSON each")
    args = words.parse_args()
    home = args.home.resolve() / ("small" if args.small else "true")
    if args.here:
        environment(home)
        for name in names(args.profiles):
            print(json.dumps(rehearse(name, home, args.small)), flush=True)
        return
    print(HEAD, flush=True)
    failed = []
    for name in names(args.profiles):  # each in a process of its own, whose memory is its own
        command = [sys.executable, __file__, name, "--here", "--home", str(args.home)]
        command += ["--small"] * args.small
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
        if found:
            print(line(found), flush=True)
        wrong = problems(found) if found else ["failed"]
        failed += [f"{name} {what}" for what in wrong]
        if not wrong:  # checkpoints of Stable Diffusion's size
            shutil.rmtree(found["folder"])
    sys.exit("\n".join(failed) or None)


if __name__ == "__main__":
    main()
