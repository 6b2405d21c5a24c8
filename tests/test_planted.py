"What `mutations.py` planted and no notebook noticed: small promises that would break silently."

from types import SimpleNamespace

import mutations
import numpy as np
import torch
from torch import nn

from synth_nb.dcgan.losses import GANLosses
from synth_nb.dcgan.model import NoiseToImage
from synth_nb.dcgan.networks import Generator
from synth_nb.diffusion import fidelity, fields, sampling
from synth_nb.diffusion import latents as latents_module
from synth_nb.diffusion.latents import LatentSet, view_embeddings
from synth_nb.diffusion.masks import mask_tokens
from synth_nb.diffusion.objective import (
    DenoisingLoss,
    held_out_loss,
    new_scheduler,
    sample_timesteps,
)
from synth_nb.segmentation.fit import random_warps, warp_pair
from synth_nb.training.loop import Phase, Trainer, TrainingConfig
from synth_nb.training.schedules import moving_average, warmup


def test_a_penalty_every_fourth_step_weighs_four_times():
    nets = dict(D=nn.Linear(3, 1))
    batch = dict(image=torch.randn(5, 3), key=list("abcde"))
    once, lazy = (GANLosses(lambda x: x, lambda b: b["image"], gamma=2.0, every=n).penalty(
        nets, batch).item() for n in (1, 4))
    assert abs(lazy / once - 4) < 1e-5


def test_labels_of_a_dcgan_are_those_of_its_images():
    torch.manual_seed(0)
    G, chosen, seen = Generator(16, 1, 4, width=4, n_classes=3), torch.tensor([2, 0, 1]), []
    samples = NoiseToImage(G).sample(3, labels=chosen)
    z = samples.conditions
    assert torch.equal(samples.images, NoiseToImage(G).images(z, labels=chosen))
    assert not torch.allclose(samples.images, NoiseToImage(G).images(z, labels=chosen.flip(0)))

    def D(images, labels):
        seen.append(labels.tolist())
        return images.mean((1, 2, 3))

    losses = GANLosses(lambda x: x, lambda b: b["image"], 4, conditional=True)
    batch = dict(image=samples.images, label=chosen, key=list("abc"))
    losses.discriminator(dict(G=G, D=D), batch)
    assert seen == [[2, 0, 1]] * 2


def test_a_moving_average_follows_running_means():
    norm = nn.BatchNorm1d(2)
    average = moving_average(norm, 0.5)
    average.update_parameters(norm)
    norm.running_mean += 1
    average.update_parameters(norm)
    assert (average.module.running_mean > 0).all()


class Ones:
    "Eight images of one number."

    def __len__(self):
        return 8

    def __getitem__(self, rows):
        return dict(x=torch.ones(len(rows), 1), key=[str(i) for i in rows])


def test_a_trainer_evaluates_in_eval_moves_the_rate_and_hands_out_the_average(tmp_path):
    net, seen = nn.Linear(1, 1), []
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    phase = Phase(lambda nets, batch: nets["net"](batch["x"]).square().mean(), optimizer,
                  scheduler=warmup(optimizer, 10))
    trainer = Trainer(tmp_path, Ones(), dict(net=net), [phase], TrainingConfig(2, 8, device="cpu"),
                      dict(net=0.9), lambda epoch: seen.append(net.training) or {})
    trainer.fit()
    assert seen == [False, False]
    assert abs(optimizer.param_groups[0]["lr"] - 0.3) < 1e-9  # of the third step
    assert trainer.model("net") is trainer.averages["net"].module
    assert not torch.equal(trainer.model("net").weight, net.weight)


def test_timestep_zero_is_learnt():
    torch.manual_seed(0)
    assert sample_timesteps(100_000, "uniform").min() == 0


def test_weights_of_timesteps_count():
    loss = DenoisingLoss(new_scheduler(), snr_gamma=5.0)
    clean, t = torch.randn(4, 1, 2, 2), torch.arange(4) * 200
    loss.weights = torch.zeros(1000)
    assert loss.error(clean, t, lambda x, t: x) == 0


def test_a_held_out_loss_is_the_mean_over_images():
    values = torch.tensor([1.0, 2.0, 6.0])

    class Data:
        def __len__(self):
            return 3

        def __getitem__(self, rows):
            return dict(latent=values[rows])

    unet = SimpleNamespace(device=torch.device("cpu"))
    found = held_out_loss(lambda nets, batch: batch["latent"].mean(), unet, Data(), batch_size=2)
    assert found == 3


def test_latents_are_scaled_back_before_they_are_decoded(monkeypatch):
    decoded = []
    vae = SimpleNamespace(config=SimpleNamespace(scaling_factor=0.5, shift_factor=None),
                          decode=lambda z, return_dict: decoded.append(z) or (z,))
    pipeline = SimpleNamespace(
        unet=SimpleNamespace(config=SimpleNamespace(in_channels=4)), vae=vae, vae_scale_factor=8,
        scheduler=new_scheduler(), device=torch.device("cpu"),
        image_processor=SimpleNamespace(postprocess=lambda images, output_type: images))
    monkeypatch.setattr(sampling, "denoise",
                        lambda unet, scheduler, z, *rest, **options: torch.ones_like(z))
    tokens = torch.zeros(1, 1, 2)
    sampling._batch(pipeline, sampling.LatentSampling(image_size=(16, 16)), 0, 0, tokens, tokens,
                    None)
    assert torch.equal(decoded[0], torch.full((1, 4, 2, 2), 2.0))


