"""Low-passes of images: which frequencies they keep, and that both packages agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from dynconv_jax.functional import frequency_bands
from dynconv_torch.functional import frequency_bands as of_the_twin
from parity_tests.tolerances import assert_close

MODULES = pytest.mark.parametrize("module", [frequency_bands, of_the_twin])
OTHERS = ("stretched", "one_sided")


@MODULES
def test_the_stretched_mask_is_as_drawn_at_its_own_size(module):
    # 1 / 4 is left out there, and 1 / 8 and 1 / 16 are kept: float32 rounds the bounds.
    for reduction, highest in ((2, 15), (4, 8), (8, 4)):
        rows, columns = module.low_pass_masks("stretched", 64, 64, reduction)
        assert np.flatnonzero(columns).tolist() == list(range(highest + 1))
        assert rows.sum() == 2 * highest + 1
        assert rows[: highest + 1].all() and rows[-highest:].all()


@MODULES
@pytest.mark.parametrize("size", [(9, 14), (100, 151), (128, 64), (1, 3)])
def test_the_mask_is_stretched_by_its_nearest_entries(module, size):
    for reduction in (2, 4, 8):
        own = module.low_pass_masks("stretched", 64, 64, reduction)
        found = module.low_pass_masks("stretched", *size, reduction)
        lengths = size[0], size[1] // 2 + 1
        for mask, stretched, length in zip(own, found, lengths, strict=True):
            line = torch.from_numpy(mask).float()[None, None]
            nearest = functional.interpolate(line, size=length)[0, 0].bool()
            np.testing.assert_array_equal(stretched, nearest.numpy())


@MODULES
@pytest.mark.parametrize("height", [8, 9, 12])
def test_the_one_sided_low_pass_keeps_all_negative_frequencies(module, height):
    rows, columns = module.low_pass_masks("one_sided", height, 16, 4)
    negative = np.fft.fftfreq(height) < 0
    assert rows[negative].all() and rows[0]
    assert rows[~negative].sum() == -(-height // 8)  # below 1 / 8
    assert columns.tolist() == [True] * 2 + [False] * 7


@pytest.mark.parametrize("low_pass", frequency_bands.LOW_PASSES)
@pytest.mark.parametrize("size", [(8, 7), (13, 12)])
def test_both_packages_weigh_the_same_bands(low_pass, size, rng):
    images, gates = rng.normal(size=(2, *size, 3)), rng.random(size=(2, *size, 3))
    first, second = (torch.from_numpy(each).movedim(-1, 1) for each in (images, gates))
    expected = of_the_twin.modulate_bands(first, second, (2, 4, 8), low_pass)
    with jax.enable_x64(True):
        given = jnp.asarray(images), jnp.asarray(gates)
        found = frequency_bands.modulate_bands(*given, (2, 4, 8), low_pass)
    assert_close({"": found}, {"": expected.movedim(1, -1)}, dtype="float64")
    assert not np.allclose(found, images)


@pytest.mark.parametrize("low_pass", OTHERS)
def test_gates_of_one_leave_an_image_as_it_is(low_pass, rng):
    images = rng.normal(size=(1, 6, 9, 2))
    with jax.enable_x64(True):
        ones = jnp.ones((1, 6, 9, 3))
        found = frequency_bands.modulate_bands(images, ones, (2, 4, 8), low_pass)
    assert_close({"": found}, {"": images}, dtype="float64")


@pytest.mark.parametrize("low_pass", OTHERS)
def test_masks_need_sizes_in_numbers(low_pass):
    shapes = jax.export.symbolic_args_specs(
        (np.ones((1, 8, 8, 2), "f4"), np.ones((1, 8, 8, 3), "f4")), "1, h, 8, _"
    )
    with pytest.raises(ValueError, match="needs images whose size is in numbers"):
        jax.eval_shape(
            lambda images, gates: frequency_bands.modulate_bands(
                images, gates, (2, 4, 8), low_pass
            ),
            *shapes,
        )
