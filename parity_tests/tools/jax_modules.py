"""Modules of JAX alone: built without running initialisers, and held by another."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def build(make, seed=0):
    """Returns the module that `make` builds, with random values in it.

    Initialisers are not run: they would compile a program for every shape.
    """
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # of a dropout
            return jax.random.key(seed)
        value = rng.uniform(0.1, 100, leaf.shape).astype(leaf.dtype)
        return jax.device_put(value)

    graphdef, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graphdef, jax.tree.map(draw, state))


class Holder(nnx.Module):
    """A module that is what its part is, one level below."""

    def __init__(self, part):
        self.part = part

    def __call__(self, x, memory=None):
        """Returns what the part does."""
        return self.part(x) if memory is None else self.part(x, memory)
