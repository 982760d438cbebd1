"""`"experts"`: all experts applied to all samples, then the weighted sum.

Convolution is linear in its kernel, so the mixture may be taken after it. That is K
times the arithmetic, but no kernel per sample is ever written, read or differentiated,
and so it wins where a sample has few pixels.

`"experts by convolution"` is the same as one static convolution with K·O outputs, for
chips on which that runs best and gathered windows are what costs.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics, at_least_float32, multiply_wide
from dynconv_jax.functional.patches import (
    arrange_for_patches,
    gather_patches,
    multiply_patches,
)
from dynconv_jax.functional.static import conv_by_one_kernel


def conv_by_experts(
    inputs: Float[jax.Array, "batch *spatial in_features"],
    attention: Shaped[jax.Array, "batch experts"] | None,
    kernel: Float[jax.Array, "experts *window in_per_group out_features"],
    geometry: Geometry,
    numerics: Numerics,
    spatial_attention: Shaped[jax.Array, "batch *window"] | None = None,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Convolves with all experts and sums their outputs by attention.

    Args:
        inputs: The samples.
        attention: The weights, or None for a single expert with the weight 1.
        kernel: The experts, as wide as the inputs or wider.
        geometry: The convolution; any.
        numerics: Its numerical options. The sum is taken in float32 at least.
        spatial_attention: The weights of the taps, or None.

    Returns:
        The outputs.
    """
    patches = gather_patches(inputs, geometry)
    if spatial_attention is not None:
        patches = _weigh_taps(patches, spatial_attention)
    experts = arrange_for_patches(kernel, geometry)
    if attention is None:
        return multiply_patches(patches, experts[0], geometry, numerics)
    wide = numerics.widened(inputs.dtype)
    weights = attention.astype(wide.preferred_element_type)
    per_pixel = weights.reshape(*weights.shape, *(1,) * (geometry.rank + 1))
    # One product an expert: of a single wide one, the slices that are summed would cost
    # a padded copy each in the gradient.
    mixed = functools.reduce(
        jnp.add,
        (
            per_pixel[:, index] * multiply_patches(patches, expert, geometry, wide)
            for index, expert in enumerate(experts)
        ),
    )
    return mixed.astype(numerics.output_dtype(inputs.dtype))


def conv_by_all_experts(
    inputs: Float[jax.Array, "batch *spatial in_features"],
    attention: Shaped[jax.Array, "batch experts"] | None,
    kernel: Float[jax.Array, "experts *window in_features out_features"],
    geometry: Geometry,
    numerics: Numerics,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Convolves once, with the outputs of all experts, and sums them by attention.

    The outputs of the experts have the dtype of the result, as the cotangents of both
    then have: a convolution of float32 is several times slower on a GPU.

    Args:
        inputs: The samples.
        attention: The weights, or None for a single expert with the weight 1.
        kernel: The experts.
        geometry: The convolution, of one group: XLA gathers a sharded batch for those
            of more.
        numerics: Its numerical options. The sum is taken in float32 at least.

    Returns:
        The outputs.
    """
    if attention is None:
        return conv_by_one_kernel(inputs, kernel[0], geometry, numerics)
    experts, width = kernel.shape[0], geometry.out_features
    wide = dataclasses.replace(geometry, out_features=experts * width)
    joined = jnp.concatenate(list(kernel), axis=-1)
    outputs = conv_by_one_kernel(inputs, joined, wide, numerics)
    accumulator = at_least_float32(outputs.dtype)
    per_pixel = jnp.expand_dims(attention, tuple(range(1, geometry.rank + 1)))
    mixed = functools.reduce(
        jnp.add,
        (
            outputs[..., index * width : (index + 1) * width].astype(accumulator)
            * per_pixel[..., index : index + 1].astype(accumulator)
            for index in range(experts)
        ),
    )
    return mixed.astype(numerics.output_dtype(inputs.dtype))


def _weigh_taps(patches: jax.Array, weights: jax.Array) -> jax.Array:
    """Multiplies patches (B, ..., taps·C/g) by the weights (B, *k) of their taps."""
    batch, *outer, rows = patches.shape
    taps = math.prod(weights.shape[1:])
    # In two steps: of a batch sharded over explicit axes a reshape does but one thing.
    per_tap = weights.reshape(batch, taps)
    per_tap = jnp.expand_dims(per_tap, (*range(1, len(outer) + 1), len(outer) + 2))
    split = patches.reshape(batch, *outer, taps, rows // taps)
    weighed = multiply_wide(split, per_tap).astype(patches.dtype)
    return weighed.reshape(patches.shape)
