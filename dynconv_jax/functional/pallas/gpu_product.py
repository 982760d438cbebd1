"""Outputs, and the inputs' gradient: a kernel of `pallas/gpu.py`."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from dynconv_jax.functional.numerics import widest
from dynconv_jax.functional.pallas.gpu_blocks import (
    below,
    count_from,
    divide,
    elsewhere,
    expert_tile,
    grid_of,
    load,
    loop,
    mask_of,
    multiply,
    run,
    seen,
    steps_over,
    store,
    weights_of,
)
from dynconv_jax.functional.pallas.gpu_tiles import Call, Layer, Tile, product_tile


def _apply_kernel(
    layer: Layer, tile: Tile, mirrored: bool, precision: Any, *refs: Any
) -> None:
    """Sums over taps and channels for a tile of pixels and features of some samples.

    Experts are mixed once a tap and block of channels, for all pixels of the tile.
    """
    weights, experts, source, result = refs
    target, seen_size = layer.sides(mirrored)
    wide, deep = layer.features(mirrored)
    pixel, inside, first, counts = _pixels_and_taps(layer, tile, mirrored)
    features = count_from(pl.program_id(2), tile.features)
    samples = [
        pl.program_id(0) * np.int32(tile.samples) + np.int32(index)
        for index in range(tile.samples)
    ]
    taps = counts[0] * counts[1]

    def add(turn, sums):
        # Taps innermost: their windows overlap, and are still close by.
        block, tap = lax.div(turn, taps), lax.rem(turn, taps)
        steps = layer.phases if mirrored else (1, 1)
        down = first[0] + lax.div(tap, counts[1]) * np.int32(steps[0])
        right = first[1] + lax.rem(tap, counts[1]) * np.int32(steps[1])
        tap = down * np.int32(layer.kernel[1]) + right
        row, sees_row = seen(layer, 0, pixel[0], down, mirrored)
        column, sees_column = seen(layer, 1, pixel[1], right, mirrored)
        at = row * np.int32(seen_size[1]) + column
        sees = inside & sees_row & sees_column
        channels = features if layer.depthwise else count_from(block, tile.channels)
        sides = (features, channels) if mirrored else (channels, features)
        mixed = _mix(layer, weights, experts, samples, tap, *sides)
        added = []
        for sample, own, total in zip(samples, mixed, sums, strict=True):
            lines = (sample * np.int32(math.prod(seen_size)) + at) * np.int32(deep)
            mask = mask_of(sees & (sample < layer.batch), below(channels, deep))
            window = load(source, grid_of(lines, channels), mask)
            if layer.depthwise:
                term = window.astype(jnp.float32) * own.astype(jnp.float32)
            else:
                axes = (1, 1 if mirrored else 0)
                term = multiply(window, own, axes, precision)
            added.append(total + term)
        return tuple(added)

    blocks = 1 if layer.depthwise else steps_over(deep, tile.channels)
    zero = jnp.zeros((tile.pixels, tile.features), jnp.float32)
    sums = loop(taps * np.int32(blocks), add, (zero,) * tile.samples)
    at = pixel[0] * np.int32(target[1]) + pixel[1]
    for sample, total in zip(samples, sums, strict=True):
        lines = (sample * np.int32(math.prod(target)) + at) * np.int32(wide)
        exists = inside & (sample < layer.batch)
        known = below(features, wide)
        lines = elsewhere(result, lines, exists)
        index = grid_of(lines, elsewhere(result, features, known))
        store(result, index, total, mask_of(exists, known))


def _pixels_and_taps(
    layer: Layer, tile: Tile, mirrored: bool
) -> tuple[list[Any], Any, list[Any], list[Any]]:
    """Returns what a program computes.

    Returns:
        Rows and columns of its pixels; which of them exist; along both axes the first
        tap that sees any of them, and how many do. The others follow the first by the
        number of phases.
    """
    (height, width), _ = layer.sides(mirrored)
    down, right = layer.phases if mirrored else (1, 1)
    lines, across = steps_over(height, down), steps_over(width, right)
    phase, block = divide(pl.program_id(1), steps_over(lines * across, tile.pixels))
    position = count_from(block, tile.pixels)
    pixel, first, counts = [], [], []
    rests = divide(phase, right)
    for axis, step in enumerate((down, right)):
        along = divide(position, across)[axis]
        size = layer.kernel[axis]
        if step == 1:
            pixel.append(along)
            first.append(np.int32(0))
            counts.append(np.int32(size))
            continue
        pixel.append(along * np.int32(step) + rests[axis])
        begin = divide(rests[axis] + np.int32(layer.low[axis] % step), step)[1]
        first.append(begin)
        counts.append(divide(np.int32(size - 1 + step) - begin, step)[0])
    exists = (divide(position, across)[0] < lines) & (pixel[1] < width)
    return pixel, exists & (pixel[0] < height), first, counts


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
    lines, exist = expert_tile(layer, tap, rows, columns)
    index, mask = (
        grid_of(lines, columns),
        mask_of(exist, below(columns, layer.out_features)),
    )
    mixed: list[Any] = [0.0] * len(samples)
    for expert in range(layer.experts):
        here = index + np.int32(expert * layer.numbers)
        taken = load(experts, here, mask).astype(jnp.float32)
        for position, sample in enumerate(samples):
            at = weights_of(layer, weights, sample, tap) + np.int32(expert)
            mixed[position] += load(weights, at, None).astype(jnp.float32) * taken
    return [each.astype(experts.dtype) for each in mixed]


def apply_mixed(
    call: Call,
    dtype: DTypeLike,
    weights: jax.Array,
    experts: jax.Array,
    source: jax.Array,
    *,
    mirrored: bool = False,
) -> jax.Array:
    """Convolves each sample with its mixture of experts, or pulls a cotangent back.

    Args:
        call: The convolution.
        dtype: That of the result.
        weights: Shape (B, taps, K), or (B, 1, K): the same for all taps.
        experts: Shape (K, taps, C, O), or depthwise (K, taps, 1, O).
        source: The inputs (B, H, W, C); if mirrored, a cotangent (B, H', W', O).
        mirrored: Whether to compute the gradient of the inputs.

    Returns:
        Outputs (B, H', W', O), or the gradient (B, H, W, C).
    """
    layer = call.layer
    target, _ = layer.sides(mirrored)
    wide, _ = layer.features(mirrored)
    tile, grid = product_tile(layer, mirrored, widest(source.dtype, experts.dtype))
    result = jax.ShapeDtypeStruct((layer.batch, *target, wide), dtype)
    (flat,) = run(
        functools.partial(_apply_kernel, layer, tile, mirrored, call.precision),
        "dynconv_input_gradient" if mirrored else "dynconv_forward",
        [result],
        (weights, experts, source),
        grid,
        tile,
        layer.flops,
        call.interpret,
    )
    return flat.reshape(result.shape)
