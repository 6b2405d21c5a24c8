"""Text, image and tissue embedding as the condition, all else equal, over several seeds.

What the notebooks 05_t2i, 05_i2i and 05_e2i do, without their pictures: short runs, all nine in a
good hour of one core, or with `--profile` the parameters of a profile's files, on a GPU too. The
run folders are read by 05_comparison. A run that is complete is left alone, a stopped one goes on,
and is judged at its end. Run:
python benchmarks/three_conditions.py --dataset <folder> [--captions <file>] [--epochs 2]
python benchmarks/three_conditions.py --dataset <folder> --profile offline --device cuda --seeds 0
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from common import machine

from synth_nb.core.devices import pick_precision
from synth_nb.core.files import atomic_folder
from synth_nb.core.runs import load_model, open_run, read_manifest
from synth_nb.data import open_dataset, to_uint8
from synth_nb.diffusion import decode_all, encode_all
from synth_nb.diffusion.captions import open_captions
from synth_nb.diffusion.conditions import image_conditions
from synth_nb.diffusion.experiment import (
    Recipe,
    Study,
    halves,
    nearest_draws,
    new_trainer,
    open_autoencoder,
    save,
)
from synth_nb.diffusion.fidelity import judge_experiment, open_judges
from synth_nb.diffusion.text import text_conditions
from synth_nb.embedders import load_embedder
from synth_nb.figures.plots import save_figure, sheet
from synth_nb.training.loop import TrainingConfig

COMMON = dict(
    image_size="64",
    channels=3,
    epochs=2,
    images_per_epoch=6400,
    batch_size=16,
    lr=1e-3,
    vae_steps=2400,
    vae_cell=4,
    vae_width=16,
    unet_size="tiny",
    objective="v",
    sampler="dpm++",
    symmetry="dihedral",
    condition_noise=0.1,
    dropout=0.1,
    guidance_scale=5.0,
    sampling_steps=12,
    candidates=4,
    components=64,
    embedder="efficientnet_lite0",
    max_minutes=0,
    judges=["efficientnet_lite2", "efficientnet_lite1"],
)
OWN = dict(t2i={}, i2i=dict(head="components"), e2i=dict(head="tuned"))


def parameters_of(room: str, seed: int, args: argparse.Namespace) -> dict:
    "What a run's manifest says: the short run's values, those of a profile, and those asked for."
    given = COMMON | OWN[room]
    if args.profile:
        file = Path(__file__).parent.parent / f"nbs/params/05_{room}.{args.profile}.yaml"
        given |= yaml.safe_load(file.read_text(encoding="utf-8"))
    given |= dict(dataset=args.dataset, seed=seed, device=args.device, precision=args.precision,
                  outputs=args.outputs, run_name=f"{args.profile or 'seed'}_{seed}")
    given |= dict(epochs=args.epochs) if args.epochs else {}
    return given | (dict(captions=args.captions) if room == "t2i" else {})


def study_of(room: str, given: dict, data) -> Study:
    "Data, autoencoder and conditions of one of the three."
    train, held_out = data.train, data.held_out
    shape = given["vae_steps"], given["vae_cell"], given["vae_width"]
    vae = open_autoencoder(train, given.get("autoencoder", ""), *shape, given["device"],
                           given["precision"])
    eye = load_embedder(given["embedder"], given["device"])
    if room == "t2i":
        said = open_captions(given["captions"], data, given["dataset"])
        made = text_conditions(train, held_out, said, eye)
    else:
        chosen = given["head"], given["components"], given["symmetry"]
        made = image_conditions(train, held_out, eye, *chosen)
    return Study(train, held_out, vae, *made)


def trained(run, study: Study, given: dict) -> tuple[str, int]:
    "Train and save; says whether it is complete, and the last step."
    options = {k: given[k] for k in ("guidance_scale", "sampling_steps", "candidates", "precision")}
    plan = TrainingConfig(given["epochs"], given["batch_size"], given["images_per_epoch"],
                seed=given["seed"], device=given["device"], precision=given["precision"],
                max_minutes=given["max_minutes"])
    trainer = new_trainer(run.folder, study, Recipe.of(given), plan, given["symmetry"], **options)
    status = trainer.fit()
    with atomic_folder(run.path("model")) as place:
        save(trainer.made(), place)
    return status, trainer.position.step


def images_of(run, study: Study, given: dict) -> dict:
    "What the saved model makes of every held-out condition: the nearest of the draws, the first."
    model = load_model(run, given["device"])

    def drawn():
        draws = list(model.draws(study.asked, given["seed"]))
        if len(draws) == 1:
            return to_uint8(draws[0][None])
        kept = nearest_draws(draws, study.asked, study.conditioner, model.eye())
        return to_uint8(torch.stack([kept, draws[0]]))

    sets = dict(zip(("synthetic", "first draws"), run.cached("synthetic", drawn), strict=False))
    save_figure(sheet(sets["synthetic"][:40], columns=8), run.path("synthetic.png"))
    restored = decode_all(study.vae, encode_all(study.vae, study.held_out))
    return sets | {"reconstructions": to_uint8(restored)}


def run_one(room: str, given: dict) -> float:
    "One training and, when it is complete, its verdict; returns CPU seconds."
    began = time.process_time()
    folder = f"{given['outputs']}/05_{room}/{given['run_name']}"
    if read_manifest(folder).get("status") == "complete":
        return 0.0
    place = torch.device(given["device"])
    given = given | dict(precision=pick_precision(given["precision"], place))
    data = open_dataset(given["dataset"], image_size=given["image_size"])
    run = open_run(f"05_{room}", given, data.describe(), "synth_nb.diffusion.experiment:load")
    study = study_of(room, given, data)
    status, step = trained(run, study, given)
    if status == "complete":
        eyes = open_judges(given["judges"], given["embedder"], given["device"])
        judge_experiment(run.folder, study.train, study.held_out, halves(study.held_out),
                         images_of(run, study, given), eyes, given["seed"], given["embedder"])
    run.finish(status, step=step)
    return time.process_time() - began


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--captions", default="auto")
    parser.add_argument("--profile", default="", help="of nbs/params; empty: a short run")
    parser.add_argument("--epochs", type=int, default=0, help="of 400 steps, if short; 0: 2")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rooms", nargs="*", choices=OWN, default=list(OWN))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--outputs", default="outputs/three_conditions")
    chosen = parser.parse_args()
    print(machine(), flush=True)
    for seed in chosen.seeds:
        for room in chosen.rooms:
            np.random.seed(seed)
            torch.manual_seed(seed)
            spent = run_one(room, parameters_of(room, seed, chosen))
            print(f"{room} seed {seed}: {spent:.0f} CPU s", flush=True)
