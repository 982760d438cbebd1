"""The three programs of `pallas_gpu.py`, in Pallas, for the compiler Triton.

A program is an instance of a kernel; the device runs many side by side. Arrays are
given flat, and every element is addressed by its offset: windows are gathered by the
loads themselves, and what lies in the padding, or beyond the end of a tile, is masked.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.typing import DTypeLike

from dynconv_jax.functional.numerics import widest
from dynconv_jax.functional.pallas_gpu_tiles import (
    Layer,
    Tile,
    gradient_tile,
    product_tile,
)


def _steps(size: int, tile: int) -> int:
    return -(-size // tile)


def _range(start: Any, size: int) -> jax.Array:
    """Returns start, start + 1 and so on, as int32 also where JAX counts in int64."""
    return start * np.int32(size) + lax.iota(jnp.int32, size)


def _split(number: Any, size: int) -> tuple[Any, Any]:
    """Returns quotient and remainder of numbers that are not negative."""
    return lax.div(number, np.int32(size)), lax.rem(number, np.int32(size))


def _grid(lines: jax.Array, columns: jax.Array) -> jax.Array:
    """Returns offsets (rows, columns) from those of lines and those in a line."""
    return lines[:, None] + columns[None, :]


def _mask(rows: jax.Array | None, columns: jax.Array, size: int) -> jax.Array | None:
    """Returns where rows and columns exist, or None where all do.

    Args:
        rows: Whether each row does; None if all do.
        columns: Indices, as many as a tile has.
        size: How many columns there are. Tiles that divide it need no mask.
    """
    exist = None if size % columns.shape[0] == 0 else (columns < size)[None, :]
    if rows is None:
        return exist
    return rows[:, None] if exist is None else rows[:, None] & exist


def _load(array: Any, index: jax.Array, mask: jax.Array | None) -> jax.Array:
    if mask is None:
        return triton.load(array.at[index])
    mask = jnp.broadcast_to(mask, index.shape)
    return triton.load(array.at[index], mask=mask, other=0.0)


def _store(
    array: Any,
    lines: jax.Array,
    columns: jax.Array,
    value: jax.Array,
    rows: jax.Array | None,
    size: int,
) -> None:
    """Stores a tile at lines + columns, those that exist, see `_mask`."""
    mask = _mask(rows, columns, size)
    # Where the interpreter must not store, it stores what is there: not twice at once.
    outside = np.int32(array.shape[0])
    if rows is not None:
        lines = jnp.where(rows, lines, outside)
    if size % columns.shape[0]:
        columns = jnp.where(columns < size, columns, outside)
    if mask is not None:
        mask = jnp.broadcast_to(mask, value.shape)
    index = _grid(lines, columns)
    triton.store(array.at[index], value.astype(array.dtype), mask=mask)


def _multiply(
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


def _seen(
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
        at, rest = _split(at, stride)
        is_seen &= rest == 0
    return at, is_seen & (at < layer.out_size[axis])


def _apply_kernel(
    layer: Layer, tile: Tile, mirrored: bool, precision: Any, *refs: Any
) -> None:
    """Sums over taps and channels for a tile of pixels and features of some samples.

    Experts are mixed once a tap and block of channels, for all pixels of the tile.
    """
    weights, experts, source, result = refs
    target, source_size = layer.sides(mirrored)
    wide, deep = layer.features(mirrored)
    phases = layer.phases if mirrored else (1, 1)
    across = tuple(_steps(size, step) for size, step in zip(target, phases))
    blocks = _steps(math.prod(across), tile.pixels)

    phase, block = _split(pl.program_id(1), blocks)
    position = _range(block, tile.pixels)
    row, column = _split(position, across[1])
    rests = _split(phase, phases[1])
    pixel = [
        along * np.int32(step) + rest
        for along, step, rest in zip((row, column), phases, rests)
    ]
    inside = (row < across[0]) & (pixel[0] < target[0]) & (pixel[1] < target[1])
    features = _range(pl.program_id(2), tile.features)
    samples = [
        pl.program_id(0) * np.int32(tile.samples) + np.int32(index)
        for index in range(tile.samples)
    ]

    # Of a phase, the taps that see anything are every so many, beginning with one.
    first, counts = [], []
    for axis, (size, step) in enumerate(zip(layer.kernel, phases)):
        begin = np.int32(0)
        if step > 1:
            begin = lax.rem(rests[axis] + np.int32(layer.low[axis] % step), np.int32(step))
        first.append(begin)
        counts.append(
            np.int32(size)
            if step == 1
            else lax.div(np.int32(size - 1 + step) - begin, np.int32(step))
        )
    taps = counts[0] * counts[1]
    channel_blocks = 1 if layer.depthwise else _steps(deep, tile.channels)

    def step(index, sums):
        # Taps innermost: their windows overlap, and are still close by.
        block = lax.div(index, taps)
        tap_index = lax.rem(index, taps)
        down, right = lax.div(tap_index, counts[1]), lax.rem(tap_index, counts[1])
        down = first[0] + down * np.int32(phases[0])
        right = first[1] + right * np.int32(phases[1])
        tap = down * np.int32(layer.kernel[1]) + right
        at_row, sees_row = _seen(layer, 0, pixel[0], down, mirrored)
        at_column, sees_column = _seen(layer, 1, pixel[1], right, mirrored)
        at = at_row * np.int32(source_size[1]) + at_column
        sees = inside & sees_row & sees_column
        channels = features if layer.depthwise else _range(block, tile.channels)
        if mirrored:
            mixed = _mix(layer, weights, experts, samples, tap, features, channels)
        else:
            mixed = _mix(layer, weights, experts, samples, tap, channels, features)
        added = []
        for sample, own, total in zip(samples, mixed, sums):
            offset = (sample * np.int32(math.prod(source_size)) + at) * np.int32(deep)
            exists = sees & (sample < layer.batch)
            mask = _mask(exists, channels, deep)
            window = _load(source, _grid(offset, channels), mask)
            if layer.depthwise:
                term = window.astype(jnp.float32) * own.astype(jnp.float32)
            else:
                term = _multiply(window, own, (1, 1 if mirrored else 0), precision)
            added.append(total + term)
        return tuple(added)

    start = jnp.zeros((tile.pixels, tile.features), jnp.float32)
    sums = lax.fori_loop(
        np.int32(0), taps * np.int32(channel_blocks), step, (start,) * tile.samples
    )
    at = pixel[0] * np.int32(target[1]) + pixel[1]
    for sample, total in zip(samples, sums):
        offset = (sample * np.int32(math.prod(target)) + at) * np.int32(wide)
        exists = inside & (sample < layer.batch)
        _store(result, offset, features, total, exists, wide)


def _expert_tile(
    layer: Layer, tap: Any, rows: jax.Array, columns: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Returns the lines of a tile of the first expert, and which of them exist.

    Depthwise there are no rows: the tile is one line of features.
    """
    if layer.depthwise:
        return jnp.full((1,), tap * np.int32(layer.out_features)), None
    lines = (tap * np.int32(layer.in_features) + rows) * np.int32(layer.out_features)
    whole = layer.in_features % rows.shape[0] == 0
    return lines, None if whole else rows < layer.in_features


