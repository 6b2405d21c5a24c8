"Filled regions: what stays, what they depend on, and every sampler."

import pytest
import torch

from synth_nb.core.parameters import ParameterError
from synth_nb.core.seeding import fork_rng, generators
from synth_nb.core.testing import assert_near
from synth_nb.diffusion.autoencoder import new_autoencoder
from synth_nb.diffusion.conditions import EmbeddingConditioner
from synth_nb.diffusion.experiment import ConditionedModel
from synth_nb.diffusion.inpainting import KnownRegion, harmonic_fill, latent_holes, resampling_path
from synth_nb.diffusion.model import new_unet
from synth_nb.diffusion.objective import PREDICTION_TYPES, SAMPLERS, new_scheduler, noise_levels
from synth_nb.diffusion.pipeline import new_pipeline
from synth_nb.diffusion.sampling import SamplingConfig, denoise, noise_from

KINDS = [(kind, sampler) for kind in PREDICTION_TYPES for sampler in SAMPLERS
         if (kind, sampler) != ("flow_prediction", "ddpm")]  # fmt: skip


def untrained(kind: str = "v_prediction") -> ConditionedModel:
    with fork_rng(0):
        conditioner = EmbeddingConditioner("none", torch.zeros(6), torch.eye(6))
        vae, unet = new_autoencoder(widths=(8, 16, 16)).eval(), new_unet(conditioner.width).eval()
        conditions = torch.randn(3, 6)
    settings = dict(image_size=[32, 40], sampling_steps=3, guidance_scale=2.0, best_of=2)
    pipeline = new_pipeline(vae, unet, new_scheduler(kind))
    return ConditionedModel(pipeline, conditioner, conditions, torch.zeros(3), settings)


def regions() -> tuple[torch.Tensor, torch.Tensor]:
    "Three images and holes: a box, a region at the edge of the image, a single pixel."
    images = torch.rand(3, 3, 32, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    holes = torch.zeros(3, 1, 32, 40)
    holes[0, :, 8:20, 10:30] = holes[1, :, 20:, :12] = holes[2, :, 15, 21] = 1
    return images, holes


@pytest.mark.parametrize("kind, sampler", KINDS)
def test_only_holes_change_and_each_image_is_filled_alone(kind, sampler):
    model, (images, holes) = untrained(kind), regions()
    options = dict(seed=4, sampler=sampler, resampling_steps=2)
    filled = model.fill(images, holes, model.conditions, **options)
    assert torch.equal(torch.where(holes > 0, 0, filled.images), torch.where(holes > 0, 0, images))
    assert not filled.images.requires_grad and filled.images.abs().max() <= 1
    assert (filled.images != images).any(1, keepdim=True).sum() > 0.9 * holes.sum()
    again = model.fill(images, holes, model.conditions, batch_size=2, **options)
    assert_near(again.images, filled.images)
    other = model.fill(images, holes, model.conditions, **options | dict(seed=5))
    assert not torch.allclose(other.images, filled.images, atol=1e-3)


def test_what_is_replaced_has_no_part_in_the_result():
    model, (images, holes) = untrained(), regions()
    kwargs = dict(conditions=model.conditions, resampling_steps=2)
    first = model.fill(images, holes, **kwargs).images
    erased = torch.where(holes > 0, -0.5, images)
    assert torch.equal(model.fill(erased, 255 * holes, **kwargs).images, first)


@pytest.mark.parametrize("kind, sampler", KINDS)
def test_a_network_that_knows_the_image_restores_it(kind, sampler):
    "Whatever the path: each way back lands on the noise level that its step expects."
    clean = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    scheduler = SamplingConfig(sampler, 8).scheduler(new_scheduler(kind))
    alpha, sigma = noise_levels(new_scheduler(kind))
    noise_of = []

    def network(x, t, return_dict):
        i = int(t)
        a, s = alpha[i].clamp_min(1e-4), sigma[i]
        noise = (x - a * clean) / s
        noise_of.append(noise.std().item())
        return ({"epsilon": noise, "v_prediction": a * noise - s * clean}.get(kind, noise - clean),)

    holes = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    holes[..., 2:6, 3:7] = True
    own, config = generators(0, 0, 2), SamplingConfig(sampler, 8, 1.0)
    for jump_length in (1, 2):
        known = KnownRegion(clean, holes, 3, jump_length)
        noise_of.clear()
        start = noise_from(own, (4, 8, 8)) * scheduler.init_noise_sigma
        x = denoise(network, scheduler, start, None, None, config, generators=own,
                    hook=known(scheduler, own))  # fmt: skip
        scheduler = config.scheduler(new_scheduler(kind))
        assert len(noise_of) == len(resampling_path(8, 3, jump_length))
        assert (x - clean).abs().max() < 0.05
        assert max(noise_of) < 1.25 and min(noise_of[:3]) > 0.75


@pytest.mark.parametrize("options", [dict(resampling_steps=0), dict(jump_length=0)])
def test_numbers_below_one_are_refused_before_anything_is_sampled(options):
    model, (images, holes) = untrained(), regions()
    with pytest.raises(ParameterError, match=f"`{next(iter(options))}` must be at least 1, got 0"):
        model.fill(images, holes, model.conditions, **options)


def test_harmonic_values_stay_between_those_around():
    images, holes = regions()
    filled = harmonic_fill(images, holes)
    assert torch.equal(filled[holes.expand_as(images) == 0], images[holes.expand_as(images) == 0])
    assert filled.abs().max() <= images.abs().max()
    assert_near(filled[2, :, 15, 21], torch.stack(
        [images[2, :, y, x] for y, x in ((14, 21), (16, 21), (15, 20), (15, 22))]).mean(0))
    assert latent_holes(holes, 4).sum((1, 2, 3)).tolist() == [5 * 8, 4 * 4, 3 * 3]
