"""Bugs that are planted on purpose, and which test catches each.

    python tests/mutations.py                 # all of them: what `make test-mutations` runs
    python tests/mutations.py guidance leak   # those whose name holds one of these words

Each bug is an exact change of one module, in a copy of the project, in its notebook too: a notebook
tests its own cells. The tests named beside it run one after another until one fails; a bug that
passes them all lives, and is a test that is missing. The table goes to
`outputs/cache/tests/mutations.md`; the exit code is 1 where a bug lives.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "outputs/cache/tests/mutations.md"
LIMIT = 300  # seconds of one test


class Bug(NamedTuple):
    name: str
    module: str  # below synth_nb, with dots
    old: str  # stands there once
    new: str
    tests: tuple[str, ...] = ()  # files of tests/ and `-k` words after `::`; none: its notebook


def bug(name: str, module: str, old: str, new: str, *tests: str) -> Bug:
    return Bug(name, module, old, new, (f"nbs/library/{module.replace('.', '/')}.ipynb", *tests))


BUGS = [
    bug("sign of the generator's loss", "dcgan.losses",
        "return F.softplus(-synthetic).mean() if", "return F.softplus(synthetic).mean() if"),
    bug("sign of the discriminator's loss", "dcgan.losses",
        "return F.softplus(-real).mean() + F.softplus(synthetic)",
        "return F.softplus(real).mean() + F.softplus(-synthetic)"),
    bug("sign within the hinge", "dcgan.losses",
        "F.relu(1 - real).mean()", "F.relu(1 + real).mean()"),
    bug("R1 without the square", "dcgan.losses",
        "gradient.flatten(1).float().square().sum(1)", "gradient.flatten(1).float().abs().sum(1)"),
    bug("lazy R1 is not weighted up", "dcgan.losses",
        "self.every * self.gamma / 2 * norms", "self.gamma / 2 * norms",
        "test_planted.py::penalty"),
    bug("warm-up off by one", "training.schedules", "(step + 1) / max(steps, 1)",
        "step / max(steps, 1)"),
    bug("decay off by one", "training.schedules", "max(total - step, 0)",
        "max(total - step - 1, 0)"),
    bug("moving average takes the newest", "training.schedules",
        "1 - self.decay(self.updates))", "self.decay(self.updates))"),
    bug("moving average without buffers", "training.schedules",
        "([*m.parameters(), *m.buffers()] for m", "([*m.parameters()] for m",
        "test_planted.py::running"),
    bug("every pass in the same order", "training.schedules",
        "derive_seed(self.seed, number)", "self.seed"),
    bug("batches overlap by one", "training.schedules",
        "step * self.batch_size, []", "step * (self.batch_size - 1), []"),
    bug("moving average is not used", "training.loop",
        "return self.averages[name].module if name in self.averages else self.modules[name]",
        "return self.modules[name]",
        "test_planted.py::trainer"),
    bug("evaluation without eval()", "training.loop",
        "evaluating(networks), ", "nullcontext(), ",
        "test_planted.py::trainer"),
    bug("the other network is not frozen", "training.loop",
        "parameter.requires_grad_(other.optimizer is phase.optimizer)",
        "parameter.requires_grad_(True)"),
    bug("shares of an accumulated batch", "training.loop",
        "loss = loss * share if share < 1 else loss", "pass"),
    bug("learning rate never moves", "training.loop", "phase.scheduler.step()", "pass",
        "test_planted.py::trainer"),
    bug("the worst is the best", "training.loop",
        "row[config.best] < position.best", "row[config.best] > position.best"),
    bug("random numbers start again on resume", "training.loop",
        'set_random_state(state["random"])', "pass"),
    bug("target of the flow backwards", "diffusion.objective",
        "else noise - clean", "else clean - noise"),
    bug("sign within v", "diffusion.objective",
        "_each(alpha, noise) * noise - _each(sigma, clean) * clean",
        "_each(alpha, noise) * noise + _each(sigma, clean) * clean"),
    bug("signal and noise exchanged", "diffusion.objective",
        "_each(alpha, clean) * clean + _each(sigma, noise) * noise",
        "_each(sigma, clean) * clean + _each(alpha, noise) * noise"),
    bug("weights of epsilon for v", "diffusion.objective",
        '"v_prediction": 1 / (snr + 1)', '"v_prediction": 1 / snr'),
    bug("the end keeps some signal", "diffusion.objective", "alphas_cumprod[-1] = 0.0", "pass"),
    bug("timestep 0 is never learnt", "diffusion.objective",
        "return (shares * steps).long()", "return (shares * steps).long().clamp_min(1)",
        "test_planted.py::zero"),
    bug("condition dropped the wrong way", "diffusion.objective",
        ">= self.p_uncond", "< self.p_uncond"),
    bug("weights of timesteps ignored", "diffusion.objective",
        "return (self.weights[t].to(clean.dtype) * errors).mean()", "return errors.mean()",
        "test_planted.py::timesteps"),
    bug("held-out loss counts batches alike", "diffusion.objective",
        "return sum(count * value for value, count in pairs) / len(data)",
        "return sum(value for value, count in pairs) / len(losses)",
        "test_planted.py::held_out"),
    bug("metric on the training split", "diffusion.fidelity",
        'to_image_set("real", held_out.select(reference))',
        'to_image_set("real", train.select(reference))', "test_planted.py::other_half"),
    bug("metric on the half that gave the conditions", "diffusion.fidelity",
        'to_image_set("real", held_out.select(reference))',
        'to_image_set("real", held_out.select(rows))', "test_planted.py::other_half"),
    bug("the training split counts as held out", "data.dataset",
        'return self.subset("val" if "val" in self.split or "test" not in self.split else "test")',
        'return self.subset("train")'),
    bug("models are judged by their training images", "evaluation.sets",
        'held_out = open_part("held_out", real,', 'held_out = open_part("train", real,'),
    bug("guidance ignored", "diffusion.sampling",
        "without + guidance_scale * (with_it - without)", "with_it"),
    bug("guidance away from the condition", "diffusion.sampling",
        "torch.cat([negative, conditions])", "torch.cat([conditions, negative])"),
    bug("guidance outside its interval", "diffusion.sampling",
        "return self.guidance_scale if low", "return self.guidance_scale if not low"),
    bug("latents not scaled before decoding", "diffusion.sampling",
        "vae.decode(latents / vae.config.scaling_factor,", "vae.decode(latents,",
        "test_planted.py::scaled"),
    bug("range of sampled images", "diffusion.sampling",
        "part.float().cpu() * 2 - 1", "part.float().cpu()"),
    bug("mirrored views unmirrored", "diffusion.latents",
        "return x[..., ::-1] if number % 2 else x", "return x",
        "test_planted.py::view"),
    bug("conditions of other images", "diffusion.latents",
        "self.conditions[of_condition, indices]", "self.conditions[of_condition, indices[::-1]]",
        "test_planted.py::own"),
    bug("conditions of other views", "diffusion.latents",
        "of_condition = views if", "of_condition = views.flip(0) if"),
    bug("sign of StyleGAN2's loss", "stylegan2.loss",
        "return F.softplus(-fake).mean()", "return F.softplus(fake).mean()"),
    bug("ADA turns the wrong way", "stylegan2.loss",
        "(self.sign - self.target).sign()", "(self.target - self.sign).sign()"),
    bug("path length along the wrong axis", "stylegan2.loss",
        "square().sum(2).mean(1).sqrt()", "square().sum(1).mean(1).sqrt()"),
    bug("styles mixed the other way", "stylegan2.loss",
        "device=z.device) < cuts[:, None]", "device=z.device) >= cuts[:, None]"),
    bug("StyleGAN2's lazy R1 is not weighted up", "stylegan2.loss",
        "(self.gamma / 2 * self.every)", "(self.gamma / 2)"),
    bug("kernel distance lacks a factor", "metrics.distances",
        "within - 2 * _mean_of_pairs", "within - _mean_of_pairs"),
    bug("Fréchet distance lacks a factor", "metrics.distances",
        "- 2 * cross_term_from_covariances", "- cross_term_from_covariances"),
    bug("precision and recall exchanged", "metrics.neighbours",
        "dict(precision=held > 0, recall=reached,", "dict(precision=reached, recall=held > 0,"),
    bug("an image is its own neighbour", "metrics.neighbours",
        "if others and i == j:", "if False:"),
    bug("retrieval of the neighbour's condition", "metrics.retrieval",
        "near.gather(1, rows[:, None])", "near.gather(1, rows.roll(1)[:, None])"),
    bug("inception score along the wrong axis", "metrics.scores",
        "part.mean(0))", "part.mean(1, keepdim=True))"),
    bug("mask not turned with its image", "segmentation.fit",
        "return view(both, int(turn * self.views)) if",
        "return torch.cat([view(both[:1], int(turn * self.views)), both[1:]]) if"),
    bug("mask not warped with its image", "segmentation.fit",
        "(planes >= 0.5).float()", "masks.float()",
        "test_planted.py::warped"),
    bug("background and foreground exchanged", "segmentation.fit",
        "self.probabilities(images) >= self.threshold",
        "self.probabilities(images) < self.threshold"),
    bug("wrong range of bytes", "data.dataset",
        "return images.float() / 127.5 - 1", "return images.float() / 255"),
    bug("leak: groups on both sides", "data.dataset",
        'return ["val" if g in held_out else "train" for g in groups]',
        'return ["train" if i % 5 else "val" for i, g in enumerate(groups)]'),
    bug("bytes cut instead of rounded", "data.dataset",
        "((images.float() + 1) * 127.5).round()", "((images.float() + 1) * 127.5)"),
    bug("latents of sections not scaled", "em.training",
        "latents = (latents - mean.view(-1, 1, 1)) / std",
        "latents = latents - mean.view(-1, 1, 1)"),
    bug("masks that must not be used", "em.training", "return found * known", "return found"),
    bug("letters transposed", "data.readers.named",
        "if turned:\n            images = images.transpose(0, 2, 1)",
        "if turned:\n            pass"),
    bug("copies among the other split", "evaluation.copies",
        "first / others.clamp_min(1e-12)", "others / first.clamp_min(1e-12)"),
    bug("known latents are not put back", "diffusion.inpainting",
        "x = torch.where(holes, x, known)", "pass"),
    bug("known latents are put back without noise", "diffusion.inpainting",
        "known = known + sigma[i] * noise_from(own, latents.shape[1:]).to(latents)", "pass",
        "test_inpainting.py::restores"),
    bug("holes do not grow to the latents beside them", "diffusion.inpainting",
        "downsampling), 3, 1, 1) > 0", "downsampling), 1, 1, 0) > 0"),
    bug("weights of overlapping windows do not sum to 1", "diffusion.fields",
        "torch.from_numpy(ramp / total[start : start + len(ramp)])", "torch.from_numpy(ramp)"),
    bug("rows and columns of a field's conditions exchanged", "diffusion.fields",
        "rows, columns = grid.shape[:2]",
        "grid = grid.transpose(0, 1); rows, columns = grid.shape[:2]"),
    bug("latents of a field are not scaled before decoding", "diffusion.fields",
        "torch.tensor(1 / scale)", "torch.tensor(1.0)",
        "test_planted.py::field"),
    bug("every window of a field at the same place", "diffusion.fields",
        "derive_seed(self.seed, step)", "self.seed", "test_planted.py::windows"),
    bug("class map transposed", "data.readers.classes",
        "where.reshape(\n            values.shape)]",
        "where.reshape(\n            values.shape).T]"),
    bug("class maps without their last class", "diffusion.masks",
        "for k in range(1, classes)], 1)", "for k in range(classes - 1)], 1)"),
    bug("pixels of a mask in the order of columns", "diffusion.masks",
        "return planes.flatten(2).transpose(1, 2)",
        "return planes.transpose(2, 3).flatten(2).transpose(1, 2)", "test_planted.py::tokens"),
    bug("conditions beside a mask are dropped together", "diffusion.masks",
        "keep = torch.rand(len(x), device=latents.device) >= self.p_uncond",
        "keep = keep if shown else torch.rand(len(x)) >= self.p_uncond"),
    bug("guidance of one condition by the scale of another", "diffusion.masks",
        "self.scales.get(name, 1.0) if inside else 1.0 for name in names]",
        "self.scales.get(name, 1.0) if inside else 1.0 for name in names[::-1]]"),
    bug("runs of sections from behind are runs from the front", "em.stacks",
        "runs.flip(2)", "runs.flip(1)"),
    bug("neighbours one section after those where windows meet", "em.stacks",
        "slice(window - 1, None, window)", "slice(window, None, window)"),
    bug("export exchanges the axes of images", "data.quality.export",
        "part.permute(0, 2, 3, 1)", "part.permute(0, 3, 2, 1)"),
    bug("export to NIfTI turns the wrong way", "data.quality.forms",
        "np.rot90(values, -1)", "np.rot90(values)", "test_export.py::forms"),
    bug("export of outlines exchanges x and y", "data.quality.forms",
        "segmentation=[ring.ravel().tolist()]", "segmentation=[ring[:, ::-1].ravel().tolist()]",
        "test_export.py::forms"),
    bug("power counts the draws that are not noticed", "evaluation.power",
        "np.mean(x > threshold(null[name]))", "np.mean(x <= threshold(null[name]))",
        "test_power.py::plain_fault"),
    bug("own power of the fault's plainest degree alone", "evaluation.sentences",
        'other = slight if found and found[-1]["power"] >= ENOUGH else plainest',
        "other = plainest", "test_power.py::own_power_looks"),
    bug("own power of images against themselves", "evaluation.sentences",
        "(middle,), {score})", "(0.0,), {score})", "test_power.py::own"),
    bug("images of one patient on both sides of a draw", "evaluation.power",
        "order[n:][~np.isin(np.asarray(groups)[order[n:]], first)]", "order[n:]",
        "test_power.py::patient"),
    bug("an exchange that leaves every image on its side", "evaluation.power",
        "*(rng.permutation(2 * n) for _ in range(19))]", "*(np.arange(2 * n) for _ in range(19))]",
        "test_power.py::exchange"),
    bug("label ignored by the DCGAN's generator", "dcgan.networks",
        "torch.cat([z, self.classes(labels)], 1) if",
        "torch.cat([z, self.classes(0 * labels)], 1) if", "test_gan.py::learn_from_the_classes"),
    bug("label ignored by the DCGAN's discriminator", "dcgan.networks",
        "self.classes(labels) * x.mean((2, 3))", "self.classes(0 * labels) * x.mean((2, 3))"),
    bug("label ignored when a DCGAN is sampled", "dcgan.model",
        "self.images(z, batch_size, labels), labels", "self.images(z, batch_size), labels",
        "test_planted.py::dcgan"),
    bug("other labels for the discriminator's synthetic images", "dcgan.losses",
        "synthetic = nets[\"D\"](self.cached_input(nets, batch), *labels)",
        "synthetic = nets[\"D\"](self.cached_input(nets, batch), *[0 * k for k in labels])",
        "test_planted.py::dcgan"),
    bug("a release counts from the wrong side", "evaluation.release",
        "(1 + below) / (1 + len(usual))", "(1 + len(usual) - below) / (1 + len(usual))"),
]  # fmt: skip


def planted(home: Path, one: Bug):
    "Change the module and its notebook in a copy of the project."
    file = home / "synth_nb" / f"{one.module.replace('.', '/')}.py"
    text = file.read_text(encoding="utf-8")
    if text.count(one.old) != 1:
        raise SystemExit(f"{one.name}: {one.old!r} stands {text.count(one.old)} times in {file}")
    file.write_text(text.replace(one.old, one.new), encoding="utf-8")
    path = home / one.tests[0]
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and source.startswith("#| export") and one.old in source:
            cell["source"] = source.replace(one.old, one.new)
    path.write_text(json.dumps(notebook), encoding="utf-8")


def run_here(home: Path, test: str) -> bool:
    "Run a notebook, or a file of tests, in this process; whether it passed."
    os.chdir(home)
    sys.path[:0] = [str(home), str(home / "tests")]
    if test.endswith(".ipynb"):
        from nbdev.test import test_nb

        os.environ["IN_TEST"] = "1"
        return test_nb(home / test, skip_flags=["slow", "gpu"])[0]
    import pytest

    file, _, words = test.partition("::")
    options = ["-q", "-x", "-n0", "-p", "no:cacheprovider", *(["-k", words] if words else [])]
    return pytest.main([*options, f"tests/{file}"]) == 0


def passes(home: Path, test: str, log: Path) -> bool:
    "The same in a fork, which has the libraries already; one that takes too long fails."
    child = os.fork()
    if child == 0:
        with open(log, "w") as out:
            os.dup2(out.fileno(), 1), os.dup2(out.fileno(), 2)
        signal.alarm(LIMIT)
        passed = False
        with suppress(BaseException):
            passed = run_here(home, test)
        os._exit(0 if passed else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def copied(home: Path):
    "A copy of the project, without what tests do not read."
    names = ["nbs", "synth_nb", "tests", "settings.ini", "conftest.py", "ruff.toml"]
    for name in names:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            shutil.copytree(ROOT / name, home / name, ignore=ignored)
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, home)
    (home / "outputs").symlink_to(ROOT / "outputs")


def failing(tests: tuple[str, ...], one: Bug | None, log: Path) -> tuple[str, float]:
    "The first of these tests that fails in a fresh copy with a bug, or empty; seconds."
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bug-") as folder:
        copied(Path(folder))
        if one:
            planted(Path(folder), one)
        caught = next((test for test in tests if not passes(Path(folder), test, log)), "")
    return caught, time.monotonic() - began


def main():
    words, rows, lived = sys.argv[1:], [], 0
    chosen = [one for one in BUGS if not words or any(word in one.name for word in words)]
    import accelerate  # noqa: F401 - loaded once, for all forks
    import diffusers  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import nbdev.test  # noqa: F401
    import pandas  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import torchvision  # noqa: F401
    import transformers  # noqa: F401

    os.environ["SYNTH_NB_CACHE"] = str(ROOT / "outputs/cache/tests/mutations")
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    log = TABLE.with_name("mutations.log")
    every = tuple(dict.fromkeys(test for one in chosen for test in one.tests))
    if broken := failing(every, None, log)[0]:
        sys.exit(f"{broken} fails without a bug; see {log}")
    for number, one in enumerate(chosen, 1):
        caught, seconds = failing(one.tests, one, log)
        lived += not caught
        found = f"`{caught}`" if caught else "**lives**"
        rows.append(f"| {one.name} | `{one.module}` | {found} |")
        print(f"{number}/{len(chosen)} {one.name}: {found}, {seconds:.0f} s", flush=True)
    head = ["| planted bug | module | caught by |", "| --- | --- | --- |"]
    TABLE.write_text("\n".join([*head, *rows, ""]), encoding="utf-8")
    print(f"{len(chosen) - lived} of {len(chosen)} caught; the table is in {TABLE}")
    sys.exit(bool(lived))


if __name__ == "__main__":
    main()
