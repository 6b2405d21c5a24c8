"What a phantom promises: exact masks, images that follow from seed and number alone."

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from synth_nb.core.parameters import ParameterError
from synth_nb.data.phantoms.em import em_phantom, em_phantom_source
from synth_nb.data.phantoms.mr import mr_phantom, mr_phantom_source

sources = [mr_phantom_source, em_phantom_source]


@pytest.mark.parametrize("source", sources)
def test_order_threads_and_number_change_nothing(source):
    one, other = source(48, 64, n=40, seed=3), source(48, 64, n=20, seed=3)
    backwards = {i: one.content(i) for i in reversed(range(20))}
    with ThreadPoolExecutor(4) as pool:
        for i, image in enumerate(pool.map(other.content, range(20))):
            assert np.array_equal(image, backwards[i])
    assert len({image.tobytes() for image in backwards.values()}) == 20


@pytest.mark.parametrize("source", sources)
@pytest.mark.parametrize("size", [(32, 32), (33, 57), (200, 64)])
def test_any_size(source, size):
    phantom = source(*size, n=4)
    for i in range(4):
        image, mask = phantom.content(i), phantom.masks(i)
        assert image.shape == mask.shape == size and image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 255}
        assert image.std() > 10


@pytest.mark.parametrize("source", sources)
def test_refusals(source):
    with pytest.raises(ParameterError, match="`image_size` 16x64: phantoms need at least 32"):
        source(16, 64)
    with pytest.raises(ParameterError, match="`n` must be at least 2, got 1"):
        source(64, 64, n=1)


def test_every_lesion_is_there_and_differs_from_the_slice_without():
    for seed in range(60):
        image, mask = mr_phantom(64, 64, seed, lesion=True)
        assert 8 < (mask > 0).sum() < 0.2 * mask.size, seed
        assert image[mask > 0].mean() > 15, seed


def test_a_lesion_shows_inside_its_mask():
    "Bright or dark against a ring of tissue around it, in most of them."
    from scipy.ndimage import binary_dilation, binary_erosion

    contrast = []
    for seed in range(40):
        image, mask = mr_phantom(96, 96, seed, lesion=True)
        inner = binary_erosion(mask > 0, iterations=1)
        ring = binary_dilation(mask > 0, iterations=6) & ~binary_dilation(mask > 0, iterations=3)
        if inner.any():
            contrast.append(abs(float(image[inner].mean()) - float(image[ring].mean())))
    assert np.mean(np.array(contrast) > 10) > 0.75


def test_the_mask_of_mitochondria_ends_where_their_dark_membrane_does():
    inside, outside = [], []
    from scipy.ndimage import binary_dilation, binary_erosion

    for seed in range(12):
        image, mask = em_phantom(160, 160, seed, 4)
        mask = mask > 0
        inside.append(image[mask & ~binary_erosion(mask, iterations=2)])
        outside.append(image[binary_dilation(mask, iterations=3) & ~binary_dilation(mask)])
    assert np.concatenate(inside).mean() < np.concatenate(outside).mean() - 30


def test_volumes_are_groups_and_differ():
    source = em_phantom_source(64, 64, n=33)
    assert [source.groups.count(g) for g in sorted(set(source.groups))] == [16, 16, 1]

    def alike(i, j):
        a, b = (source.content(k).astype(float).ravel() for k in (i, j))
        return np.corrcoef(a, b)[0, 1]

    # a membrane is two pixels wide, so even the next section correlates only somewhat
    assert np.mean([alike(i, i + 1) for i in range(14)]) > 0.2
    assert abs(np.mean([alike(i, i + 16) for i in range(14)])) < 0.1
