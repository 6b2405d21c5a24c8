"The StyleGAN2 notebook as a user runs it: words, bad input, a small run, and what is left of it."

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from synth_nb.core.parameters import ParameterError
from synth_nb.core.runs import load_model
from synth_nb.core.testing import assert_near
from synth_nb.figures.plots import new_figure
from synth_nb.stylegan2 import (
    Generator,
    StyleToImage,
    choose_settings,
    export_official,
    load_network,
    new_networks,
    open_model,
    save,
    save_networks,
)
from synth_nb.stylegan2.config import ema_decay, memory_estimate
from synth_nb.stylegan2.transfer import pretrained_settings, read_pretrained, start_from
from synth_nb.training.log import read_metrics
from synth_nb.training.loop import TrainingConfig

EVAL_EMBEDDERS = ["efficientnet_lite2@64"]
ROOT = Path(__file__).parent.parent
TRAINING_CELLS = "check_microbatches(settings,", "plan = TrainingConfig"  # words in them
NOTEBOOK = ROOT / "nbs" / "04_stylegan2.ipynb"
SMALL = dict(image_size=32, channel_base=256, channel_max=16, z_dim=16, kimg=0.064,
             images_per_epoch=32, n_samples=16, projection_steps=3, snapshot_every=1)


@pytest.fixture
def run_cells():
    "Run the notebook's cells up to its data, with parameters given as papermill gives them."
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    cut = next(i for i, c in enumerate(cells) if "### Training" in "".join(c["source"]))
    code = ["".join(c["source"]) for c in cells[:cut] if c["cell_type"] == "code"]
    code = [source for source in code if "in_test():" not in source]
    where = next(i for i, source in enumerate(code) if source.startswith("dataset: str"))

    def run(until="", **parameters):
        injected = "# Parameters\n" + "\n".join(f"{k} = {v!r}" for k, v in parameters.items())
        space = dict(__name__="notebook", In=[injected])
        for source in [*code[: where + 1], injected, *code[where + 1 :]]:
            exec(source, space)
            if until and until in source:
                break
        return space

    return run


def image_folder(folder: Path, count: int, mode: str = "L", size: int = 32) -> Path:
    "A folder of images, in no classes."
    folder.mkdir()
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 255, (size, size), np.uint8)
        Image.fromarray(noise).convert(mode).save(folder / f"{i:03}.png")
    return folder


def test_the_originals_parameters_become_ours(run_cells, capsys):
    old = dict(data="digits", cfg="paper256", batch=16, gpus=1, mirror=1, snap=10, seeds="1,2-3",
               trunc=0.5)
    space = run_cells(until="if not eval_embedders", **old)
    new = space["parameters"]
    assert new["dataset"] == "digits" and new["configuration"] == "paper256"
    assert new["batch_size"] == 16 and new["symmetry"] == "flip" and new["num_processes"] == 1
    assert new["snapshot_every"] == 10 and new["images_per_epoch"] == 4000
    assert new["sample_seeds"] == "1,2-3" and new["truncation"] == 0.5
    assert not {"data", "batch", "seeds"} & new.keys()
    assert capsys.readouterr().out.count("has become") == len(old)


def test_a_batch_need_not_change_the_rest(run_cells):
    until = "settings = choose_settings"
    words = dict(batch=16, gamma=-1, image_size=128)
    assert run_cells(until=until, **words)["settings"].gamma == pytest.approx(0.0002 * 128**2 / 16)
    fixed = run_cells(until=until, follow_batch=0, **words)["settings"]
    assert (fixed.batch_size, fixed.gamma) == (16, pytest.approx(0.0002 * 128**2 / 32))
    assert fixed.ema_kimg == 10  # of the 32 images that `auto` takes at 128 pixels


