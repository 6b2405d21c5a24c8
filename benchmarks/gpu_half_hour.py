"""Half an hour of a GPU, in pieces of at most ten minutes that go on where they stopped.

1. Figures: StyleGAN2 at 128, 256 and 512 px in s/kimg; the share of the measured bf16 speed in a
   training step of the small and of the sd15 UNet; images sampled in a second.
2. The `offline` profile of `05_e2i` at 256 px: trained, sampled, and evaluated as far as the
   evaluation embedders are installed.
3. StyleGAN2 at 256 px on the same tissue.

A figure is written when it is measured, a training continues from its checkpoint, so a second
start loses nothing. `--out` gets at most eight files of 16 MB: `figures.md`, and of both trainings
the manifest, the log and a sheet of samples. `--tiny` runs all of it in small, for a test.
Run: sh benchmarks/gpu_half_hour.sh
"""

import argparse
import ast
import json
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from common import machine
from stylegan2_gpu import line, ready

from synth_nb.core.devices import pick_device, pick_precision
from synth_nb.core.files import atomic_write
from synth_nb.core.seeding import seed_everything
from synth_nb.figures.plots import save_figure, sheet
from synth_nb.training.loop import Trainer, TrainingConfig

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "outputs" / "cache" / "gpu_half_hour"
FILES, SIZE = 8, 16_000_000


