"""`"row_conv"`: the whole batch as one convolution, with the samples as an axis of it.

A batched product can be said as a convolution: B samples in a line, spread B apart, and
a window of B kernels that moves by B − 1. Of any B neighbours one is a sample, and at
the i-th place it lies under the i-th kernel. XLA's compiler for TPUs knows the pattern
and runs it as a batched product that has a window along the other axes, so nothing is
gathered along a row; and what is added up to make a kernel, its mixture, is computed
where the product reads it.

As in `rows`, the kernel rows are so many outputs, summed after a shift. The rows of the
image are the samples of that convolution, for they take no part in it.

The batch is a window, so that it must be known, and lie whole on one device. Elsewhere
than on a TPU it is a convolution like any other, of B times the arithmetic.
"""

import jax
import jax.numpy as jnp
from jax import lax

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.rows import kernel_rows
from dynconv_jax.functional.windows import pad_spatial


def arrange_for_row_conv(kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Lays out a kernel (..., k, *k', C/g, O) as the convolution takes it.

    Returns:
        Shape (..., *k', C/g, g·k·O/g), the k kernel rows in the order in which the
        convolutions take them; one block of k·O/g for each group.
    """
    groups = geometry.feature_group_count
    taken = [index for rows in kernel_rows(geometry) for index, _ in rows]
    batch = kernel.shape[: -geometry.rank - 2]
    lines = jnp.moveaxis(kernel, len(batch), -2)  # (..., *k', C/g, k, O)
    if taken != sorted(taken):
        lines = jnp.stack([lines[..., index, :] for index in taken], axis=-2)
    if groups > 1:
        lines = lines.reshape(*lines.shape[:-1], groups, -1)
        lines = jnp.moveaxis(lines, -2, -3)
    outer = lines.shape[: len(batch) + geometry.rank]
    return lines.reshape(*outer, len(taken) * geometry.out_features)


def conv_by_row_conv(
    inputs: jax.Array, kernel: jax.Array, geometry: Geometry, numerics: Numerics
) -> jax.Array:
    """Convolves samples with their kernels, as one convolution over the batch.

    Args:
        inputs: Shape (B, *S, C), of a known B.
        kernel: From `arrange_for_row_conv`, with the leading axis B.
        geometry: The convolution; any.
        numerics: Its numerical options. Partial sums are kept in float32 at least.

    Returns:
        Shape (B, *S_out, O).
    """
    batch, *spatial, _ = inputs.shape
    height, *pixels = geometry.output_size(spatial)
    output_dtype = numerics.output_dtype(inputs.dtype)
    if batch == 0:  # a window has at least one element
        return jnp.zeros((0, height, *pixels, geometry.out_features), output_dtype)
    stride, groups = geometry.strides[0], geometry.feature_group_count
    width = geometry.out_features // groups
    rows = kernel_rows(geometry)
    deepest = max(down for indices in rows for _, down in indices)

    (low, _), *others = geometry.pads(spatial)
    high = (height + deepest) * stride - spatial[0] - low
    if all(isinstance(size, int) for size in spatial):
        padded = pad_spatial(inputs, ((low, high), *((0, 0),) * len(others)))
    else:  # where it learns the size only when it runs, XLA crops wrongly
        padded = pad_spatial(inputs, ((low, high), *others))
        others = [(0, 0)] * len(others)
    # Not by slices with a stride, each of which a TPU makes of several copies.
    lines = padded.reshape(batch, height + deepest, stride, *padded.shape[2:])
    partial = numerics.widened(inputs.dtype)
    outputs = None
    taken = 0
    for rest, indices in enumerate(rows):
        if not indices:
            continue
        own = kernel
        if stride > 1:  # of each group its share
            own = kernel.reshape(*kernel.shape[:-1], groups, -1)
            own = own[..., taken * width : (taken + len(indices)) * width]
            own = own.reshape(*own.shape[:-2], -1)
        taken += len(indices)
        own_lines = lines[:, : height + indices[-1][1], rest]
        sums = _convolve(own_lines, own, geometry, others, partial)
        # Not with an axis for the kernel rows, beside which features lie in few lanes.
        sums = sums.reshape(*sums.shape[:-1], groups, -1)
        for position, (_, down) in enumerate(indices):
            features = slice(position * width, (position + 1) * width)
            shifted = sums[:, down : down + height, ..., features]
            outputs = shifted if outputs is None else outputs + shifted
    assert outputs is not None
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
