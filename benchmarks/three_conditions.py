"""Text, image and tissue embedding as the condition, all else equal: short runs over several seeds.

What the notebooks 05_t2i, 05_i2i and 05_e2i do, without their pictures, so that all of it fits in
half an hour of one core. The run folders are read by 05_comparison. A run that is complete is left
alone, a stopped one goes on. Run:
python benchmarks/three_conditions.py --dataset <folder> [--captions <file>] [--epochs 1]
"""

import argparse
import time

import numpy as np
import torch
from common import machine

from synth_nb.data import open_dataset, to_uint8
from synth_nb.diffusion import t2i
from synth_nb.diffusion.captions import open_captions
from synth_nb.diffusion.conditions import image_conditions
from synth_nb.diffusion.experiment import (
    Recipe,
    Study,
    halves,
    new_trainer,
    open_autoencoder,
    save,
)
from synth_nb.diffusion.fidelity import judge_experiment
from synth_nb.embedders import load_embedder
from synth_nb.runs import load_model, open_run, read_manifest, whole_folder
from synth_nb.training import Plan

COMMON = dict(image_size="64", channels=3, images_per_epoch=6400, batch_size=16, lr=1e-3,
              vae_steps=600, unet_size="tiny", objective="v", sampler="dpm++", views=2,
              guidance_scale=1.5, sampling_steps=12, candidates=1, components=64,
              embedder="efficientnet_lite0", device="cpu", precision="fp32")
OWN = dict(t2i={}, i2i=dict(head="components"), e2i=dict(head="tuned"))


def conditions_of(room: str, data, train, held_out, eye, given: dict):
    "What each of the three asks with."
    if room == "t2i":
        said = open_captions(given["captions"], data, given["dataset"])
        return t2i.conditions(train, held_out, said, eye)
    return image_conditions(train, held_out, eye, OWN[room]["head"])


def run_one(room: str, seed: int, args) -> float:
    "One training and its verdict; returns CPU seconds."
    began = time.process_time()
    given = COMMON | OWN[room] | dict(dataset=args.dataset, seed=seed, epochs=args.epochs,
                                      outputs=args.outputs, run_name=f"seed_{seed}")
    given |= dict(captions=args.captions) if room == "t2i" else {}
    folder = f"{args.outputs}/05_{room}/seed_{seed}"
    if read_manifest(folder).get("status") == "complete":
        return 0.0
    data = open_dataset(args.dataset, image_size=64)
    train, held_out = data.train, data.held_out
    run = open_run(f"05_{room}", given, data.describe(), f"synth_nb.diffusion.{room}:load")
    eye, recipe = load_embedder(given["embedder"]), Recipe.of(given)
    vae = open_autoencoder(train, "", given["vae_steps"], "cpu", "bf16")
    conditioner, learnt, asked = conditions_of(room, data, train, held_out, eye, given)
    study = Study(train, held_out, vae, conditioner, learnt, asked)
    names = ("guidance_scale", "sampling_steps", "candidates", "precision")
    plan = Plan(args.epochs, given["batch_size"], given["images_per_epoch"], seed=seed,
                device="cpu", precision="fp32")
    trainer = new_trainer(run.folder, study, recipe, plan, given["views"],
                          **{name: given[name] for name in names})
    trainer.fit()
    with whole_folder(run.path("model")) as place:
        save(trainer.made(), place)
    model = load_model(run, "cpu")
    made = run.kept("synthetic", lambda: to_uint8(model.sample(len(held_out), seed).images))
    eyes = [load_embedder(name) for name in args.judges.split(",")]
    judge_experiment(run.folder, train, held_out, halves(held_out), dict(synthetic=made), eyes,
                     seed, given["embedder"])
    run.finish("complete", step=trainer.at.step, epoch=args.epochs)
    return time.process_time() - began


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--captions", default="auto")
    parser.add_argument("--epochs", type=int, default=1, help="of 400 steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--judges", default="efficientnet_lite2,efficientnet_lite1")
    parser.add_argument("--outputs", default="outputs/three_conditions")
    chosen = parser.parse_args()
    print(machine(), flush=True)
    for seed in range(chosen.seeds):
        for room in OWN:
            np.random.seed(seed)
            torch.manual_seed(seed)
            print(f"{room} seed {seed}: {run_one(room, seed, chosen):.0f} CPU s", flush=True)
