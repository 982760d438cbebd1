"""`"patches"`: whole windows gathered, one product.

The windows of a sample are laid side by side, k²·C numbers a pixel, and contracted with
the sample's kernel: over a batch, one batched matrix product forward and two backward.
Gathering is what costs on large planes. A 1×1 convolution gathers nothing.
"""

import math

import jax

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.groups import (
    group_geometry,
    merge_outputs,
    split_inputs,
    split_kernel,
)
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.windows import gather_windows


def arrange_for_patches(kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Lays out a kernel (..., *k, C/g, O) as the product takes it.

    Returns:
        Shape (..., taps·C, O), or (..., g, taps·C/g, O/g) for more than one group.
    """
    split = split_kernel(kernel, geometry)
    rows = math.prod(split.shape[-geometry.rank - 2 : -1])
    return split.reshape(*split.shape[: -geometry.rank - 2], rows, split.shape[-1])


def gather_patches(inputs: jax.Array, geometry: Geometry) -> jax.Array:
    """Gathers the windows of inputs (..., *S, C).

    Returns:
        Shape (..., *S_out, taps·C), or (..., g, *S_out, taps·C/g).
    """
    return gather_windows(split_inputs(inputs, geometry), group_geometry(geometry))


def multiply_patches(
    patches: jax.Array, kernel: jax.Array, geometry: Geometry, numerics: Numerics
) -> jax.Array:
    """Multiplies patches by a kernel from `arrange_for_patches`.

    Args:
        patches: From `gather_patches`.
        kernel: With the leading axes of the inputs, or with none: one kernel for all.
        geometry: The convolution.
        numerics: Its numerical options.

    Returns:
        Shape (..., *S_out, O).
    """
    outputs = numerics.multiply(patches, kernel, geometry.rank)
    return merge_outputs(outputs, geometry)


def conv_by_patches(
    inputs: jax.Array, kernel: jax.Array, geometry: Geometry, numerics: Numerics
) -> jax.Array:
    """Convolves as one product of gathered windows.

    Args:
        inputs: Shape (..., *S, C).
        kernel: From `arrange_for_patches`, with the leading axes of `inputs`, or with
            none: one kernel for all.
        geometry: The convolution; any.
        numerics: Its numerical options.

    Returns:
        Shape (..., *S_out, O).
    """
    patches = gather_patches(inputs, geometry)
    return multiply_patches(patches, kernel, geometry, numerics)
