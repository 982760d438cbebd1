"""`"experts"`: all experts applied to all samples, then the weighted sum.

Convolution is linear in its kernel, so the mixture may be taken after it. That is K
times the arithmetic, but no kernel per sample is ever written, read or differentiated,
and so it wins where a sample has few pixels.
"""

import functools

import jax
import jax.numpy as jnp

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.patches import (
    arrange_for_patches,
    gather_patches,
    multiply_patches,
)


def conv_by_experts(
    inputs: jax.Array,
    attention: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    numerics: Numerics,
) -> jax.Array:
    """Convolves with all experts and sums their outputs by attention.

    Args:
        inputs: Shape (B, *S, C).
        attention: Shape (B, K).
        kernel: The experts, shape (K, *k, C/g, O).
        geometry: The convolution; any.
        numerics: Its numerical options. The sum is taken in float32 at least.

    Returns:
        Shape (B, *S_out, O).
    """
    patches = gather_patches(inputs, geometry)
    wide = numerics.widened(inputs.dtype)
    weights = attention.astype(wide.preferred_element_type)
    per_pixel = weights.reshape(*weights.shape, *(1,) * (geometry.rank + 1))
    # One product an expert: of a single wide one, the slices that are summed would cost
    # a padded copy each in the gradient.
    mixed = functools.reduce(
        jnp.add,
        (
            per_pixel[:, index] * multiply_patches(patches, expert, geometry, wide)
            for index, expert in enumerate(arrange_for_patches(kernel, geometry))
        ),
    )
    return mixed.astype(numerics.output_dtype(inputs.dtype))
