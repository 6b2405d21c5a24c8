"""Text, image and tissue embedding as the condition, all else equal, over several seeds.

What the notebooks 05_t2i, 05_i2i and 05_e2i do, without their pictures: short runs, all nine in a
good hour of one core, or with `--profile` the parameters of a profile's files, on a GPU too. The
run folders are read by 05_comparison. A run that is complete is left alone, a stopped one goes on,
and is evaluated at its end. Run:
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
    DiffusionConfig,
    ExperimentData,
    nearest_draws,
    new_trainer,
    open_autoencoder,
    save,
    split_halves,
)
from synth_nb.diffusion.fidelity import evaluate_experiment, open_eval_embedders
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
    vae_downsampling=4,
    vae_width=16,
    unet_size="tiny",
    prediction_type="v_prediction",
    sampler="dpm++",
    symmetry="dihedral",
    condition_noise=0.1,
    dropout=0.1,
    guidance_scale=5.0,
    sampling_steps=12,
    best_of=4,
    components=64,
    embedder="efficientnet_lite0",
    max_minutes=0,
    eval_embedders=["efficientnet_lite2", "efficientnet_lite1"],
)
OWN = dict(t2i={}, i2i=dict(head="components"), e2i=dict(head="tuned"))


def parameters_of(condition: str, seed: int, args: argparse.Namespace) -> dict:
    "Parameters of a run: the short run's, those of a profile, and those of the command line."
    parameters = COMMON | OWN[condition]
    if args.profile:
        file = Path(__file__).parent.parent / f"nbs/params/05_{condition}.{args.profile}.yaml"
        parameters |= yaml.safe_load(file.read_text(encoding="utf-8"))
    parameters |= dict(
        dataset=args.dataset,
        seed=seed,
        device=args.device,
        precision=args.precision,
        outputs=args.outputs,
        run_name=f"{args.profile or 'seed'}_{seed}",
    )
    parameters |= dict(epochs=args.epochs) if args.epochs else {}
    return parameters | (dict(captions=args.captions) if condition == "t2i" else {})


def data_of(condition: str, parameters: dict, data) -> ExperimentData:
    "Data, autoencoder and conditions of one of the three."
    train, held_out = data.train, data.held_out
    shape = parameters["vae_steps"], parameters["vae_downsampling"], parameters["vae_width"]
    vae = open_autoencoder(train, parameters.get("autoencoder", ""), *shape, parameters["device"],
                           parameters["precision"])
    embedder = load_embedder(parameters["embedder"], parameters["device"])
    if condition == "t2i":
        texts = open_captions(parameters["captions"], data, parameters["dataset"])
        conditions = text_conditions(train, held_out, texts, embedder)
    else:
        how = parameters["head"], parameters["components"], parameters["symmetry"]
        conditions = image_conditions(train, held_out, embedder, *how)
    return ExperimentData(train, held_out, vae, *conditions)


def trained(run, data: ExperimentData, parameters: dict) -> tuple[str, int]:
    "Train and save; says whether it is complete, and the last step."
    options = {
        k: parameters[k] for k in ("guidance_scale", "sampling_steps", "best_of", "precision")
    }
    plan = TrainingConfig(
        parameters["epochs"],
        parameters["batch_size"],
        parameters["images_per_epoch"],
        seed=parameters["seed"],
        device=parameters["device"],
        precision=parameters["precision"],
        max_minutes=parameters["max_minutes"],
    )
    trainer, model = new_trainer(run.folder, data, DiffusionConfig.of(parameters), plan,
                                 parameters["symmetry"], **options)
    status = trainer.fit()
    with atomic_folder(run.path("model")) as folder:
        save(model(), folder)
    return status, trainer.position.step


def images_of(run, data: ExperimentData, parameters: dict) -> dict:
    "Samples of the saved model for every held-out condition: the nearest draws, the first draws."
    model = load_model(run, parameters["device"])

    def drawn():
        draws = list(model.draws(data.conditions, parameters["seed"]))
        if len(draws) == 1:
            return to_uint8(draws[0][None])
        nearest = nearest_draws(draws, data.conditions, data.conditioner, model.embedder())
        return to_uint8(torch.stack([nearest, draws[0]]))

    sets = dict(zip(("synthetic", "first draws"), run.cached("synthetic", drawn), strict=False))
    save_figure(sheet(sets["synthetic"][:40], columns=8), run.path("synthetic.png"))
    restored = decode_all(data.vae, encode_all(data.vae, data.held_out))
    return sets | {"reconstructions": to_uint8(restored)}


def run_one(condition: str, parameters: dict) -> float:
    "One training and, when it is complete, its evaluation; returns CPU seconds."
    began = time.process_time()
    folder = f"{parameters['outputs']}/05_{condition}/{parameters['run_name']}"
    if read_manifest(folder).get("status") == "complete":
        return 0.0
    device = torch.device(parameters["device"])
    parameters = parameters | dict(precision=pick_precision(parameters["precision"], device))
    images = open_dataset(parameters["dataset"], image_size=parameters["image_size"])
    run = open_run(
        f"05_{condition}", parameters, images.describe(), "synth_nb.diffusion.experiment:load"
    )
    data = data_of(condition, parameters, images)
    status, step = trained(run, data, parameters)
    if status == "complete":
        embedders = open_eval_embedders(
            parameters["eval_embedders"], parameters["embedder"], parameters["device"]
        )
        evaluate_experiment(run.folder, data.train, data.held_out, split_halves(data.held_out),
                            images_of(run, data, parameters), embedders, parameters["seed"],
                            parameters["embedder"])
    run.finish(status, step=step)
    return time.process_time() - began


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--captions", default="auto")
    parser.add_argument("--profile", default="", help="of nbs/params; empty: a short run")
    parser.add_argument("--epochs", type=int, default=0, help="of 400 steps, if short; 0: 2")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--conditions", nargs="*", choices=OWN, default=list(OWN))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--outputs", default="outputs/three_conditions")
    chosen = parser.parse_args()
    print(machine(), flush=True)
    for seed in chosen.seeds:
        for condition in chosen.conditions:
            np.random.seed(seed)
            torch.manual_seed(seed)
            spent = run_one(condition, parameters_of(condition, seed, chosen))
            print(f"{condition} seed {seed}: {spent:.0f} CPU s", flush=True)
