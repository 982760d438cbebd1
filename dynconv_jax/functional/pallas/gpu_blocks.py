"""What the kernels of `pallas/gpu.py` are made of, in Pallas, for the compiler Triton.

A program is an instance of a kernel; the device runs many side by side. Arrays are
given flat, and every element is addressed by its offset: windows are gathered by the
loads themselves, and what lies in the padding, or beyond the end of a tile, is masked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from dynconv_jax.functional.numerics import widest
from dynconv_jax.functional.pallas.gpu_tiles import Layer, Tile


def steps_over(size: int, tile: int) -> int:
    """Returns how many tiles cover a size."""
    return -(-size // tile)


def count_from(start: Any, size: int) -> jax.Array:
    """Returns start, start + 1 and so on, as int32 also where JAX counts in int64."""
    return start * np.int32(size) + lax.iota(jnp.int32, size)


def divide(number: Any, size: int) -> tuple[Any, Any]:
    """Returns quotient and remainder of numbers that are not negative."""
    return lax.div(number, np.int32(size)), lax.rem(number, np.int32(size))


def loop(turns: Any, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """Runs `body` so many times; the turns count in int32, also where JAX has int64."""

    def step(turn: Any, carried: Any) -> Any:
        return body(lax.convert_element_type(turn, jnp.int32), carried)

    return lax.fori_loop(np.int32(0), turns, step, start)


def grid_of(lines: jax.Array, columns: jax.Array) -> jax.Array:
    """Returns offsets (rows, columns) from those of lines and those in a line."""
    return lines[:, None] + columns[None, :]


def below(indices: jax.Array, size: int) -> jax.Array | None:
    """Returns which indices of a tile are below a size, or None if it divides it."""
    return None if size % indices.shape[0] == 0 else indices < size


def mask_of(rows: jax.Array | None, columns: jax.Array | None) -> jax.Array | None:
    """Returns which elements of a tile exist, from rows and columns that do.

    None stands for all of them, and costs nothing.
    """
    if rows is None:
        return None if columns is None else columns[None, :]
    return rows[:, None] if columns is None else rows[:, None] & columns[None, :]


def load(array: Any, index: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Loads a tile, with zeros where the mask has none."""
    if mask is None:
        return triton.load(array.at[index])
    mask = jnp.broadcast_to(mask, index.shape)
    return triton.load(array.at[index], mask=mask, other=0.0)


def store(
    array: Any, index: jax.Array, value: jax.Array, mask: jax.Array | None
) -> None:
    """Stores a tile in the dtype of the array, where the mask allows it.

    What is masked must not be stored by another element of the tile: the interpreter
    stores there what was there. `elsewhere` takes care of that.
    """
    if mask is not None:
        mask = jnp.broadcast_to(mask, index.shape)
    triton.store(array.at[index], value.astype(array.dtype), mask=mask)


def elsewhere(array: Any, index: jax.Array, exist: jax.Array | None) -> jax.Array:
    """Returns offsets, and of what does not exist some behind the end of an array."""
    if exist is None:
        return index
    return jnp.where(exist, index, np.int32(array.shape[0]))


def multiply(
    first: jax.Array, second: jax.Array, axes: tuple[int, int], precision: Any
) -> jax.Array:
    """Returns the float32 product of two matrices, summed over an axis of each."""
    dtype = widest(first.dtype, second.dtype)
    return lax.dot_general(
        first.astype(dtype),
        second.astype(dtype),
        (((axes[0],), (axes[1],)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def seen(
    layer: Layer, axis: int, pixel: jax.Array, tap: Any, mirrored: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns which pixel a tap sees along an axis, and whether there is one.

    Args:
        layer: The convolution.
        axis: 0 for rows, 1 for columns.
        pixel: Of the outputs; if mirrored, of the inputs.
        tap: The index of the tap along the axis.
        mirrored: Whether outputs are sought that saw the pixel through the tap.
    """
    stride, low = layer.strides[axis], layer.low[axis]
    reach = tap * np.int32(layer.dilation[axis])
    if not mirrored:
        at = pixel * np.int32(stride) + reach - np.int32(low)
        return at, (at >= 0) & (at < layer.in_size[axis])
    at = pixel + np.int32(low) - reach
    is_seen = at >= 0
    if stride > 1:
        at, rest = divide(at, stride)
        is_seen &= rest == 0
    return at, is_seen & (at < layer.out_size[axis])


def expert_tile(
    layer: Layer, tap: Any, rows: jax.Array, columns: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Returns the lines of a tile of the first expert, and which of them exist.

    Depthwise there are no rows: the tile is one line of features.
    """
    if layer.depthwise:
        return jnp.full((1,), tap * np.int32(layer.out_features)), None
    lines = (tap * np.int32(layer.in_features) + rows) * np.int32(layer.out_features)
    return lines, below(rows, layer.in_features)


def weights_of(layer: Layer, weights: Any, sample: Any, tap: Any) -> Any:
    """Returns where the weights of a sample begin; of no sample, those of the last."""
    numbers = weights.shape[0] // layer.batch
    at = jnp.minimum(sample, np.int32(layer.batch - 1)) * np.int32(numbers)
    if numbers > layer.experts:  # each tap has weights of its own
        at += tap * np.int32(layer.experts)
    return at


def _flat_like(result: jax.ShapeDtypeStruct, operands: Sequence[jax.Array]) -> Any:
    """Returns a flat shape, which inside `jax.shard_map` varies as the operands do."""

    def like(*operands: jax.Array) -> jax.Array:
        zeros = [operand.ravel()[0] * 0 for operand in operands]
        return jnp.broadcast_to(sum(zeros), (result.size,))

    return jax.eval_shape(like, *(each.astype(result.dtype) for each in operands))


def run(
    kernel: Callable[..., None],
    name: str,
    results: Sequence[jax.ShapeDtypeStruct],
    operands: Sequence[jax.Array],
    grid: tuple[int, ...],
    tile: Tile,
    flops: int,
    interpret: bool,
) -> list[jax.Array]:
    """Runs a kernel on arrays without their shapes; answers results without theirs.

    Args:
        kernel: Of references to operands, then to results.
        name: What profiles and programs call it.
        results: Their shapes.
        operands: Arrays.
        grid: How many programs there are, along each of their axes.
        tile: How it is compiled.
        flops: Its arithmetic.
        interpret: Whether to interpret it.
    """
    flat = [operand.reshape(-1) for operand in operands]

    def named(*refs: Any) -> None:
        kernel(*refs)

    named.__name__ = name
    moved = sum(each.size * each.dtype.itemsize for each in (*operands, *results))
    return pl.pallas_call(
        named,
        [_flat_like(each, operands) for each in results],
        grid=grid,
        compiler_params=triton.CompilerParams(
            num_warps=tile.warps, num_stages=tile.stages
        ),
        cost_estimate=pl.CostEstimate(
            flops=flops, bytes_accessed=moved, transcendentals=0
        ),
        # Triton's lowering drops the estimate; what is said here is in the program.
        metadata={"flops": str(flops), "bytes_accessed": str(moved)},
        interpret=interpret,
        name=name,
    )(*flat)
