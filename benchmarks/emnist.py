"""Letters: cost and benefit of a training step, a sampler and a network size.

`step` times a training step of the three networks. `train` spends so many CPU seconds on one of
them, data opened and everything compiled before the clock starts, and saves the model. `samplers`
compares samplers on a saved model. `speed` times a thousand letters. `useful` adds its letters to
few real ones. All accuracies are those of the letter classifier of the data set. `--quick` runs
each of them, or one, for some seconds.
Run: OMP_NUM_THREADS=1 python benchmarks/emnist.py step
"""

import argparse
import tempfile
import time
from pathlib import Path

from common import alternate, machine, row

from synth_nb.core.seeding import seed_everything
from synth_nb.data import Views, open_dataset, to_uint8
from synth_nb.emnist.classifier import compare_samplers, label_accuracy, letter_classifier
from synth_nb.emnist.model import letter_scheduler, new_unet
from synth_nb.emnist.sampling import LetterModel, letter_sampling, load, save
from synth_nb.emnist.training import denoising_phase
from synth_nb.emnist.useful import usefulness_by_count
from synth_nb.evaluation import ImageSet
from synth_nb.evaluation.sets import to_image_set
from synth_nb.training.loop import Trainer, TrainingConfig


def trainer_for(data, network, folder, steps=0, lr=1.5e-3, batch=32, seed=0):
    "A trainer as the notebook makes it."
    seed_everything(seed)
    unet, scheduler = new_unet(len(data.classes), network=network), letter_scheduler()
    phase = denoising_phase(unet, scheduler, len(data.classes), lr, steps)
    config = TrainingConfig(1, batch, batch * max(steps, 1), seed=seed, device="cpu",
                            precision="fp32")
    images = Views(data.train, "none")
    trainer = Trainer(Path(folder), images, dict(unet=unet), [phase], config, dict(unet=0.998))
    model = LetterModel(trainer.model("unet"), scheduler, list(data.classes))
    return trainer, model


def step(chosen, data):
    "A step of each network against the small one."
    print("| step of 32 | ours, ms | theirs, ms | ratio |\n| --- | --- | --- | --- |")
    for network in ("middle",) if chosen.quick else ("middle", "documented"):
        trainers = [trainer_for(data, n, tempfile.mkdtemp())[0] for n in ("small", network)]
        sides = [trainer.training_step for trainer in trainers]
        done = alternate(*sides, chosen.rounds, warm=1, clock=time.process_time)
        print(row(f"small against {network}", done), flush=True)


def train(chosen, data):
    "Spend CPU seconds on a network; the rate falls to zero at their end."
    trainer, _ = trainer_for(data, chosen.network, tempfile.mkdtemp(), 3)
    trainer.training_step()
    began = time.process_time()
    trainer.training_step(), trainer.training_step()
    steps = max(2, int(chosen.seconds * 2 / (time.process_time() - began)))
    trainer, model = trainer_for(data, chosen.network, tempfile.mkdtemp(), steps, chosen.lr)
    began = time.process_time()
    trainer.fit()
    spent = time.process_time() - began
    Path(chosen.model).mkdir(parents=True, exist_ok=True)
    save(model, Path(chosen.model))
    print(f"{chosen.network}: {steps} steps of 32 in {spent:.0f} CPU seconds, model in"
          f" {chosen.model}", flush=True)


def samplers(chosen, data):
    "Samplers on one model."
    model = load(chosen.model)
    tried = [("dpm++", 5, 1), ("dpm++", 10, 1), ("dpm++", 20, 1), ("ddim", 10, 1), ("ddim", 20, 1),
             ("ddpm", 20, 1), ("ddpm", 100, 1), ("dpm++", 10, 2), ("dpm++", 14, 2),
             ("dpm++", 20, 2)]
    tried = [("ddpm", 1000, 1)] if chosen.thousand else tried[:2] if chosen.quick else tried
    configs = [letter_sampling(*one) for one in tried]
    table = compare_samplers(model, classifier_of(chosen, data), configs, chosen.n, 1)
    print(table.round(4).to_markdown(), flush=True)


def speed(chosen, data):
    "A thousand letters with the model's own sampling, and their accuracy."
    model, began = load(chosen.model), time.process_time()
    samples = model.sample(chosen.n, 0)
    spent = time.process_time() - began
    found = label_accuracy(classifier_of(chosen, data), to_uint8(samples.images), samples.labels)
    print(f"{chosen.n} letters in {spent:.1f} CPU seconds ({model.sampling}), accuracy"
          f" {found['accuracy']:.4f} ({found['low']:.4f} to {found['high']:.4f})", flush=True)


def useful(chosen, data):
    "Classifiers that learn from few real letters, with and without synthetic ones."
    model = load(chosen.model)
    samples = model.sample(chosen.n, 0)
    fake = ImageSet("synthetic", to_uint8(samples.images), samples.labels, model.classes)
    real, held_out = to_image_set("real", data.train), to_image_set("held out", data.held_out)
    little = dict(counts=(10,), n_draws=1, steps=20) if chosen.quick else {}
    table = usefulness_by_count(real, held_out, fake, device="cpu", **little)
    print(table.round(3).to_markdown(), flush=True)


def classifier_of(chosen, data):
    steps, width = chosen.classifier_steps, chosen.classifier_width
    classifier = letter_classifier(data, steps, width, device="cpu")
    print(f"{classifier.id}: {classifier.accuracy:.4f} of {len(data.held_out)} held-out letters\n")
    return classifier


COMMANDS = dict(step=step, train=train, samplers=samplers, speed=speed, useful=useful)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=COMMANDS)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--network", default="small")
    parser.add_argument("--seconds", type=float, default=300, help="CPU seconds of training")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--model", default="outputs/emnist_benchmark", help="folder of the model")
    parser.add_argument("--n", type=int, default=100, help="letters")
    parser.add_argument("--thousand", action="store_true", help="only DDPM with all its steps")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--classifier-steps", type=int, default=600)
    parser.add_argument("--classifier-width", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="some seconds of each, or of one")
    chosen = parser.parse_args()
    if not (chosen.what or chosen.quick):
        parser.error(f"name one of {', '.join(COMMANDS)}, or give --quick")
    if chosen.quick:
        vars(chosen).update(seconds=2, n=100, rounds=1, classifier_steps=20)
        chosen.model = f"{tempfile.mkdtemp()}/model"
    data = open_dataset(chosen.dataset, 28, channels=1)
    print(f"{machine()}\n{data}", flush=True)
    for name in [chosen.what] if chosen.what else COMMANDS:
        COMMANDS[name](chosen, data)
