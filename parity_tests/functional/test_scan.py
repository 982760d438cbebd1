"""The loop over samples, a few at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynconv_jax.functional.scan import map_samples


def square(sample, scale, absent):
    assert absent is None
    return jnp.sin(sample) * scale


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 9])
def test_every_sample_is_mapped_and_none_twice(chunk, rng):
    samples, scales = rng.normal(size=(7, 3)), rng.normal(size=7)
    mapped = map_samples(square, (jnp.array(samples), jnp.array(scales), None), chunk)
    np.testing.assert_allclose(mapped, np.sin(samples) * scales[:, None])


def test_what_a_step_computes_is_not_kept_for_the_gradient_nor_fenced_off():
    def loss(samples, scales):
        return map_samples(square, (samples, scales, None), 2).sum()

    operands = jnp.ones((6, 3)), jnp.ones(6)
    program = str(jax.make_jaxpr(jax.grad(loss))(*operands))
    assert "prevent_cse=False" in program
    assert "prevent_cse=True" not in program
    lowered = jax.jit(jax.grad(loss)).lower(*operands).as_text()
    assert "optimization_barrier" not in lowered
