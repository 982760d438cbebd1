"""`"rows"`: windows gathered along every axis but the first, then shifted sums.

Gathering along one axis of an image costs k·C numbers a pixel where whole windows cost
k²·C. One product with the taps of all k kernel rows at once gives k partial results a
row of pixels, k·O numbers, and each output row is the sum of k of them, shifted. With a
stride, the rows of the image split by their remainder, one product for each.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.groups import (
    group_geometry,
    merge_outputs,
    split_inputs,
    split_kernel,
)
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.windows import gather_windows, pad_spatial


def kernel_rows(geometry: Geometry) -> list[list[tuple[int, int]]]:
    """Groups the kernel rows by the remainder of where they begin.

    Returns:
        For each remainder modulo the stride, the kernel rows that begin there, as
        (index, how many strides down).
    """
    stride, dilation = geometry.strides[0], geometry.kernel_dilation[0]
    begins = [(index, index * dilation) for index in range(geometry.kernel_size[0])]
    return [
        [(index, begin // stride) for index, begin in begins if begin % stride == rest]
        for rest in range(stride)
    ]


def arrange_for_rows(kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Lays out a kernel (..., k, *k', C/g, O) as the product takes it.

    Returns:
        Shape (..., taps'·C, k·O), taps' without those of the first axis and the k
        kernel rows in the order in which the products take them; for more than one
        group, (..., g, taps'·C/g, k·O/g).
    """
    split = split_kernel(kernel, geometry)
    rows, *inner, out_features = split.shape[-geometry.rank - 2 :]
    batch = split.shape[: -geometry.rank - 2]
    columns = split.reshape(*batch, rows, math.prod(inner), out_features)
    taken = [index for group in kernel_rows(geometry) for index, _ in group]
    if taken != sorted(taken):
        columns = jnp.stack([columns[..., index, :, :] for index in taken], axis=-3)
    return jnp.moveaxis(columns, -3, -2).reshape(
        *batch, math.prod(inner), rows * out_features
    )


def conv_by_rows(
    inputs: jax.Array, kernel: jax.Array, geometry: Geometry, numerics: Numerics
) -> jax.Array:
    """Convolves as products of windows gathered along all axes but the first.

    Args:
        inputs: Shape (..., *S, C).
        kernel: From `arrange_for_rows`, with the leading axes of `inputs`, or with
            none: one kernel for all.
        geometry: The convolution; any.
        numerics: Its numerical options. Partial sums are kept in float32 at least.

    Returns:
        Shape (..., *S_out, O).
    """
    dense = group_geometry(geometry)
    rank, stride = dense.rank, dense.strides[0]
    split = split_inputs(inputs, geometry)
    spatial = split.shape[-rank - 1 : -1]
    height, *_ = dense.output_size(spatial)

    first, *others = dense.pads(spatial)
    padded = pad_spatial(split, (first, *((0, 0),) * (rank - 1)))
    along_row = dataclasses.replace(
        dense,
        kernel_size=(1, *dense.kernel_size[1:]),
        strides=(1, *dense.strides[1:]),
        padding=((0, 0), *others),
        kernel_dilation=(1, *dense.kernel_dilation[1:]),
    )
    columns = gather_windows(padded, along_row)

    partial = numerics.widened(inputs.dtype)
    outputs = None
    taken = 0
    for rest, indices in enumerate(kernel_rows(dense)):
        if not indices:
            continue
        deepest = indices[-1][1]
        lines = slice(rest, rest + (height + deepest - 1) * stride + 1, stride)
        block = columns[(..., lines, *(slice(None),) * rank)]
        last = taken + len(indices) * dense.out_features
        sums = partial.multiply(block, kernel[..., taken:last], rank)
        taken = last
        for position, (_, down) in enumerate(indices):
            features = slice(
                position * dense.out_features, (position + 1) * dense.out_features
            )
            shifted = sums[
                (
                    ...,
                    slice(down, down + height),
                    *(slice(None),) * (rank - 1),
                    features,
                )
            ]
            outputs = shifted if outputs is None else outputs + shifted
    assert outputs is not None
    outputs = outputs.astype(numerics.output_dtype(inputs.dtype))
    return merge_outputs(outputs, geometry)
