"""What the kernels of `"pallas"` share: the layer, and how it fills a TPU's core."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dynconv_jax.functional.sharding import manual_axes

LANES = 128
# What of a core's memory a kernel may take; v5p and v7 have 64 MiB, v5e and v6e twice
# as much. v4 has 16, and its compiler refuses what needs more.
VMEM_BYTES = 54 * 2**20
_SPARE_BYTES = 8 * 2**20  # for what the compiler itself keeps there


def rounded_up(size: int, unit: int) -> int:
    """Returns the least multiple of `unit` that is no less than `size`."""
    return -(-size // unit) * unit


def sublanes(dtype: Any) -> int:
    """Returns how many rows a tile of the core's memory has."""
    return 32 // jnp.dtype(dtype).itemsize


def tile_bytes(shape: Sequence[int], dtype: Any) -> int:
    """Returns what an array takes of a core's memory, where it lies in whole tiles."""
    *outer, rows, lanes = shape
    tile = rounded_up(rows, sublanes(dtype)) * rounded_up(lanes, LANES)
    return math.prod(outer) * tile * jnp.dtype(dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Layer:
    """Everything static about a convolution in two dimensions.

    Attributes:
        window: The size of the kernel.
        strides: The step between windows.
        dilation: The step between the taps of one.
        low: How many zeros stand before each axis of the image.
        inputs: The spatial size of the image.
        outputs: The spatial size of the result.
        precision: Of the products.
        interpret: Whether to run on the host, for tests.
    """

    window: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    low: tuple[int, int]
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    precision: Any = None
    interpret: bool = False


def lane_tiles(features: int) -> list[slice]:
    """Returns the slices of the channels that fill the lanes of a register each.

    Mosaic reads in steps only arrays that are no wider.
    """
    return [
        slice(first, min(first + LANES, features))
        for first in range(0, features, LANES)
    ]


def product(
    layer: Layer, left: jax.Array, right: jax.Array, axes: tuple[int, int]
) -> jax.Array:
    """Returns the product of two matrices over one axis of each, in float32."""
    # Products of bfloat16 are exact in float32, and take no precision.
    is_wide = left.dtype == jnp.float32
    return lax.dot_general(
        left,
        right,
        (((axes[0],), (axes[1],)), ((), ())),
        precision=layer.precision if is_wide else None,
        preferred_element_type=jnp.float32,
    )


def call(
    kernel: Any,
    operands: Sequence[jax.Array],
    results: Sequence[tuple[tuple[int, ...], Any]],
    interpret: bool,
    **spec: Any,
) -> Any:
    """Calls a kernel whose steps come one after another.

    Args:
        kernel: A function of references.
        operands: Its operands; inside `jax.shard_map` they vary over the same axes.
        results: Shape and dtype of each result.
        interpret: Whether to run on the host.
        **spec: More for `pallas_call`: the grid, blocks, memory to work in.

    Returns:
        A list of the results.
    """
    varying = manual_axes(operands[0])
    over: dict[str, Any] = {"manual_axis_type": varying} if varying else {}
    called = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(*result, **over) for result in results],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"),
            vmem_limit_bytes=VMEM_BYTES + _SPARE_BYTES,
        ),
        interpret=interpret,
        **spec,
    )
    with jax.enable_x64(False):  # Mosaic takes no indices of 64 bits
        return called(*operands)