def test_a_run_is_the_same_one_in_either_words(run_cells):
    until = "if not eval_embedders"
    assert run_cells(until=until, batch="16")["parameters"] == run_cells(
        until=until, batch_size=16)["parameters"]
    with pytest.raises(ParameterError, match="the same parameter: give one of them"):
        run_cells(until=until, batch=16, batch_size=32)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (dict(kimg=0), "`kimg` must be above 0, got 0"),
        (dict(image_size=96), "not 96; try 128"),
        (dict(image_size="64x32"), "draws square images, got `image_size` '64x32'"),
        (dict(sample_seeds="5-1"), "'5-1' is empty: write '1-5'"),
        (dict(seeds="5-1"), "'5-1' is empty: write '1-5'"),
        (dict(cfg="paper128"), "`configuration` (`cfg`) must be one of auto, stylegan2, paper256"),
        (dict(loss="hinge"), "`loss` must be one of ('logistic', 'relativistic'), got 'hinge'"),
        (dict(mirrored=1), "no parameter `mirrored`; did you mean `mirror`?"),
        (dict(lr=-1), "`lr` must be at least 0, got -1"),
        (dict(loss="relativistic", path_weight=2), "`path_weight` above 0 needs `loss` logistic"),
        (dict(trunc="a"), "`truncation` must be float, got 'a'"),
    ],
)
def test_bad_values_are_refused(run_cells, parameters, message):
    with pytest.raises(ParameterError) as error:
        run_cells(until="settings = choose_settings", **parameters)
    assert message in str(error.value)


def test_its_own_losses_are_taken(run_cells):
    space = run_cells(until="settings = choose_settings", loss="relativistic")
    assert space["settings"].relativistic


def test_bad_data_are_refused(run_cells, tmp_path):
    seven = str(image_folder(tmp_path / "seven", 7))
    with pytest.raises(ParameterError, match="images to learn from, fewer than a batch"):
        run_cells(dataset=seven, image_size=32)
    many = str(image_folder(tmp_path / "many", 20))
    with pytest.raises(ParameterError, match=r"`conditional` needs classes, and .*many has no"):
        run_cells(dataset=many, image_size=32, conditional=1)


def test_weights_must_fit_the_data(run_cells, tmp_path):
    paths = {}
    for name, size, channels in (("larger", 64, 1), ("colour", 32, 3)):
        G = Generator(8, 0, 8, size, channels, synthesis_kwargs=dict(channel_base=64))
        save(StyleToImage(G), tmp_path / name)
        paths[name] = str(tmp_path / name)
    with pytest.raises(ParameterError, match="`image_size` 64 and `channels` 1; here they are 32"):
        run_cells(model=paths["larger"], image_size=32)
    with pytest.raises(ParameterError, match="`channels` 3; here they are 32 and 1"):
        run_cells(network=paths["colour"], image_size=32, channels=1)
    space = run_cells(network=paths["colour"], seeds="1-10", trunc=1.0)  # its own size and channels
    assert (space["image_size"], space["channels"], len(space["listed"])) == ("32", 3, 10)
    with pytest.raises(ParameterError, match="`model`: there is no"):
        run_cells(model=str(tmp_path / "none.pkl"), image_size=32)


def test_exported_weights_and_others_models(tmp_path):
    from synth_nb import dcgan
    from synth_nb.stylegan2 import CheckpointError

    G = Generator(8, 0, 8, 16, 1, synthesis_kwargs=dict(channel_base=64)).eval()
    path = export_official(tmp_path / "network.pkl", G=G)
    assert torch.equal(open_model(path, "cpu").generate(1), StyleToImage(G).generate(1))
    torch.save(dict(G=dict(weights=1)), tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="holds no generator of"):
        open_model(tmp_path / "other.pt", "cpu")
    run = tmp_path / "dcgan"
    (run / "model").mkdir(parents=True)
    dcgan.save(dcgan.NoiseToImage(dcgan.Generator(32, 1, width=4)), run / "model")
    (run / "manifest.json").write_text('{"loader": "synth_nb.dcgan.model:load"}')
    with pytest.raises(ParameterError, match="dcgan holds a NoiseToImage, no StyleGAN2"):
        open_model(run, "cpu")


