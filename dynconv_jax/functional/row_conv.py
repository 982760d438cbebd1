"""`"row_conv"`: the whole batch as one convolution, with the samples as an axis of it.

A batched product can be said as a convolution: B samples in a line, spread B apart, and
a window of B kernels that moves by B − 1. Of any B neighbours one is a sample, and at
the i-th place it lies under the i-th kernel. XLA's compiler for TPUs knows the pattern
and runs it as a batched product that has a window along the other axes, so nothing is
gathered along a row; and what is added up to make a kernel, its mixture, is computed
where the product reads it.

As in `rows`, the kernel rows are so many outputs, summed after a shift. The rows of the
image are the samples of that convolution, for they take no part in it. With a stride,
as many rows of the image as it steps over lie side by side on the channels, and a
kernel row is zero for all of them but one.

The batch is a window, so that it must be known, and lie whole on one device. Elsewhere
than on a TPU it is a convolution like any other, of B times the arithmetic.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.rows import kernel_rows
from dynconv_jax.functional.windows import pad_spatial


def _row_blocks(geometry: Geometry) -> tuple[list[int], list[int], dict]:
    """Returns how the kernel rows lie.

    Returns:
        The remainders by the stride at which any begins; how many strides down any
        begins; and the row that begins at (remainder, strides down).
    """
    rows = {
        (rest, down): index
        for rest, indices in enumerate(kernel_rows(geometry))
        for index, down in indices
    }
    return sorted({rest for rest, _ in rows}), sorted({down for _, down in rows}), rows


def arrange_for_row_conv(kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Lays out a kernel (..., k, *k', C/g, O) as the convolution takes it.

    Returns:
        Shape (..., *k', r·C/g, g·d·O/g): r blocks of the channels, one for each
        remainder by the stride at which a kernel row begins, and for each group d
        blocks of its outputs, one for each number of strides. Without a stride r is 1
        and d is k.
    """
    groups = geometry.feature_group_count
    batch = kernel.shape[: -geometry.rank - 2]
    rests, downs, rows = _row_blocks(geometry)
    width = geometry.out_features // groups
    split = kernel.reshape(*kernel.shape[:-1], groups, width)
    zero = jnp.zeros_like(split[(*(slice(None),) * len(batch), 0)])
    blocks = [
        jnp.concatenate(
            [
                split[(*(slice(None),) * len(batch), rows[rest, down])]
                if (rest, down) in rows
                else zero
                for down in downs
            ],
            axis=-1,
        )
        for rest in rests
    ]
    arranged = jnp.concatenate(blocks, axis=-3)  # (..., *k', r·C/g, g, d·O/g)
    return arranged.reshape(*arranged.shape[:-2], len(downs) * geometry.out_features)


def conv_by_row_conv(
    inputs: Float[jax.Array, "batch *spatial in_features"],
    kernel: Float[jax.Array, "batch *columns rows_in_per_group rows_out"],
    geometry: Geometry,
    numerics: Numerics,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Convolves samples with their kernels, as one convolution over the batch.

    Args:
        inputs: The samples, of a known number.
        kernel: From `arrange_for_row_conv`.
        geometry: The convolution; any.
        numerics: Its numerical options. Partial sums are kept in float32 at least.

    Returns:
        The outputs.
    """
    batch, *spatial, _ = inputs.shape
    height, *pixels = geometry.output_size(spatial)
    output_dtype = numerics.output_dtype(inputs.dtype)
    if batch == 0:  # a window has at least one element
        return jnp.zeros((0, height, *pixels, geometry.out_features), output_dtype)
    stride, groups = geometry.strides[0], geometry.feature_group_count
    rests, downs, _ = _row_blocks(geometry)

    (low, _), *others = geometry.pads(spatial)
    lines = height + downs[-1]
    high = lines * stride - spatial[0] - low
    if all(isinstance(size, int) for size in spatial):
        padded = pad_spatial(inputs, ((low, high), *((0, 0),) * len(others)))
    else:  # where it learns the size only when it runs, XLA crops wrongly
        padded = pad_spatial(inputs, ((low, high), *others))
        others = [(0, 0)] * len(others)
    if stride > 1:
        split = padded.reshape(batch, lines, stride, *padded.shape[2:-1], groups, -1)
        if len(rests) < stride:
            split = jnp.stack([split[:, :, rest] for rest in rests], axis=2)
        joined = jnp.moveaxis(split, 2, -2)  # (B, lines, *S', g, r, C/g)
        padded = joined.reshape(*joined.shape[:-3], -1)

    sums = _convolve(padded, kernel, geometry, others, numerics.widened(inputs.dtype))
    # Not with an axis for the kernel rows, beside which features lie in few lanes.
    sums = sums.reshape(*sums.shape[:-1], groups, -1)
    width = geometry.out_features // groups
    outputs = functools.reduce(
        jnp.add,
        (
            sums[:, down : down + height, ..., index * width : (index + 1) * width]
            for index, down in enumerate(downs)
        ),
    )
    merged = outputs.reshape(*outputs.shape[:-2], geometry.out_features)
    return merged.astype(output_dtype)


def _convolve(lines, kernel, geometry, pads, numerics):
    """Convolves (B, H, *S', C) with (B, *k', C/g, N), every line for itself."""
    batch = lines.shape[0]
    inner = tuple(range(2, geometry.rank + 1))
    layout = (1, geometry.rank + 1, 0, *inner)
    return lax.conv_general_dilated(
        lines,
        kernel,
        window_strides=(max(batch - 1, 1), *geometry.strides[1:]),
        padding=((0, 0), *pads),
        lhs_dilation=(batch, *(1,) * len(inner)),
        rhs_dilation=(1, *geometry.kernel_dilation[1:]),
        dimension_numbers=lax.ConvDimensionNumbers(
            layout, (geometry.rank + 1, geometry.rank, *range(geometry.rank)), layout
        ),
        feature_group_count=geometry.feature_group_count,
        precision=numerics.precision,
        preferred_element_type=numerics.preferred_element_type,
    )
