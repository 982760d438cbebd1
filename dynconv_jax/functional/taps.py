"""`"taps"`: shifted multiply-adds, for depthwise convolutions.

With one input channel a group there is nothing to contract, so a product would be thin
and gathering windows pure cost. Each tap multiplies the image, shifted, by one number a
channel. Differentiation would turn that into a padded copy of the cotangent for every
tap and a reduction over all pixels for every tap; the rule here is faster:

- the gradient of the input is the same sum of taps, with the kernel flipped;
- the gradient of the kernel adds whole rows of pixels, which is vectorised over columns
  and channels, and then sums over the columns.

On a CPU `looped_taps.py` computes the same, a few samples at a time.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.groups import repeat_channels
from dynconv_jax.functional.numerics import Numerics, at_least_float32
from dynconv_jax.functional.windows import pad_spatial, tap_offsets, window_slice

# How many rows one fused sum adds: more is faster, and compiles longer.
_ROWS = 32


def arrange_for_taps(kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Lays out a kernel (..., *k, 1, O) as (..., taps, O)."""
    batch = kernel.shape[: -geometry.rank - 2]
    return kernel.reshape(*batch, geometry.taps, geometry.out_features)


def conv_by_taps(
    inputs: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    numerics: Numerics,
) -> jax.Array:
    """Convolves depthwise, as a sum of shifted multiples of the image.

    It has a gradient rule of its own, which can be differentiated again, in either
    mode; the form itself in reverse mode only, as any `jax.custom_vjp`.

    Args:
        inputs: Shape (..., *S, C).
        kernel: From `arrange_for_taps`, with the leading axes of `inputs`.
        geometry: The convolution, with C groups.
        numerics: Its numerical options. Sums are taken in float32 at least.

    Returns:
        Shape (..., *S_out, O).
    """
    output_dtype = numerics.output_dtype(inputs.dtype)
    accumulator = at_least_float32(output_dtype)
    inputs = repeat_channels(inputs, geometry, accumulator)
    spatial = inputs.shape[-geometry.rank - 1 : -1]
    plane = dataclasses.replace(
        geometry, in_features=geometry.out_features, padding=geometry.pads(spatial)
    )
    outputs: jax.Array = _sum_of_taps(plane, accumulator, inputs, kernel)
    return outputs.astype(output_dtype)


def _apply_taps(plane, accumulator, inputs, kernel):
    spatial = inputs.shape[-plane.rank - 1 : -1]
    size = plane.output_size(spatial)
    padded = pad_spatial(inputs, plane.pads(spatial)).astype(accumulator)
    per_pixel = kernel.astype(accumulator).reshape(
        *kernel.shape[:-1], *(1,) * plane.rank, kernel.shape[-1]
    )
    terms = (
        window_slice(padded, offsets, size, plane.strides)
        * lax.index_in_dim(per_pixel, tap, -plane.rank - 2, keepdims=False)
        for tap, offsets in enumerate(tap_offsets(plane))
    )
    return functools.reduce(jnp.add, terms)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_of_taps(plane, accumulator, inputs, kernel):
    """Convolves (..., *S, O) with (..., taps, O), in the dtype of the accumulator."""
    return _apply_taps(plane, accumulator, inputs, kernel)


def _forward(plane, accumulator, inputs, kernel):
    return _apply_taps(plane, accumulator, inputs, kernel), (inputs, kernel)


def _backward(plane, accumulator, saved, cotangent):
    inputs, kernel = saved
    return (
        _input_gradient(plane, accumulator, inputs, kernel, cotangent),
        _kernel_gradient(plane, inputs, cotangent).astype(kernel.dtype),
    )


_sum_of_taps.defvjp(_forward, _backward)


def _input_gradient(plane, accumulator, inputs, kernel, cotangent):
    if any(stride > 1 for stride in plane.strides):
        _, pull = jax.vjp(
            lambda inputs: _apply_taps(plane, accumulator, inputs, kernel), inputs
        )
        return pull(cotangent)[0]
    flipped = jnp.flip(kernel, axis=-2)  # row-major: all spatial axes at once
    # Not by the rule itself, so that forward mode can differentiate this gradient.
    gradient = _apply_taps(plane.mirrored, accumulator, cotangent, flipped)
    return gradient.astype(inputs.dtype)


def _kernel_gradient(plane, inputs, cotangent):
    """Returns Σ over pixels of input times cotangent for every tap, (..., taps, O)."""
    spatial = inputs.shape[-plane.rank - 1 : -1]
    height, *pixels = plane.output_size(spatial)
    stride, *strides = plane.strides
    padded = pad_spatial(inputs, plane.padding).astype(cotangent.dtype)
    # Rows are added so many at a time, in as many blocks as there are whole ones, and
    # then those that are left: (the first row, rows, blocks). Of a symbolic height
    # nobody knows how many are left, so that every row is a block.
    parts = [(0, 1, height)]
    if isinstance(height, int):
        blocks, left = divmod(height, _ROWS)
        parts = [(0, _ROWS, blocks)] * (blocks > 0)
        parts += [(height - left, left, 1)] * (left > 0)

    def rows_of(array, begin, step, offsets, steps, blocks):
        return window_slice(array, (begin, *offsets), (blocks, *pixels), (step, *steps))

    def gradient_of_tap(begin, *offsets):
        sums = []
        for first, together, count in parts:
            added = functools.reduce(
                jnp.add,
                (
                    rows_of(
                        padded,
                        begin + (first + row) * stride,
                        together * stride,
                        offsets,
                        strides,
                        count,
                    )
                    * rows_of(
                        cotangent,
                        first + row,
                        together,
                        (0,) * len(pixels),
                        (1,) * len(pixels),
                        count,
                    )
                    for row in range(together)
                ),
            )
            # Without the barrier the sum over columns swallows the sum over rows, and
            # neither is vectorised.
            added = lax.optimization_barrier(added)
            sums.append(added.sum(axis=tuple(range(-plane.rank - 1, -1))))
        return functools.reduce(jnp.add, sums)

    gradients = [gradient_of_tap(*offsets) for offsets in tap_offsets(plane)]
    return jnp.stack(gradients, axis=-2)
