"""The phases of a transposed convolution: outputs of one remainder by the strides.

Each is an ordinary convolution with a part of the kernel, see `transpose.py`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.transpose_geometry import TransposeGeometry
from dynconv_jax.functional.windows import pad_spatial

# Convolves inputs (B, *S, C) with a stack of kernels, as a geometry says.
Convolve = Callable[[jax.Array, jax.Array, Geometry], jax.Array]


class Phase(NamedTuple):
    """The outputs of one remainder along one dimension, as a convolution.

    Attributes:
        taps: Which taps of the flipped kernel they see.
        dilation: The step between these, in the inputs.
        padding: (low, high) padding of the inputs.
        size: How many outputs there are; of a symbolic size perhaps one more.
    """

    taps: slice
    dilation: int
    padding: tuple[int, int]
    size: int


def _phases_along(
    inputs: int, outputs: int, kernel: int, stride: int, dilation: int, low: int
) -> list[Phase | None]:
    """Returns the phase of every remainder; None for outputs that see no tap."""
    # The taps of a remainder are an arithmetic progression.
    shared = math.gcd(stride, dilation)
    step, spacing = stride // shared, dilation // shared
    phases: list[Phase | None] = []
    for rest in range(stride):
        size = -(-(outputs - rest) // stride)
        if not isinstance(outputs, int):  # some may have none, so all have the most
            size = -(-outputs // stride)
        first = next(
            (
                tap
                for tap in range(min(step, kernel))
                if (rest + tap * dilation - low) % stride == 0
            ),
            None,
        )
        if first is None or size < 1:
            phases.append(None)
            continue
        begin = (rest + first * dilation - low) // stride  # what the first tap sees
        reach = (kernel - 1 - first) // step * spacing
        padding = (-begin, size + begin + reach - inputs)
        phases.append(Phase(slice(first, None, step), spacing, padding, size))
    return phases


def along_each_axis(
    geometry: TransposeGeometry, spatial: Sequence[int]
) -> list[list[Phase | None]]:
    """Returns for each dimension the phases along it."""
    return list(
        map(
            _phases_along,
            spatial,
            geometry.output_size(spatial),
            geometry.kernel_size,
            geometry.strides,
            geometry.kernel_dilation,
            (low for low, _ in geometry.pads(spatial)),
        )
    )


def as_convolution(
    geometry: TransposeGeometry, phases: Sequence[Phase | None]
) -> Geometry | None:
    """Returns the convolution of a phase; None where its outputs see no tap."""
    present = [phase for phase in phases if phase is not None]
    if len(present) < geometry.rank:
        return None
    taps = [
        len(range(size)[phase.taps])
        for size, phase in zip(geometry.kernel_size, present, strict=True)
    ]
    return Geometry(
        in_features=geometry.in_features,
        out_features=geometry.out_features,
        kernel_size=tuple(taps),
        strides=(1,) * geometry.rank,
        padding=tuple(phase.padding for phase in present),
        kernel_dilation=tuple(phase.dilation for phase in present),
        feature_group_count=geometry.feature_group_count,
    )


def conv_by_phases(
    inputs: Float[jax.Array, "batch *spatial in_features"],
    kernel: Float[jax.Array, "stack *window in_per_group out_features"],
    geometry: TransposeGeometry,
    numerics: Numerics,
    convolve: Convolve,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Computes a transposed convolution phase by phase.

    Args:
        inputs: The samples.
        kernel: The kernels of the samples, or the experts.
        geometry: The transposed convolution.
        numerics: Its numerical options.
        convolve: What computes a phase.

    Returns:
        The outputs.
    """
    rank, spatial = geometry.rank, inputs.shape[1:-1]
    sizes = geometry.output_size(spatial)
    rows = tuple(
        -(-size // stride) for size, stride in zip(sizes, geometry.strides, strict=True)
    )
    flipped = jnp.flip(kernel, axis=tuple(range(1, rank + 1)))
    # Made from the inputs, so that they lie on the same devices as these.
    blank = jnp.zeros_like(
        inputs[(slice(None), *(slice(1),) * (rank + 1))],
        numerics.output_dtype(inputs.dtype),
    )
    empty = jnp.broadcast_to(blank, (*inputs.shape[:1], *rows, geometry.out_features))

    def outputs_of(phases: tuple[Phase | None, ...]) -> jax.Array:
        plain = as_convolution(geometry, phases)
        if plain is None:
            return empty
        present = [phase for phase in phases if phase is not None]
        part = flipped[(slice(None), *(phase.taps for phase in present))]
        missing = [
            (0, row - phase.size) for row, phase in zip(rows, present, strict=True)
        ]
        return pad_spatial(convolve(inputs, part, plain), missing)

    along = along_each_axis(geometry, spatial)

    def interleaved(chosen: tuple[Phase | None, ...]) -> jax.Array:
        """Returns the outputs of the phases that begin like this."""
        axis = len(chosen)
        if axis == rank:
            return outputs_of(chosen)
        parts = [interleaved((*chosen, phase)) for phase in along[axis]]
        stacked = jnp.stack(parts, axis=axis + 2)
        shape = list(parts[0].shape)
        shape[axis + 1] *= len(parts)
        outputs = stacked.reshape(shape)
        return lax.slice_in_dim(outputs, 0, sizes[axis], axis=axis + 1)

    return interleaved(())