def test_an_epoch_may_be_the_data_set(run_cells):
    space = run_cells(image_size=32, images_per_epoch=0, kimg=1, dataset="digits",
                      eval_embedders=EVAL_EMBEDDERS)
    for mark in TRAINING_CELLS:
        exec(cell_with(mark), space)
    size = len(space["images"].train)
    assert space["plan"].images_per_epoch == size and space["plan"].epochs == -(-1000 // size)


def cell_with(mark: str) -> str:
    "The one code cell of the notebook that holds some words."
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    found = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    [cell] = [source for source in found if mark in source]
    return cell


def average_of(run_cells, folder, epochs, until=0, **parameters):
    "Decays used and averaged weights of the notebook's trainer, of a training or of its beginning."
    space = run_cells(image_size=32, channel_base=128, channel_max=8, z_dim=8, dataset="digits",
                      images_per_epoch=16, kimg=0.016 * epochs, device="cpu",
                      eval_embedders=EVAL_EMBEDDERS, **parameters)
    used = []

    def decay(settings, images=None):
        used.append(ema_decay(settings, images))
        return used[-1]

    for mark in (*TRAINING_CELLS, "def evaluate_samples(", "def new_trainer("):
        exec(cell_with(mark), space)
    space |= dict(ema_decay=decay, evaluate_samples=lambda *a: {}, save_samples=lambda *a: None)
    trainer = space["new_trainer"](folder, space["images"], space["plan"])
    trainer.time_is_up = lambda: trainer.position.step == until
    trainer.fit()
    return used, [*trainer.averages["generator"].state_dict().values()]


def test_the_average_follows_its_ramp_up_and_a_stop_changes_nothing(run_cells, tmp_path):
    used, once = average_of(run_cells, tmp_path / "once", 2)
    settings = choose_settings("auto", 64, 8)
    assert round(ema_decay(settings, 1000), 3) == 0.895
    steps = dict(enumerate(used, 1))  # the first update copies
    assert all(decay == 0.5 ** (8 / (0.05 * 8 * count)) for count, decay in steps.items())
    average_of(run_cells, tmp_path / "parts", 2, until=3)
    again, parts = average_of(run_cells, tmp_path / "parts", 2)
    assert again == used[2:] and all(map(torch.equal, once, parts))


def test_a_configuration_without_ramp_up_has_one_decay(run_cells, tmp_path):
    used, _ = average_of(run_cells, tmp_path, 2, configuration="stylegan2")
    assert len(used) == 3 and set(used) == {0.5 ** (8 / 2500)}


def test_microbatches_that_cut_groups_are_refused(run_cells):
    space = run_cells(image_size=32, dataset="digits", eval_embedders=EVAL_EMBEDDERS, accumulate=8)
    with pytest.raises(ParameterError, match=r"`accumulate` 8 cuts 8 images .*: take 1 or 2, or"):
        exec(cell_with(TRAINING_CELLS[0]), space)


@pytest.mark.parametrize("path_weight", [0, 2])
def test_processes_with_two_images_each_are_taken(run_cells, path_weight):
    "Each of them measures paths of one image at least."
    space = run_cells(image_size=32, dataset="digits", eval_embedders=EVAL_EMBEDDERS,
                      batch_size=4, num_processes=2, path_weight=path_weight)
    for mark in TRAINING_CELLS:
        exec(cell_with(mark), space)
    assert space["plan"].processes == 2


def test_another_start_has_as_many_microbatches_as_the_first(run_cells, monkeypatch):
    space = run_cells(image_size=32, dataset="digits", eval_embedders=EVAL_EMBEDDERS)
    settings = space["settings"]
    count = sum(p.numel() for net in new_networks(settings, 1) for p in net.parameters())
    space["torch_device"] = SimpleNamespace(type="cuda")
    for images in (4, 8):  # that the memory holds: at first little is free, later enough
        free = memory_estimate(settings, images, count)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        for mark in TRAINING_CELLS:
            exec(cell_with(mark), space)
        assert space["plan"].accumulate == space["run"].manifest["microbatches"] == 2


@pytest.mark.parametrize("rows", [0, 1])
def test_a_second_training_that_is_stopped_leaves_the_run_stopped(rows, tmp_path):
    row = dict(images=8, recall_e=0.5, copies_e=0.1, kernel=2.0)
    space = dict(
        second=SimpleNamespace(source="demo", describe=dict), status="complete", seed=0,
        began=time.monotonic() - 300, max_minutes=20,
        column="kernel", images=SimpleNamespace(source="mr"),
        run=SimpleNamespace(update=lambda **k: None, path=lambda name: tmp_path / name),
        plan=TrainingConfig(1, 8, max_minutes=20), replace=replace, time=time, log=[row], pd=pd,
        evaluators=[SimpleNamespace(id="e")], display=lambda *a: None, sheet=lambda *a: None,
        save_figure=lambda *a: None, to_uint8=lambda x: x, read_metrics=lambda at: [row] * rows,
        new_figure=new_figure, StyleToImage=lambda net: SimpleNamespace(
            sample=lambda n, seed: SimpleNamespace(images=None)))

    def new_trainer(folder, images, plan):
        space["its_plan"] = plan
        return SimpleNamespace(fit=lambda: "stopped", model=lambda name: None)

    space["new_trainer"] = new_trainer
    for mark in ("second_trainer = new_trainer(", 'table.to_csv(run.path("kinds.csv"))'):
        exec(cell_with(mark), space)
    assert space["status"] == "stopped"
    # 5 were used before, and some seconds by the test itself
    assert space["its_plan"].max_minutes == pytest.approx(15, rel=0.02)
    assert (tmp_path / "kinds.csv").exists() == bool(rows)  # before its first evaluation: none


def test_a_second_training_waits_for_the_first():
    space = dict(second=SimpleNamespace(source="demo"), status="stopped")
    exec(cell_with("second_trainer = new_trainer("), space)
    assert space["status"] == "stopped" and not space["both"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    "The folder of a small finished run by papermill."
    folder = tmp_path_factory.mktemp("outputs")
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    env["SYNTH_NB_CACHE"] = str(folder / "cache")
    parameters = dict(SMALL, outputs=folder, run_name="small", conditional=1, path_weight=2)
    words = [word for k, v in parameters.items() for word in ("-p", k, str(v))]
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), str(folder / "out.ipynb"), *words]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "04_stylegan2" / "small"