def parameters(notebook: str, **changes) -> dict:
    "A story's parameters with their defaults, changed."
    cells = json.loads((ROOT / f"nbs/{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    source = next("".join(c["source"]) for c in cells
                  if "parameters" in c["metadata"].get("tags", []))
    lines = [node for node in ast.parse(source).body if isinstance(node, ast.AnnAssign)]
    values = {node.target.id: ast.literal_eval(node.value) for node in lines}
    if unknown := changes.keys() - values.keys():
        raise SystemExit(f"{notebook} has no parameter {sorted(unknown)[0]}")
    return values | changes


# figures


def matmul_speed(device: torch.device, side: int) -> float:
    "Operations a second of a product of matrices in bf16, the best of several."
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        for _ in range(4):
            a @ b
        ready(device)
        seconds.append((time.perf_counter() - start) / 4)
    return 2 * side**3 / min(seconds)


def unet_trainer(size: str, batch: int, side: int, args, compile: str) -> Trainer:
    "The training of a UNet on latents of a size, with 77 tokens of 768 numbers."
    from synth_nb.diffusion import LatentSet
    from synth_nb.diffusion.experiment import DiffusionConfig

    latents, tokens = torch.randn(1, 2 * batch, 4, side, side), torch.randn(1, 2 * batch, 77, 768)
    data = LatentSet(latents, tokens, [str(i) for i in range(2 * batch)])
    config = DiffusionConfig(size, dropout=0.0)
    unet = config.unet(768, latents)
    plan = TrainingConfig(1, batch, batch * 1000, device=args.device, compile=compile)
    folder = args.home / "speed"
    shutil.rmtree(folder, ignore_errors=True)
    phase = config.phase(unet, 1000)
    return Trainer(folder, data, dict(unet=unet), [phase], plan, dict(unet=0.995))


def unet_speed(size: str, batch: int, side: int, args) -> dict:
    "Seconds of a step, and its share of what a matrix product reaches here."
    from torch.utils.flop_counter import FlopCounterMode

    seed_everything(0)
    trainer = unet_trainer(size, batch, side, args, "off")  # a compiled step cannot be counted
    with FlopCounterMode(display=False) as counter:
        trainer.backward(trainer.phases[0], trainer.batches(0))
    trainer.close()
    trainer = unet_trainer(size, batch, side, args, args.compile)
    for _ in range(args.warm):
        trainer.training_step()
    ready(trainer.device)
    start = time.perf_counter()
    for _ in range(args.steps):
        trainer.training_step()
    ready(trainer.device)
    seconds = (time.perf_counter() - start) / args.steps
    trainer.close()
    speed = matmul_speed(trainer.device, 256 if args.tiny else 8192)
    share = counter.get_total_flops() / seconds / speed
    return {"training step": f"UNet {size}, {8 * side} px, batch {batch}",
            "s": f"{seconds:.3f}", "images/s": f"{batch / seconds:.1f}",
            "share of a bf16 matrix product": f"{share:.1%} of {speed / 1e12:.1f} Tflop/s"}


def sampling_speed(name: str, n: int, sample) -> dict:
    "Images in a second, the second time."
    for _ in range(2):
        start = time.perf_counter()
        sample(n)
        seconds = time.perf_counter() - start
    return {"sampling": name, "images": str(n), "images/s": f"{n / seconds:.2f}"}


def stylegan2_speed(size: int, args) -> dict:
    words = dict(batch=4 if args.tiny else 0, memory=24, steps=2 if args.tiny else 64,
                 warm=1 if args.tiny else 16, device=args.device, precision="auto",
                 channel_max=16 if args.tiny else 0)
    heads = ["pixels", "batch", "microbatches", "s/kimg", "published, A100", "estimate, GiB",
             "peak, GiB"]
    cells = line(size, SimpleNamespace(**words)).strip("| ").split(" | ")
    return {"StyleGAN2": "training"} | dict(zip(heads, cells, strict=True))


def figures(args) -> dict:
    "Name → what measures it."
    sizes = (16, 32) if args.tiny else (128, 256, 512)
    found = {f"stylegan2 {n}": lambda n=n: stylegan2_speed(n, args) for n in sizes}
    small, large = ((2, 8), ()) if args.tiny else ((128, 32), (32, 32))
    found["unet small"] = lambda: unet_speed("mini" if args.tiny else "small", *small, args)
    if large:
        found["unet sd15"] = lambda: unet_speed("sd15", *large, args)
    return found


def measure(store: dict, args):
    "Every figure that is not there yet, as long as there is time."
    for name, one in figures(args).items():
        if name in store["figures"] or left(args) < args.reserve:
            continue
        start = time.monotonic()
        try:
            store["figures"][name] = one()
        except (RuntimeError, MemoryError, ImportError) as error:  # the others are still measured
            text = " ".join(str(error).split())[:200]
            store["figures"][name] = {"failed": name, "why": f"{type(error).__name__}: {text}"}
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
        write(store, args)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def left(args) -> float:
    "Minutes that are left of this piece."
    return args.minutes - (time.monotonic() - args.began) / 60


# trainings


def train_e2i(store: dict, args):
    "The `offline` profile, from data to samples."
    import yaml

    from synth_nb.diffusion import conditioned as story
    from synth_nb.diffusion.conditions import image_conditions
    from synth_nb.diffusion.experiment import ExperimentData

    file = ROOT / "nbs/params/05_e2i.offline.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    values |= dict(outputs=str(args.home / "runs"), run_name="offline", device=args.device)
    values |= dict(eval_embedders=installed(values["eval_embedders"]))
    if args.tiny:
        values |= dict(epochs=1, images_per_epoch=8, batch_size=4, image_size=64, vae_steps=4,
                       n_samples=24, sampling_steps=2, best_of=1, unet_size="mini", vae_width=16,
                       embedder="efficientnet_lite0@32", components=4, symmetry="none",
                       eval_embedders=["efficientnet_lite0@32"], condition_noise=0.0)
    p = parameters("05_e2i", **values | dict(image_size=str(values["image_size"])))
    p["max_minutes"] = max(left(args) - args.reserve, 0.1)
    experiment = story.open_experiment("05_e2i", p)
    vae, restored = story.open_vae(experiment)
    conditions = image_conditions(experiment.train, experiment.held_out, experiment.embedder,
                                  p["head"], p["components"], experiment.symmetry)
    data = ExperimentData(experiment.train, experiment.held_out, vae, *conditions)
    status = story.train_model(experiment, data)
    generator = story.load_generator(experiment)
    if status == "complete" and left(args) > args.reserve / 2:
        options = dict(guidance_scale=p["guidance_scale"], sampling_steps=p["sampling_steps"],
                       best_of=1)
        n = min(24, len(data.held_out))
        some = story.select_conditions(data.conditions, list(range(n)))
        speed = sampling_speed(f"05_e2i, {p['image_size']} px, {p['sampling_steps']} steps", n,
                               lambda n: generator.sample_for(some, 0, **options))
        store["figures"]["sampling e2i"] = speed
        sets = story.sample_sets(experiment, data, generator) | {"reconstructions": restored}
        story.comparison_pictures(experiment, sets["synthetic"])
        story.training_pictures(experiment)
        if experiment.eval_embedders:
            story.evaluate(experiment, sets)
    story.finish(experiment, status)
    keep(store, "e2i", experiment.run, ["synthetic.png", "evaluation.json"], status)


def installed(embedders: list[str]) -> list[str]:
    "Those of the embedders whose weights are here."
    from synth_nb.embedders import load_embedder

    found = []
    for name in embedders:
        try:
            load_embedder(name, "cpu")
            found.append(name)
        except (ImportError, OSError, ValueError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def train_stylegan2(store: dict, args):
    "StyleGAN2 on the demo's tissue, by `auto`, for as long as there is time."
    from synth_nb.core.runs import open_run
    from synth_nb.data import Views, open_dataset
    from synth_nb.stylegan2 import choose_settings, extra_modules, new_networks, new_phases
    from synth_nb.stylegan2.config import ema_decay
    from synth_nb.stylegan2.model import StyleToImage

    size, tick = (16, 8) if args.tiny else (256, 4000)
    narrow = dict(channel_max=16, z_dim=16, w_dim=16) if args.tiny else {}
    fp16 = pick_precision("auto", pick_device(args.device)) == "fp16"  # as in the story
    clamp = {} if fp16 else dict(clamp=None)
    settings = choose_settings("auto", size, 4 if args.tiny else 32, kimg=1000, **narrow, **clamp)
    data = open_dataset("demo", image_size=size, channels=3, seed=0)
    p = parameters("04_stylegan2", dataset="demo", image_size=str(size), channels=3, kimg=1000.0,
                   images_per_epoch=tick, batch_size=settings.batch_size, lr=0.0, gamma=-1.0,
                   channel_base=0, channel_max=narrow.get("channel_max", 0), path_weight=2.0,
                   z_dim=narrow.get("z_dim", 0), symmetry="dihedral", run_name="256",
                   outputs=str(args.home / "runs"), device=args.device)
    run = open_run("04_stylegan2", p, data.describe(), "synth_nb.stylegan2.model:load")
    seed_everything(0)
    G, D = new_networks(settings)
    plan = TrainingConfig(1 if args.tiny else 10**6 // tick, settings.batch_size, tick,
                          device=args.device, compile=args.compile,
                          max_minutes=max(left(args) - args.reserve, 0.1))
    trainer = Trainer(run.folder, Views(data.train, "dihedral"),
                      dict(generator=G, discriminator=D, **extra_modules(settings)),
                      new_phases(settings, G.parameters(), D.parameters()), plan,
                      dict(generator=lambda n: ema_decay(settings, n * settings.batch_size)),
                      what="StyleGAN2")
    status = trainer.fit()
    model = StyleToImage(trainer.model("generator"))
    figure = sheet(model.sample(48, 0, truncation=0.7).images, columns=12)
    save_figure(figure, run.path("synthetic.png"))
    speed = sampling_speed(f"StyleGAN2, {size} px", 8 if args.tiny else 256, model.sample)
    store["figures"]["sampling stylegan2"] = speed
    run.finish(status, images=trainer.position.step * settings.batch_size)
    keep(store, "stylegan2", run, ["synthetic.png"], status)


def keep(store: dict, name: str, run, files: list[str], status: str):
    "Note what a run is to leave."
    wanted = [run.folder / f for f in ("manifest.json", "metrics.csv", *files)]
    store["runs"][name] = dict(status=status, files=[str(f) for f in wanted if f.is_file()])


# what is left


def write(store: dict, args):
    "The store, and all that goes into `--out`."
    with atomic_write(args.store) as f:
        f.write_text(json.dumps(store, indent=1))
    args.out.mkdir(parents=True, exist_ok=True)
    text = f"{store['machine']}\n" + "".join(map(table, grouped(store["figures"].values())))
    (args.out / "figures.md").write_text(text, encoding="utf-8")
    files = [(name, Path(f)) for name, run in store["runs"].items() for f in run["files"]]
    for name, path in files[: FILES - 1]:
        if path.stat().st_size <= SIZE:
            shutil.copyfile(path, args.out / f"{name}_{path.name}")


def grouped(rows) -> list[list[dict]]:
    "Rows by their columns, in order."
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(row)
    return list(groups.values())


def table(rows: list[dict]) -> str:
    "A Markdown table."
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main():
    words = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words.add_argument("--out", type=Path, default=HOME / "out")
    words.add_argument("--home", type=Path, default=HOME, help="where it goes on")
    words.add_argument("--minutes", type=float, default=9, help="of this piece")
    words.add_argument("--reserve", type=float, default=1, help="minutes kept for its end")
    words.add_argument("--device", default="auto")
    words.add_argument("--compile", default="auto")
    words.add_argument("--steps", type=int, default=30)
    words.add_argument("--warm", type=int, default=6)
    words.add_argument("--tiny", action="store_true", help="all of it in small")
    args = words.parse_args()
    args.began, args.out = time.monotonic(), args.out.resolve()
    args.home = args.home.resolve() / "tiny" if args.tiny else args.home.resolve()
    if args.tiny:
        args.steps, args.warm, args.reserve, args.device = 2, 1, 0.1, "cpu"
    args.home.mkdir(parents=True, exist_ok=True)
    args.store = args.home / "store.json"
    store = dict(figures={}, runs={}, machine=machine())
    if args.store.is_file():
        store = json.loads(args.store.read_text())
    pick_device(args.device)
    measure(store, args)
    for name, train in (("e2i", train_e2i), ("stylegan2", train_stylegan2)):
        done = store["runs"].get(name, {}).get("status") == "complete"
        if not done and left(args) > 2 * args.reserve:
            train(store, args)
            write(store, args)
    write(store, args)
    print(f"{len(store['figures'])} figures, " + ", ".join(
        f"{name} {run['status']}" for name, run in store["runs"].items()), flush=True)


if __name__ == "__main__":
    main()