def test_latents_of_a_field_are_scaled_back_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(fields, "check_embeddings", lambda *some: None)
    latents, pixels = (fields.PixelFile(tmp_path / name, 8, 3, kind) for name, kind in (
        ("latents", np.float32), ("pixels", np.uint8)))
    latents.write(0, np.full((8, 8, 3), 0.25, np.float32))
    config = SimpleNamespace(block_out_channels=[1], scaling_factor=0.5)
    vae = SimpleNamespace(config=config, device=torch.device("cpu"),
                          decode=lambda z: SimpleNamespace(sample=z))
    model = SimpleNamespace(
        pipeline=SimpleNamespace(vae=vae, unet=None, scheduler=None, vae_scale_factor=1),
        conditioner=SimpleNamespace(tokens=lambda x: x[..., None, :], empty=lambda: [None]),
        settings=dict(image_size=(8, 8)))
    grid = fields.EmbeddingField(torch.zeros(1, 1, 2), "some encoder")
    field = SimpleNamespace(shape=(3, 8, 8), window=(8, 8), times=[0], files=[None, latents],
                            config=fields.FieldConfig())
    fields.decode_band(field, fields.embedding_parts(model, grid, (8, 8)).decoder, pixels, 0, 8)
    assert (pixels.read(0, 8) == 191).all()  # 0.5 of -1 … 1


def test_windows_of_a_field_lie_elsewhere_at_every_step():
    config = fields.FieldConfig(sampling_steps=8)
    starts = [config.axes((4, 64, 96), (16, 16), step)[1].starts.tolist() for step in range(7)]
    assert len({*map(tuple, starts)}) > 3


def test_tokens_of_a_mask_lie_where_the_network_looks_for_them():
    masks = torch.arange(8 * 12).view(1, 1, 8, 12) % 5 % 2
    tokens = mask_tokens(masks, 4)
    planes = tokens.transpose(1, 2).unflatten(2, (2, 3))  # as `PairUNet` does
    assert torch.equal(nn.functional.pixel_shuffle(planes, 4), masks * 2.0 - 1)


def test_every_view_has_the_embedding_of_that_view(monkeypatch, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (3, 1, 4, 4), dtype=np.uint8)
    first_rows = lambda embedder, views: torch.from_numpy(views[:, 0, 0].copy()).float()  # noqa: E731
    monkeypatch.setattr(latents_module, "embed_images", first_rows)
    embedder, data = SimpleNamespace(id="a", revision="b"), SimpleNamespace(images=images)
    flat, mirrored = view_embeddings(embedder, data, "flip")
    assert torch.equal(mirrored, flat.flip(1)) and not torch.equal(mirrored, flat)


def test_latents_come_with_their_own_conditions():
    numbers = torch.arange(5.0)
    data = LatentSet(numbers.view(1, 5, 1, 1, 1), numbers.view(1, 5, 1, 1), list("abcde"))
    batch = data[[3, 0, 4]]
    assert batch["latent"].flatten().tolist() == batch["condition"].flatten().tolist() == [3, 0, 4]


def test_a_mask_is_warped_with_its_image():
    torch.manual_seed(0)
    masks = torch.zeros(2, 1, 32, 32)
    masks[:, :, 4:14, 6:26] = 1
    images, warped = warp_pair(masks * 2 - 1, masks, random_warps(2, (32, 32)))
    assert torch.equal(warped, (images >= 0).float()) and not torch.equal(warped, masks)


class Named(list):
    "A side of a split, as names of its images."
    classes, labels = ("a",), torch.zeros(8, dtype=torch.long)

    def select(self, rows):
        return Named(self[i] for i in rows)


def test_scores_are_taken_on_the_other_half_of_the_held_out_images(monkeypatch, tmp_path):
    compared = {}

    def evaluate_run(folder, real, training, fakes, *rest, **options):
        compared.update(real=real, training=training, conditioning=fakes[-2])
        return "scores", "audit"

    monkeypatch.setattr(fidelity, "evaluate_run", evaluate_run)
    monkeypatch.setattr(fidelity, "to_image_set", lambda title, data: data)
    monkeypatch.setattr(fidelity, "random_subset", lambda images, n, seed: images)
    monkeypatch.setattr(fidelity, "fidelity_table", lambda *rest: None)
    monkeypatch.setattr(fidelity, "write_tables", lambda *rest: None)
    train, held_out = Named(f"train {i}" for i in range(6)), Named(f"val {i}" for i in range(4))
    embedder = SimpleNamespace(mean=torch.zeros(1))
    fidelity.evaluate_experiment(tmp_path, train, held_out, (np.array([0, 2]), np.array([1, 3])),
                                 dict(synthetic=torch.zeros(4, 1, 2, 2)), [embedder])
    assert compared == dict(real=["val 1", "val 3"], training=train,
                            conditioning=["val 0", "val 2"])


def test_every_bug_can_be_planted():
    missing = []
    for one in mutations.BUGS:
        file = mutations.ROOT / "synth_nb" / f"{one.module.replace('.', '/')}.py"
        count = file.read_text(encoding="utf-8").count(one.old)
        missing += [] if count == 1 else [f"{one.name}: {count} times in {file.name}"]
    assert missing == []
