"""A network with two routers, and whether a model is as it was."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynconv_jax import DynamicConvBlock


class TwoBlocks(nnx.Module):
    """Batch norm, and routers at two depths."""

    def __init__(self):
        options: dict[str, Any] = dict(param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        self.blocks = nnx.List(
            [
                DynamicConvBlock(3, 5, (1, 1), **options),
                DynamicConvBlock(5, 4, (1, 1), num_experts=2, **options),
            ]
        )

    def __call__(self, inputs):
        """Returns the output of the second."""
        for block in self.blocks:
            inputs = block(inputs)
        return inputs


def bits(tree):
    """Returns dtype, shape and bytes of every array."""

    def of_leaf(leaf):
        if jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        return array.dtype, array.shape, array.tobytes()

    return [of_leaf(leaf) for leaf in jax.tree.leaves(tree)]


def assert_untouched(model, before):
    """Asserts that structure, modes and every bit are those of `nnx.split` before."""
    graphdef, state = nnx.split(model)
    assert graphdef == before[0]
    assert bits(state) == before[1]


def snapshot(model):
    """Returns what `assert_untouched` compares with."""
    graphdef, state = nnx.split(model)
    return graphdef, bits(state)
