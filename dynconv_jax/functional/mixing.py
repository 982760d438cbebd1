"""Mixing: one array for each sample of K that are stacked, Σ_k a_ik W_k.

In two ways that compute the same. A product is what a CPU and a GPU are fastest at; its
result lies in memory. Multiples that are added up one by one may be computed wherever
they are read, and a compiler for TPUs does that.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from dynconv_jax.functional.checks import take_arrays
from dynconv_jax.functional.numerics import (
    at_least_float32,
    contract_rounded,
)
from dynconv_jax.functional.sharding import leave_to_partitioner


def mix_kernels(
    attention: Shaped[jax.Array, "batch experts"],
    kernel: Float[jax.Array, "experts *kernel"],
    *,
    precision: lax.PrecisionLike = None,
) -> Float[jax.Array, "batch *kernel"]:
    """Mixes stacked experts into one array per sample, Σ_k a_ik W_k.

    Args:
        attention: The weights. They are cast to the dtype of `kernel`.
        kernel: Kernels, or biases.
        precision: As in `jax.numpy.matmul`.

    Returns:
        The mixtures, in the dtype of `kernel`.

    Raises:
        ValueError: If the two do not agree on K, or the kernels are not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> mix_kernels(jnp.full((2, 4), 0.25), jnp.ones((4, 3, 3, 8, 16))).shape
        (2, 3, 3, 8, 16)
    """
    attention, kernel = take_arrays(attention=attention, kernel=kernel)
    if attention.ndim != 2 or attention.shape[1] != kernel.shape[0]:
        raise ValueError(
            f"`attention` (shape {attention.shape}) must be (batch, num_experts) with "
            f"the {kernel.shape[0]} experts of `kernel` (shape {kernel.shape})"
        )
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise ValueError(
            f"`kernel` ({kernel.dtype}) must be floating, to be mixed; cast it to "
            "float32"
        )

    def mix(attention: jax.Array, kernel: jax.Array) -> jax.Array:
        return mix_by_product(attention, kernel, kernel.dtype, precision)

    rest = [(kernel, axis, kernel.shape[axis]) for axis in range(1, kernel.ndim)]
    return leave_to_partitioner(
        mix,
        (attention, kernel),
        [(attention, 0, attention.shape[0]), *rest],
        stack=kernel,
    )


def mix_by_sum(attention: jax.Array, kernel: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Mixes as `mix_by_product` does, element by element, in float32 at least."""
    wide = at_least_float32(dtype)
    weights = attention.astype(dtype).astype(wide)
    batch = attention.ndim - 1
    weights = jnp.expand_dims(weights, tuple(range(batch + 1, batch + kernel.ndim)))
    multiples = (
        lax.index_in_dim(weights, index, batch, keepdims=False)
        * jnp.expand_dims(expert, tuple(range(batch)))
        for index, expert in enumerate(kernel.astype(wide))
    )
    return functools.reduce(jnp.add, multiples).astype(dtype)


def mix_by_product(
    attention: jax.Array,
    kernel: jax.Array,
    dtype: DTypeLike,
    precision: lax.PrecisionLike,
) -> jax.Array:
    """Mixes experts (K, ...) by attention (..., K), in a dtype."""
    # Two-dimensional, so that the transposes in its gradient fold into the products.
    experts = kernel.reshape(kernel.shape[0], -1)
    flat = contract_rounded(
        "...k,kn->...n", attention, experts, dtype, dtype, precision
    )
    return flat.reshape(*attention.shape[:-1], *kernel.shape[1:])