def test_the_run_folder_explains_itself(finished):
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["status"] == "complete" and manifest["epoch"] == 2
    wanted = {"synthetic", "loss", "p", "distance", "by_epoch", "truncation", "mixing", "walk",
              "projection"}
    assert wanted <= {p.stem for p in finished.glob("*.png")}
    rows = read_metrics(finished)
    assert [row["images"] for row in rows] == [32, 64]
    assert {"kernel_efficientnet_lite2@128", "p", "path_length", "loss_path"} <= rows[-1].keys()
    assert len(list((finished / "generated").glob("seed*.png"))) == 10
    with Image.open(finished / "walk.gif") as film:
        assert film.n_frames == 32 and film.mode in ("L", "P")


def test_run_and_snapshot_are_sampled_alike(finished):
    model = load_model(finished, "cpu")
    three, more = model.sample(3, seed=5), model.sample(6, seed=5)
    assert_near(three.images, more.images[:3])
    assert more.labels.tolist() == [0, 1, 0, 1, 0, 1]
    last = open_model(finished / "checkpoints" / "epoch_2", "cpu")
    assert torch.equal(last.generate("1-2", label=1), model.generate("1-2", label=1))
    assert open_model(finished, "cpu").generator.c_dim == 2


def test_everything_that_is_remembered_is_in_the_checkpoint(finished):
    state = torch.load(finished / "checkpoints" / "newest.pt", weights_only=True)
    assert {"augment", "ada", "path_length"} <= state["modules"].keys()
    assert state["modules"]["path_length"]["mean"] > 0
    rows = read_metrics(finished)
    assert abs(state["modules"]["augment"]["p"].item() - rows[-1]["p"]) < 1e-6