def _mix(
    layer: Layer,
    weights: Any,
    experts: Any,
    samples: Sequence[Any],
    tap: Any,
    rows: jax.Array,
    columns: jax.Array,
) -> list[jax.Array]:
    """Returns a tile of each sample's kernel, in the dtype of the experts."""
    lines, exist = _expert_tile(layer, tap, rows, columns)
    index, mask = _grid(lines, columns), _mask(exist, columns, layer.out_features)
    mixed: list[Any] = [0.0] * len(samples)
    for expert in range(layer.experts):
        here = index + np.int32(expert * layer.numbers)
        taken = _load(experts, here, mask).astype(jnp.float32)
        for position, sample in enumerate(samples):
            known = jnp.minimum(sample, np.int32(layer.batch - 1))
            at = (known * np.int32(layer.taps) + tap) * np.int32(layer.experts)
            weight = triton.load(weights.at[at + np.int32(expert)])
            mixed[position] += weight * taken
    return [each.astype(experts.dtype) for each in mixed]


def _gradient_kernel(
    layer: Layer, tile: Tile, splits: int, precision: Any, *refs: Any
) -> None:
    """Sums the gradients of one tap for a tile of all experts, over some samples.

    Sample after sample it computes the gradient of that sample's kernel, adds its
    multiples to the experts' and multiplies it with the experts for the attention's.
    """
    weights, experts, inputs, cotangent, expert_sums, weight_parts = refs
    wide = layer.out_features
    deep = layer.in_features
    across = _steps(wide, tile.features)
    tap, part = _split(pl.program_id(0), layer.gradient_parts(tile))
    down, right = _split(tap, layer.kernel[1])
    line, column = _split(part, across)
    rows, columns = _range(line, tile.channels), _range(column, tile.features)
    if layer.depthwise:
        rows = columns
    share = pl.program_id(1)
    each = _steps(layer.batch, splits)
    blocks = _steps(math.prod(layer.out_size), tile.pixels)
    shape = (1 if layer.depthwise else tile.channels, tile.features)
    lines, exist = _expert_tile(layer, tap, rows, columns)
    index, mask = _grid(lines, columns), _mask(exist, columns, wide)

    def pixels(sample):
        def add(block, total):
            position = _range(block, tile.pixels)
            row, along = _split(position, layer.out_size[1])
            inside = (row < layer.out_size[0]) & (sample < layer.batch)
            at_row, sees_row = _seen(layer, 0, row, down, False)
            at_column, sees_column = _seen(layer, 1, along, right, False)
            at = sample * np.int32(math.prod(layer.in_size))
            at = (at + at_row * np.int32(layer.in_size[1]) + at_column) * np.int32(deep)
            sees = _mask(inside & sees_row & sees_column, rows, deep)
            window = _load(inputs, _grid(at, rows), sees)
            at = sample * np.int32(math.prod(layer.out_size)) + position
            exists = _mask(inside, columns, wide)
            pulled = _load(cotangent, _grid(at * np.int32(wide), columns), exists)
            if layer.depthwise:
                term = window.astype(jnp.float32) * pulled.astype(jnp.float32)
                return total + term.sum(axis=0)[None, :]
            return total + _multiply(window, pulled, (0, 0), precision)

        return add

    def step(turn, sums):
        sample = share * np.int32(each) + turn
        own = lax.fori_loop(
            np.int32(0),
            np.int32(blocks),
            pixels(sample),
            jnp.zeros(shape, jnp.float32),
        )
        exists = sample < layer.batch
        known = jnp.minimum(sample, np.int32(layer.batch - 1))
        at = (known * np.int32(layer.taps) + tap) * np.int32(layer.experts)
        to = part * np.int32(layer.batch * layer.taps * layer.experts) + at
        added = []
        for expert, total in enumerate(sums):
            weight = triton.load(weights.at[at + np.int32(expert)])
            added.append(total + weight * own)
            here = index + np.int32(expert * layer.numbers)
            taken = _load(experts, here, mask).astype(jnp.float32)
            product = jnp.sum(own * taken)
            triton.store(weight_parts.at[to + np.int32(expert)], product, mask=exists)
        return tuple(added)

    start = (jnp.zeros(shape, jnp.float32),) * layer.experts
    sums = lax.fori_loop(np.int32(0), np.int32(each), step, start)
    for expert, total in enumerate(sums):
        expert = share * np.int32(layer.experts) + np.int32(expert)
        to = lines + expert * np.int32(layer.numbers)
        _store(expert_sums, to, columns, total, exist, wide)


