"""Pooling: the means and the bins of PyTorch."""

import jax.numpy as jnp
import pytest
import torch

from dynconv_jax.functional.pooling import adaptive_avg_pool, spatial_mean
from dynconv_torch.functional import pooling as torch_pooling
from parity_tests.tolerances import assert_close


@pytest.mark.parametrize("spatial", [(1,), (5,), (2, 7), (1, 1), (3, 1, 4)])
@pytest.mark.parametrize("bins", [1, 2, 3])
def test_adaptive_pooling_is_that_of_pytorch(spatial, bins, rng):
    x = rng.normal(size=(2, *spatial, 3))
    pool = getattr(torch.nn, f"AdaptiveAvgPool{len(spatial)}d")(bins)
    channels_first = torch.from_numpy(x).movedim(-1, 1)
    expected = pool(channels_first).movedim(1, -1)
    twin = torch_pooling.adaptive_avg_pool(channels_first, bins).movedim(1, -1)
    exported = torch_pooling._pool_by_product(channels_first, bins).movedim(1, -1)
    actual = adaptive_avg_pool(jnp.asarray(x), bins)
    for found in (twin.numpy(), exported.numpy(), actual):
        assert_close({"means": found}, {"means": expected.numpy()}, dtype="float64")


@pytest.mark.parametrize("spatial", [(), (5,), (2, 7), (3, 1, 4)])
def test_mean_over_pixels_is_that_of_numpy(spatial, rng):
    x = rng.normal(size=(2, *spatial, 3))
    expected = x.reshape(2, -1, 3).mean(axis=1)
    twin = torch_pooling.spatial_mean(torch.from_numpy(x).movedim(-1, 1))
    for actual in (spatial_mean(jnp.asarray(x)), twin.numpy()):
        assert_close({"mean": actual}, {"mean": expected}, dtype="float64")


@pytest.mark.parametrize(
    "inputs, asked, expected",
    [
        ("bfloat16", None, "float32"),
        ("float16", "bfloat16", "float32"),
        ("float32", "float64", "float64"),
        ("float64", None, "float64"),
    ],
)
def test_sums_are_taken_in_float32_at_least(inputs, asked, expected):
    x = jnp.ones((2, 5, 4), inputs)
    assert spatial_mean(x, asked).dtype == expected
    assert adaptive_avg_pool(x, 2, asked).dtype == expected
    theirs = torch.ones((2, 4, 5), dtype=getattr(torch, inputs))
    others = () if asked is None else (getattr(torch, asked),)
    for pooled in (
        torch_pooling.spatial_mean(theirs, *others),
        torch_pooling.adaptive_avg_pool(theirs, 2, *others),
    ):
        assert pooled.dtype == getattr(torch, expected)
