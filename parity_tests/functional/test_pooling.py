"""adaptive_avg_pool: the bins of PyTorch."""

import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F

from dynconv_jax.functional.pooling import adaptive_avg_pool
from parity_tests.parity import assert_close


@pytest.mark.parametrize("spatial", [(1,), (5,), (2, 7), (1, 1), (3, 1, 4)])
@pytest.mark.parametrize("bins", [1, 2, 3])
def test_adaptive_pooling_is_that_of_pytorch(spatial, bins, rng):
    x = rng.normal(size=(2, *spatial, 3))
    pool = getattr(F, f"adaptive_avg_pool{len(spatial)}d")
    expected = pool(torch.from_numpy(x).movedim(-1, 1), bins).movedim(1, -1)
    actual = adaptive_avg_pool(jnp.asarray(x), bins, "float64")
    assert_close({"means": actual}, {"means": expected.numpy()}, dtype="float64")


def test_pooled_sums_are_taken_in_the_dtype_asked_for():
    pooled = adaptive_avg_pool(jnp.ones((2, 5, 4), jnp.bfloat16), 2, "float32")
    assert pooled.dtype == jnp.float32
