"""Mean and variance of a batch, put together from those of its samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynconv_jax.functional import batch_statistics as module
from parity_tests.tolerances import assert_close

# One program each: operation by operation it takes seconds. Those of many devices are
# the same for one, and what devices exchange is in `test_sharding.py`.
batch_statistics = jax.jit(module.batch_statistics, static_argnums=1)
WAYS = {
    "one device": batch_statistics,
    "many devices": jax.jit(module._of_many_devices, static_argnums=1),
}
each_way = pytest.mark.parametrize("way", WAYS)


@functools.partial(jax.jit, static_argnums=1)
def plain(x, axes):
    mean = x.mean(axes, keepdims=True)
    return mean.squeeze(axes), jnp.square(x - mean).mean(axes)


def named(statistics):
    mean, variance = statistics
    return {"mean": mean, "variance": variance}


# Batches of a few rows, of a prime number of them, of more than rows are exchanged.
SHAPES = [(1, 5, 3), (67, 3), (256, 2, 2, 3)]


@each_way
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics_are_those_of_two_passes(way, shape, rng):
    x = jnp.asarray(3 + rng.normal(size=shape))
    axes = tuple(range(len(shape) - 1))
    actual, expected = WAYS[way](x, axes), plain(x, axes)
    assert_close(named(actual), named(expected), dtype="float64")


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("shape", [(4, 5, 3), (12, 3)], ids=str)
def test_statistics_are_the_same_over_however_many_shards(
    shape, shards, rng, monkeypatch
):
    monkeypatch.setattr(module, "batch_shards", lambda x: shards)
    x, axes = jnp.asarray(3 + rng.normal(size=shape)), tuple(range(len(shape) - 1))
    actual = module._of_many_devices(x, axes)
    assert_close(named(actual), named(plain(x, axes)), dtype="float64")


@each_way
@pytest.mark.parametrize("shape", [(48, 3, 2, 5), (128, 5)], ids=str)
@pytest.mark.parametrize("mean", [0.0, 1e2, 1e4, -1e5])
def test_float32_loses_no_digits_to_a_mean_far_from_zero(way, mean, shape, rng):
    x = (mean + rng.normal(size=shape)).astype(np.float32)
    axes = tuple(range(len(shape) - 1))
    expected = named(plain(jnp.asarray(x, "float64"), axes))
    actual = named(WAYS[way](jnp.asarray(x), axes))
    assert_close(actual, expected, dtype="float32")
    # Nor is the test one that anything would pass.
    fast = np.asarray(jnp.square(x).mean(axes) - jnp.square(x.mean(axes)), np.float64)
    is_lost = np.abs(fast - expected["variance"]).max() > 1e-4
    assert is_lost == (abs(mean) > 10)


@each_way
def test_samples_far_from_one_another_lose_no_digits(way, rng):
    levels = 1e3 * rng.normal(size=(64, 1, 1))
    x = (levels + rng.normal(size=(64, 30, 5))).astype(np.float32)
    expected = plain(jnp.asarray(x, "float64"), (0, 1))
    actual = WAYS[way](jnp.asarray(x), (0, 1))
    assert_close(named(actual), named(expected), dtype="float32")


def test_derivatives_are_those_of_two_passes(rng):
    x, tangent = (jnp.asarray(rng.normal(size=(6, 4, 3))) for _ in range(2))
    weights = [jnp.asarray(rng.normal(size=3)) for _ in range(2)]

    def derivatives(statistics):
        def value(x):
            mean, variance = statistics(x, (0, 1))
            return jnp.sum(weights[0] * mean**3 + weights[1] * jnp.sqrt(variance))

        forward = jax.jvp(lambda x: statistics(x, (0, 1)), (x,), (tangent,))[1]
        gradient, twice = jax.jvp(jax.grad(value), (x,), (tangent,))
        return {"forward": jnp.stack(forward), "gradient": gradient, "hessian": twice}

    actual, expected = (
        jax.jit(derivatives, static_argnums=0)(each)
        for each in (batch_statistics, plain)
    )
    assert_close(actual, expected, dtype="float64")


def test_statistics_of_mapped_batches_are_those_of_each(rng):
    batches = jnp.asarray(rng.normal(size=(2, 6, 4, 3)))
    mapped = jax.vmap(lambda x: batch_statistics(x, (0, 1)))(batches)
    for index, batch in enumerate(batches):
        actual = named([each[index] for each in mapped])
        assert_close(actual, named(plain(batch, (0, 1))), dtype="float64")
