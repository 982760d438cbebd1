"""Windows of a convolution: padding, and the strided slice that each tap sees."""

import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from dynconv_jax.functional.geometry import Geometry


def pad_spatial(
    inputs: jax.Array,
    pads: Sequence[tuple[int, int]],
    trailing: int = 1,
    dilation: Sequence[int] | None = None,
) -> jax.Array:
    """Pads the spatial axes of inputs (..., *S, C) with zeros; negative pads crop.

    Behind them are as many other axes as `trailing` says. With a dilation there are
    zeros between the inputs too, from each to the next a step of so many.
    """
    steps = (1,) * len(pads) if dilation is None else tuple(dilation)
    # A symbolic number has no truth.
    if all(pair == (0, 0) for pair in pads) and max(steps) == 1:
        return inputs
    before = ((0, 0, 0),) * (inputs.ndim - len(pads) - trailing)
    spatial = tuple(
        (low, high, step - 1) for (low, high), step in zip(pads, steps, strict=True)
    )
    zero = jnp.zeros((), inputs.dtype)
    return lax.pad(inputs, zero, (*before, *spatial, *((0, 0, 0),) * trailing))


def window_slice(
    padded: jax.Array,
    starts: Sequence[int],
    sizes: Sequence[int],
    steps: Sequence[int],
    trailing: int = 1,
) -> jax.Array:
    """Takes `sizes` elements of each spatial axis, from `starts` on, by `steps`.

    Behind them are as many other axes as `trailing` says.
    """
    limits = [
        start + (size - 1) * step + 1
        for start, size, step in zip(starts, sizes, steps, strict=True)
    ]
    # Not by indices, which take no symbolic sizes.
    batch = padded.shape[: -len(limits) - trailing]
    return lax.slice(
        padded,
        (*(0,) * len(batch), *starts, *(0,) * trailing),
        (*batch, *limits, *padded.shape[-trailing:]),
        (*(1,) * len(batch), *steps, *(1,) * trailing),
    )


def tap_offsets(geometry: Geometry) -> Iterator[tuple[int, ...]]:
    """Yields where each tap of a window begins, in row-major order."""
    for tap in itertools.product(*map(range, geometry.kernel_size)):
        yield tuple(
            index * step
            for index, step in zip(tap, geometry.kernel_dilation, strict=True)
        )


def gather_windows(inputs: jax.Array, geometry: Geometry) -> jax.Array:
    """Lays the windows of a convolution side by side on the channel axis.

    Args:
        inputs: Shape (..., *S, C).
        geometry: The convolution whose windows are gathered. A 1×1 kernel gathers
            nothing: the result is the input, or the pixels that the stride leaves.

    Returns:
        Shape (..., *S_out, taps·C), the taps in row-major order, channels innermost.
    """
    spatial = inputs.shape[-geometry.rank - 1 : -1]
    output_size = geometry.output_size(spatial)
    padded = pad_spatial(inputs, geometry.pads(spatial))
    taps = [
        window_slice(padded, offsets, output_size, geometry.strides)
        for offsets in tap_offsets(geometry)
    ]
    return taps[0] if len(taps) == 1 else lax.concatenate(taps, padded.ndim - 1)
