"""What classifiers of images share: pooling as PyTorch pools, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dynconv_jax.models.images import global_average_pool, max_pool
from dynconv_torch.models import images as torch_images
from parity_tests.parity import as_numpy, as_torch, channels_first, channels_last


@pytest.mark.parametrize("size", [(9, 6), (4, 7), (1, 2)])
@pytest.mark.parametrize("highest", [0, -5])
def test_max_pool_is_that_of_torch_where_many_are_equal(size, highest, rng):
    x = rng.integers(highest - 2, highest + 1, size=(2, *size, 3)).astype(float)
    outputs, pull = jax.vjp(max_pool, jnp.asarray(x))
    cotangent = rng.integers(-9, 10, outputs.shape).astype(float)  # exact sums
    leaf = as_torch(channels_first(x)).requires_grad_()
    expected = torch.nn.MaxPool2d(3, 2, 1)(leaf)
    expected.backward(as_torch(channels_first(cotangent)))
    np.testing.assert_array_equal(outputs, channels_last(as_numpy(expected)))
    assert leaf.grad is not None
    (gradient,) = pull(jnp.asarray(cotangent))
    np.testing.assert_array_equal(gradient, channels_last(as_numpy(leaf.grad)))


def test_max_pool_passes_nan_through(rng):
    x = rng.normal(size=(1, 5, 6, 1))
    x[0, 2, 3, 0] = np.nan
    expected = torch.nn.functional.max_pool2d(as_torch(channels_first(x)), 3, 2, 1)
    actual = np.isnan(max_pool(jnp.asarray(x)))
    assert actual.any()
    np.testing.assert_array_equal(actual, np.isnan(channels_last(as_numpy(expected))))


def test_average_pool_sums_in_float32_also_where_images_are_narrower():
    x = np.full((1, 40, 33, 1), 1.0)
    x[0, 0, 0, 0] = 3.0
    # In bfloat16 the sum of 1320 ones stays at 256.
    ours = global_average_pool(jnp.asarray(x, jnp.bfloat16))
    theirs = torch_images.global_average_pool(
        torch.ones(1, 1, 40, 33, dtype=torch.bfloat16)
    )
    assert (ours.dtype, theirs.dtype) == (jnp.bfloat16, torch.bfloat16)
    assert float(ours[0, 0]) == 1.0 and float(theirs[0, 0]) == 1.0
