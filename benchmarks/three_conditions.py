"""Text, image and tissue embedding as the condition, all else equal, over several seeds.

`run_conditioned` does what the stories 05_t2i, 05_i2i and 05_e2i do: with their defaults, but for
those of the short run below, all nine in a good hour of one core; or with the parameters of a
profile, on a GPU too. The run folders are read by 05_comparison. A run that is complete is left
alone, a stopped one goes on. Run:
python benchmarks/three_conditions.py --dataset <folder> [--captions <file>] [--epochs 2]
python benchmarks/three_conditions.py --dataset <folder> --profile offline --device cuda --seeds 0
python benchmarks/three_conditions.py --quick  # two minutes, to see that it runs
"""

import argparse
import time

import yaml
from common import machine

from synth_nb.core.files import project_root
from synth_nb.core.runs import read_manifest
from synth_nb.core.seeding import seed_everything
from synth_nb.diffusion.captions import open_captions
from synth_nb.diffusion.conditioned import run_conditioned
from synth_nb.diffusion.conditions import image_conditions
from synth_nb.diffusion.text import text_conditions
from synth_nb.tools.grid import defaults

SHORT = dict(
    images_per_epoch=6400,
    lr=1e-3,
    vae_steps=2400,
    unet_size="tiny",
    snr_gamma=0.0,
    symmetry="dihedral",
    condition_noise=0.1,
    guidance_interval=[0.0, 1.0],
    n_samples=2000,  # at most: all held-out images
    sampling_steps=12,
)
QUICK = dict(epochs=1, images_per_epoch=64, vae_steps=0, n_samples=32, sampling_steps=2, best_of=1,
             unet_size="mini", eval_embedders=["efficientnet_lite2"])  # fmt: skip
HEADS = dict(t2i={}, i2i=dict(head="components"), e2i=dict(head="tuned"))


def parameters_of(condition: str, seed: int, args: argparse.Namespace) -> dict:
    "Parameters of a run: a story's, those of the short run or a profile, of the command line."
    story = f"05_{condition}"
    if args.profile:
        file = project_root() / f"nbs/params/{story}.{args.profile}.yaml"
        chosen = yaml.safe_load(file.read_text(encoding="utf-8"))
    else:
        chosen = SHORT | HEADS[condition] | (QUICK if args.quick else {})
    chosen |= dict(epochs=args.epochs) if args.epochs else {}
    chosen |= dict(captions=args.captions) if condition == "t2i" else {}
    name = f"{args.profile or ('quick' if args.quick else 'seed')}_{seed}"
    return defaults(story) | chosen | dict(dataset=args.dataset, seed=seed, device=args.device,
        precision=args.precision, outputs=args.outputs, run_name=name)  # fmt: skip


def open_conditions(experiment):
    "Conditions as the story of the experiment opens them."
    p, sets = experiment.parameters, (experiment.train, experiment.held_out)
    if "captions" not in p:
        return image_conditions(*sets, experiment.embedder, p["head"], p["components"],
                                experiment.symmetry)  # fmt: skip
    texts = open_captions(p["captions"], experiment.data, p["dataset"], p["template"])
    return text_conditions(*sets, texts, experiment.embedder, p["text_encoder"], p["components"])


def run_one(condition: str, parameters: dict) -> float:
    "One experiment, unless it is complete; returns CPU seconds."
    began = time.process_time()
    folder = f"{parameters['outputs']}/05_{condition}/{parameters['run_name']}"
    if read_manifest(folder).get("status") == "complete":
        return 0.0
    seed_everything(parameters["seed"])
    run_conditioned(f"05_{condition}", parameters, open_conditions)
    return time.process_time() - began


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--captions", default="auto")
    parser.add_argument("--profile", default="", help="of nbs/params; empty: a short run")
    parser.add_argument("--quick", action="store_true", help="a few steps of a tiny model")
    parser.add_argument("--epochs", type=int, default=0, help="of 400 steps, if short; 0: 2")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--conditions", nargs="*", choices=HEADS, default=list(HEADS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--outputs", default="outputs/three_conditions")
    args = parser.parse_args()
    print(machine(), flush=True)
    for seed in args.seeds:
        for condition in args.conditions:
            spent = run_one(condition, parameters_of(condition, seed, args))
            print(f"{condition} seed {seed}: {spent:.0f} CPU s", flush=True)