def stored(folder: Path, size=32, channels=3, classes=0, average=True, **changes) -> Path:
    "A folder with both networks of a training, small ones, whose average is not the generator."
    torch.manual_seed(1)
    options = dict(channel_base=128, channel_max=8, z_dim=8, w_dim=8) | changes
    settings = choose_settings("auto", size, 8, **options)
    (G, D), (G_ema, _) = (new_networks(settings, channels, classes) for _ in range(2))
    return save_networks(folder, G=G, D=D, G_ema=G_ema if average else None)


def test_a_training_starts_from_another_network(run_cells, tmp_path, capsys):
    "Colour to grey, and no classes any more; twice as large later."
    source = stored(tmp_path / "source", classes=3)
    words = dict(resume=str(source), freezed=4, kimg=0.016, images_per_epoch=16, dataset="digits",
                 eval_embedders=EVAL_EMBEDDERS, device="cpu", outputs=str(tmp_path))
    space = run_cells(image_size=32, **words)
    settings = space["settings"]
    assert (settings.z_dim, settings.channel_base, settings.channel_max) == (8, 128, 8)
    assert settings.ema_rampup is None and settings.freeze_d == 4
    for mark in (*TRAINING_CELLS, "def evaluate_samples(", "def new_trainer("):
        exec(cell_with(mark), space)
    assert re.search(r"generator (\d+) of \1 tensors, rewritten b4.torgb", capsys.readouterr().out)
    space |= dict(evaluate_samples=lambda *a: {}, save_samples=lambda *a: None)
    trainer = space["new_trainer"](tmp_path / "run", space["images"], space["plan"])
    z = torch.randn(2, 8)
    new = dict(G=trainer.modules["generator"], G_ema=trainer.model("generator"))
    for name, network in new.items():
        old = load_network(source, name)
        by_class = [old.mapping._input(z, torch.eye(3)[[k, k]]) for k in range(3)]
        styles = old.mapping.fc1(old.mapping.fc0(sum(by_class) / 3))  # of the average class
        images = old.synthesis(styles[:, None].expand(-1, old.num_ws, -1), noise_mode="const")
        ours = network.synthesis(network.mapping(z), noise_mode="const")
        assert_near(ours.detach(), images.mean(1, keepdim=True).detach())
    frozen = {k: v.clone() for k, v in trainer.modules["discriminator"].named_buffers()}
    before = trainer.modules["generator"].synthesis.b4.const.detach().clone()
    trainer.fit()
    after = dict(trainer.modules["discriminator"].named_buffers())
    assert "b32.skip.weight" in frozen and "b16.conv0.weight" not in frozen
    assert all(torch.equal(frozen[k], after[k]) for k in frozen)
    assert not torch.equal(before, trainer.modules["generator"].synthesis.b4.const)
    transfer = space["run"].manifest["transfer"]["digits"]
    assert transfer["generator"]["new"] == []
    assert "b32.fromrgb.weight" in transfer["discriminator"]["rewritten"]
    started = read_pretrained(tmp_path / "run")  # a run folder, by its checkpoint: both networks
    assert started.D and started.images["channels"] == 1
    words |= dict(resume=str(tmp_path / "run"), freezed=0)
    again = run_cells(image_size=64, channels=1, **words)
    G, D = new_networks(again["settings"], 1)
    report = start_from(started, G, D)
    assert {k.split(".")[1] for k in report.generator.new} == {"b64"}
    assert report.discriminator.loaded > 20


