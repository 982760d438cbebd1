"""`"batched taps"`: depthwise, with the samples beside the channels.

A TPU computes on tiles of 8 × 128 numbers, and to move what is within a tile costs more
than to compute with it. Of images (*S, B, C) a tile holds samples and channels: a tap,
which moves the image, only says which tiles are read; a stride leaves tiles out; and
the gradient of a kernel adds tiles up. Networks have their images so on a TPU, for its
convolutions want it.

As in `taps`, the sums have a gradient rule of their own.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.groups import repeat_channels
from dynconv_jax.functional.numerics import Numerics, at_least_float32
from dynconv_jax.functional.windows import pad_spatial, tap_offsets, window_slice


def conv_by_batched_taps(
    inputs: Float[jax.Array, "batch *spatial in_features"],
    kernel: Float[jax.Array, "batch taps out_features"],
    geometry: Geometry,
    numerics: Numerics,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Convolves depthwise, as a sum of shifted multiples of all images.

    It can be differentiated again, but not in forward mode alone.

    Args:
        inputs: The samples.
        kernel: From `arrange_for_taps`.
        geometry: The convolution, with C groups.
        numerics: Its numerical options. Sums are taken in float32 at least.

    Returns:
        The outputs.
    """
    output_dtype = numerics.output_dtype(inputs.dtype)
    accumulator = at_least_float32(output_dtype)
    inputs = repeat_channels(inputs, geometry, accumulator)
    plane = dataclasses.replace(
        geometry,
        in_features=geometry.out_features,
        padding=geometry.pads(inputs.shape[1:-1]),
    )
    planes, taps = jnp.moveaxis(inputs, 0, -2), jnp.moveaxis(kernel, 0, -2)
    outputs: jax.Array = _sum_of_taps(plane, accumulator, planes, taps)
    return jnp.moveaxis(outputs.astype(output_dtype), -2, 0)


def _widened(planes, pads, accumulator):
    """Returns planes (*S, B, O), padded, as every tap is to find them."""
    # The barrier keeps them from being converted again for every tap.
    padded = pad_spatial(planes, pads, trailing=2).astype(accumulator)
    return lax.optimization_barrier(padded)


def _apply_taps(plane, accumulator, planes, taps):
    spatial = planes.shape[:-2]
    size = plane.output_size(spatial)
    padded = _widened(planes, plane.pads(spatial), accumulator)
    starts = list(enumerate(tap_offsets(plane)))
    return _shifted_sum(padded, taps.astype(accumulator), starts, size, plane.strides)


def _shifted_sum(
    padded: jax.Array,
    taps: jax.Array,
    starts: Sequence[tuple[int, tuple[int, ...]]],
    size: Sequence[int],
    steps: Sequence[int],
) -> jax.Array:
    """Adds up planes from each start on, times the tap that is named with it."""
    terms = (
        window_slice(padded, start, size, steps, trailing=2)
        * jnp.expand_dims(taps[tap], tuple(range(len(size))))
        for tap, start in starts
    )
    return functools.reduce(jnp.add, terms)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_of_taps(plane, accumulator, planes, taps):
    """Convolves (*S, B, O) with (taps, B, O), in the dtype of the accumulator."""
    return _apply_taps(plane, accumulator, planes, taps)


def _forward(plane, accumulator, planes, taps):
    return _apply_taps(plane, accumulator, planes, taps), (planes, taps)


def _backward(plane, accumulator, saved, cotangent):
    planes, taps = saved
    return (
        _input_gradient(plane, accumulator, planes, taps, cotangent),
        _kernel_gradient(plane, planes, cotangent).astype(taps.dtype),
    )


_sum_of_taps.defvjp(_forward, _backward)


def _input_gradient(plane, accumulator, planes, taps, cotangent):
    spatial = planes.shape[:-2]
    if not all(isinstance(size, int) for size in spatial):
        _, pull = jax.vjp(
            lambda planes: _apply_taps(plane, accumulator, planes, taps), planes
        )
        return pull(cotangent)[0]
    # With a stride, pixels differ in which taps reach them, by their remainder; for
    # those of one it is a sum of taps again, without a stride.
    strides = plane.strides
    counts = [-(-size // step) for size, step in zip(spatial, strides, strict=True)]
    remainders = list(itertools.product(*map(range, strides)))
    reached = [_reached_from(plane, remainder) for remainder in remainders]
    starts = [start for taps_of in reached for _, start in taps_of]
    # Where the cotangent begins, and how far beyond its end it is read.
    low = [-min(start[axis] for start in starts) for axis in range(plane.rank)]
    high = [
        max(start[axis] for start in starts) + count - size
        for axis, (count, size) in enumerate(
            zip(counts, cotangent.shape[:-2], strict=True)
        )
    ]
    padded = _widened(cotangent, list(zip(low, high, strict=True)), accumulator)
    wide = taps.astype(accumulator)
    phases = []
    for taps_of in reached:
        if not taps_of:
            phases.append(jnp.zeros((*counts, *planes.shape[-2:]), planes.dtype))
            continue
        moved = [
            (tap, tuple(map(sum, zip(start, low, strict=True))))
            for tap, start in taps_of
        ]
        phase = _shifted_sum(padded, wide, moved, counts, (1,) * plane.rank)
        phases.append(phase.astype(planes.dtype))
    if len(phases) == 1:
        return phases[0]
    stacked = jnp.stack(phases).reshape(*strides, *counts, *planes.shape[-2:])
    rank = plane.rank
    woven = stacked.transpose(
        *(part for axis in range(rank) for part in (rank + axis, axis)),
        *(2 * rank, 2 * rank + 1),
    )
    full = [count * step for count, step in zip(counts, strides, strict=True)]
    woven = woven.reshape(*full, *planes.shape[-2:])
    return window_slice(woven, (0,) * rank, spatial, (1,) * rank, trailing=2)


def _reached_from(plane, remainder):
    """Returns which taps reach pixels, and the output that the first of them is in.

    Args:
        plane: The convolution, with pads that are numbers.
        remainder: That of the pixels' positions by the strides.

    Returns:
        Pairs of a tap and the output that it leads to from the first such pixel.
    """
    found = []
    for tap, offsets in enumerate(tap_offsets(plane)):
        ways = [
            divmod(rest + low - offset, step)
            for rest, (low, _), offset, step in zip(
                remainder, plane.padding, offsets, plane.strides, strict=True
            )
        ]
        if not any(left for _, left in ways):
            found.append((tap, tuple(output for output, _ in ways)))
    return found


def _kernel_gradient(plane, planes, cotangent):
    """Returns Σ over pixels of input times cotangent for every tap, (taps, B, O)."""
    padded = _widened(planes, plane.padding, cotangent.dtype)
    size, axes = cotangent.shape[:-2], tuple(range(plane.rank))
    gradients = [
        (window_slice(padded, offsets, size, plane.strides, trailing=2) * cotangent)
        for offsets in tap_offsets(plane)
    ]
    return jnp.stack([each.sum(axis=axes) for each in gradients])