def _call(
    kernel: Callable[..., None],
    name: str,
    results: Sequence[jax.ShapeDtypeStruct],
    operands: Sequence[jax.Array],
    grid: tuple[int, ...],
    tile: Tile,
    flops: int,
    interpret: bool,
) -> list[jax.Array]:
    """Runs a kernel on arrays without their shapes."""
    flat = [operand.reshape(-1) for operand in operands]

    def named(*refs: Any) -> None:
        kernel(*refs)

    named.__name__ = name  # it is what profiles show
    moved = sum(each.size * each.dtype.itemsize for each in (*operands, *results))
    return pl.pallas_call(
        named,
        [jax.ShapeDtypeStruct((each.size,), each.dtype) for each in results],
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


def apply_mixed(
    layer: Layer,
    precision: lax.PrecisionLike,
    interpret: bool,
    dtype: DTypeLike,
    weights: jax.Array,
    experts: jax.Array,
    source: jax.Array,
    *,
    mirrored: bool = False,
) -> jax.Array:
    """Convolves each sample with its mixture of experts, or pulls a cotangent back.

    Args:
        layer: The convolution.
        precision: That of the products.
        interpret: Whether to interpret the kernel instead of compiling it.
        dtype: That of the result.
        weights: Shape (B, taps, K), float32.
        experts: Shape (K, taps, C, O), or depthwise (K, taps, 1, O).
        source: The inputs (B, H, W, C); if mirrored, a cotangent (B, H', W', O).
        mirrored: Whether to compute the gradient of the inputs.

    Returns:
        Outputs (B, H', W', O), or the gradient (B, H, W, C).
    """
    target, _ = layer.sides(mirrored)
    wide, _ = layer.features(mirrored)
    tile, grid = product_tile(layer, mirrored, widest(source.dtype, experts.dtype))
    result = jax.ShapeDtypeStruct((layer.batch, *target, wide), dtype)
    (flat,) = _call(
        functools.partial(_apply_kernel, layer, tile, mirrored, precision),
        "dynconv_input_gradient" if mirrored else "dynconv_forward",
        [result],
        (weights, experts, source),
        grid,
        tile,
        layer.flops,
        interpret,
    )
    return flat.reshape(result.shape)


def pull_experts(
    layer: Layer,
    precision: lax.PrecisionLike,
    interpret: bool,
    weights: jax.Array,
    experts: jax.Array,
    inputs: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of the weights (B, taps, K) and of the experts.

    Args:
        layer: The convolution.
        precision: That of the products.
        interpret: Whether to interpret the kernel instead of compiling it.
        weights: Shape (B, taps, K), float32.
        experts: Shape (K, taps, C, O), or depthwise (K, taps, 1, O).
        inputs: Shape (B, H, W, C).
        cotangent: Shape (B, H', W', O).
    """
    tile, splits = gradient_tile(layer, widest(inputs.dtype, cotangent.dtype))
    parts = layer.gradient_parts(tile)
    summed = experts.dtype if splits == 1 else jnp.float32
    results = [
        jax.ShapeDtypeStruct((splits, *experts.shape), summed),
        jax.ShapeDtypeStruct((parts, *weights.shape), jnp.float32),
    ]
    flat = _call(
        functools.partial(_gradient_kernel, layer, tile, splits, precision),
        "dynconv_experts_gradient",
        results,
        (weights, experts, inputs, cotangent),
        (layer.taps * parts, splits),
        tile,
        layer.flops,
        interpret,
    )
    of_experts, of_weights = (
        each.reshape(result.shape) for each, result in zip(flat, results, strict=True)
    )
    of_experts = of_experts[0] if splits == 1 else of_experts.sum(axis=0)
    return of_weights.sum(axis=0), of_experts.astype(experts.dtype)
