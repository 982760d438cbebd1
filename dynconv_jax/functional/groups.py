"""Channel groups: each is a dense convolution of its own, on one more batch axis."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dynconv_jax.functional.geometry import Geometry


def group_geometry(geometry: Geometry) -> Geometry:
    """Returns the geometry of one group, which is dense."""
    groups = geometry.feature_group_count
    return dataclasses.replace(
        geometry,
        in_features=geometry.in_features // groups,
        out_features=geometry.out_features // groups,
        feature_group_count=1,
    )


def split_inputs(inputs: jax.Array, geometry: Geometry) -> jax.Array:
    """Returns inputs (..., *S, C) as (..., g, *S, C/g); one group adds no axis."""
    groups = geometry.feature_group_count
    if groups == 1:
        return inputs
    width = geometry.in_features // groups
    split = inputs.reshape(*inputs.shape[:-1], groups, width)
    return jnp.moveaxis(split, -2, -2 - geometry.rank)


def repeat_channels(
    inputs: jax.Array, geometry: Geometry, dtype: DTypeLike
) -> jax.Array:
    """Returns depthwise inputs (..., C) with each channel once for each of its outputs.

    The result has shape (..., O), and `dtype`; with one output a channel, nothing is
    done.
    """
    multiplier = geometry.out_features // geometry.in_features
    if multiplier == 1:
        return inputs
    wide = inputs.astype(dtype)[..., None]
    repeated = jnp.broadcast_to(wide, (*inputs.shape, multiplier))
    return repeated.reshape(*inputs.shape[:-1], geometry.out_features)


def split_kernel(kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Returns a kernel (..., *k, C/g, O) as (..., g, *k, C/g, O/g)."""
    groups = geometry.feature_group_count
    if groups == 1:
        return kernel
    width = geometry.out_features // groups
    split = kernel.reshape(*kernel.shape[:-1], groups, width)
    return jnp.moveaxis(split, -2, -3 - geometry.rank)


def merge_outputs(outputs: jax.Array, geometry: Geometry) -> jax.Array:
    """Returns outputs (..., g, *S_out, O/g) as (..., *S_out, O)."""
    if geometry.feature_group_count == 1:
        return outputs
    merged = jnp.moveaxis(outputs, -2 - geometry.rank, -2)
    return merged.reshape(*merged.shape[:-2], geometry.out_features)