def test_the_average_goes_on_from_the_stored_one(run_cells, tmp_path):
    source = stored(tmp_path / "source", channels=1)
    used, _ = average_of(run_cells, tmp_path / "run", 2, pretrained=str(source))
    assert len(used) == 4 and set(used) == {0.5 ** (8 / (8 * 10 / 32 * 1000))}


def test_what_cannot_be_started_from_is_refused(run_cells, tmp_path):
    from synth_nb import dcgan

    until, source = "settings = choose_settings", str(stored(tmp_path / "source"))
    own = dict(channel_base=0, channel_max=0, z_dim=0)
    dcgan.save(dcgan.NoiseToImage(dcgan.Generator(32, 1, width=4)), tmp_path / "dcgan")
    torch.save(dict(modules=dict(G={}, D={}), averages={}), tmp_path / "newest.pt")
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    (tmp_path / "newest.pt").rename(tmp_path / "other" / "checkpoints" / "newest.pt")
    third = {"mapping.fc0.weight": torch.zeros(4, 4), "synthesis.L0_36_8.weight": torch.zeros(2)}
    torch.save(dict(G_ema=dict(state_dict=third)), tmp_path / "third.pkl")
    for words, message in [
        (dict(pretrained=source, z_dim=64), "`z_dim` is 64, and 8 in `pretrained`"),
        (dict(pretrained=source, model=source), "give one"),
        (dict(freeze_d=2), "`freeze_d` keeps weights of `pretrained`"),
        (dict(freezed=14, pretrained=source, image_size=32, **own), "0 to 10 layers"),
        (dict(pretrained="nothing.pkl"), "no network of that name; there are ffhq256"),
        (dict(pretrained=tmp_path / "dcgan"), "does not list networks"),
        (dict(pretrained=tmp_path / "other"), "holds no StyleGAN2 generator"),
        (dict(pretrained=tmp_path / "third.pkl"), "holds no StyleGAN2 generator"),
        (dict(metrics="fid50k_full"), "`eval_embedders` ['inception']"),
    ]:
        words = {k: str(v) if isinstance(v, Path) else v for k, v in words.items()}
        with pytest.raises((ValueError, OSError)) as error:
            run_cells(until=until, **words)
        assert message in str(error.value), words


def test_layers_that_were_not_loaded_cannot_be_frozen(tmp_path):
    source = read_pretrained(stored(tmp_path / "source", 32, 1))
    sizes = pretrained_settings(source, {})
    larger = new_networks(choose_settings("auto", 64, 8, freeze_d=1, **sizes), 1)
    with pytest.raises(ParameterError, match=r"freezes b64.fromrgb .* set `freeze_d` to 0"):
        start_from(source, *larger)
    with pytest.raises(ParameterError, match="draws 1 channels, which cannot become the 4 here"):
        start_from(source, *new_networks(choose_settings("auto", 32, 8, **sizes), 4))
    G, D = new_networks(choose_settings("auto", 32, 8, **sizes), 1)
    exported = read_pretrained(export_official(tmp_path / "weights.pkl", G_ema=G, D=D))
    assert torch.equal(exported.G["synthesis.b4.const"], G.synthesis.b4.const)
    assert exported.D.keys() == D.state_dict().keys()
    half = read_pretrained(stored(tmp_path / "half", 32, 1, average=False))
    assert all(torch.equal(half.G_ema[k], half.G[k]) for k in half.G)


def test_random_noise_needs_a_seed_for_each_image():
    G = Generator(8, 0, 8, 16, 1, dict(num_layers=1), dict(channel_base=64, channel_max=8))
    model = StyleToImage(G)
    styles = model.styles(torch.zeros(2, 8))
    with pytest.raises(ParameterError, match="needs `seeds`, one for each of the 2 images, got 0"):
        model.images(styles, "random")
    assert model.images(styles, "random", [1, 2]).shape == (2, 1, 16, 16)
