"""The gradients of experts and of their weights: a kernel of `pallas/gpu.py`."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

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
from dynconv_jax.functional.pallas.gpu_tiles import Call, Layer, Tile, gradient_tile


def _gradient_kernel(
    layer: Layer, tile: Tile, splits: int, precision: Any, *refs: Any
) -> None:
    """Sums the gradients of one tap for a tile of all experts, over some samples.

    Sample after sample it computes the gradient of that sample's kernel, adds its
    multiples to the experts' and multiplies it with the experts for the weights'.
    """
    weights, experts, inputs, cotangent, expert_sums, weight_parts = refs
    wide, deep = layer.out_features, layer.in_features
    tap_and_part, share = pl.program_id(0), pl.program_id(1)
    tap, part = divide(tap_and_part, layer.gradient_parts(tile))
    down, right = divide(tap, layer.kernel[1])
    line, column = divide(part, steps_over(wide, tile.features))
    columns = count_from(column, tile.features)
    rows = columns if layer.depthwise else count_from(line, tile.channels)
    lines, exist = expert_tile(layer, tap, rows, columns)
    shape = (lines.shape[0], tile.features)

    stack = lax.iota(jnp.int32, layer.stack)  # all experts at once
    is_expert = below(stack, layer.experts)
    mask = mask_of(exist, below(columns, wide))
    if mask is not None:
        mask = mask[None]
    if is_expert is not None:
        each = is_expert[:, None, None]
        mask = each if mask is None else each & mask
    here = stack[:, None, None] * np.int32(layer.numbers)
    here += grid_of(lines, columns)[None]

    def add_pixels(sample, block, total):
        position = count_from(block, tile.pixels)
        row, place = divide(position, layer.out_size[1])
        inside = (row < layer.out_size[0]) & (sample < layer.batch)
        at_row, sees_row = seen(layer, 0, row, down, False)
        at_column, sees_column = seen(layer, 1, place, right, False)
        at = sample * np.int32(math.prod(layer.in_size))
        at = (at + at_row * np.int32(layer.in_size[1]) + at_column) * np.int32(deep)
        sees = mask_of(inside & sees_row & sees_column, below(rows, deep))
        window = load(inputs, grid_of(at, rows), sees)
        at = sample * np.int32(math.prod(layer.out_size)) + position
        pulls = mask_of(inside, below(columns, wide))
        pulled = load(cotangent, grid_of(at * np.int32(wide), columns), pulls)
        if layer.depthwise:
            term = window.astype(jnp.float32) * pulled.astype(jnp.float32)
            return total + term.sum(axis=0)[None, :]
        return total + multiply(window, pulled, (0, 0), precision)

    samples = steps_over(layer.batch, splits)
    blocks = steps_over(math.prod(layer.out_size), tile.pixels)

    def add_sample(turn, sums):
        sample = share * np.int32(samples) + turn
        pixels = functools.partial(add_pixels, sample)
        own = loop(np.int32(blocks), pixels, jnp.zeros(shape, jnp.float32))[None]
        at = weights_of(layer, weights, sample, tap) + stack
        weight = load(weights, at, is_expert).astype(jnp.float32)
        taken = load(experts, here, mask).astype(jnp.float32)
        products = (own * taken).reshape(layer.stack, -1).sum(axis=1)
        to = tap_and_part * np.int32(layer.batch) + sample
        to = to * np.int32(layer.experts) + stack
        exists = jnp.broadcast_to(sample < layer.batch, stack.shape)
        if is_expert is not None:
            exists &= is_expert
        store(weight_parts, elsewhere(weight_parts, to, exists), products, exists)
        return sums + weight[:, None, None] * own

    start = jnp.zeros((layer.stack, *shape), jnp.float32)
    sums = loop(np.int32(samples), add_sample, start)
    to = share * np.int32(layer.experts * layer.numbers) + here
    store(expert_sums, elsewhere(expert_sums, to, mask), sums, mask)


def pull_experts(
    call: Call,
    weights: jax.Array,
    experts: jax.Array,
    inputs: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of the weights and of the experts.

    Args:
        call: The convolution.
        weights: Shape (B, taps, K), or (B, 1, K): the same for all taps.
        experts: Shape (K, taps, C, O), or depthwise (K, taps, 1, O).
        inputs: Shape (B, H, W, C).
        cotangent: Shape (B, H', W', O).
    """
    layer = call.layer
    tile, splits = gradient_tile(layer, widest(inputs.dtype, cotangent.dtype))
    parts = layer.gradient_parts(tile)
    summed = experts.dtype if splits == 1 else jnp.float32
    results = [
        jax.ShapeDtypeStruct((splits, *experts.shape), summed),
        jax.ShapeDtypeStruct(
            (layer.taps, parts, layer.batch, layer.experts), jnp.float32
        ),
    ]
    flat = run(
        functools.partial(_gradient_kernel, layer, tile, splits, call.precision),
        "dynconv_experts_gradient",
        results,
        (weights, experts, inputs, cotangent),
        (layer.taps * parts, splits),
        tile,
        layer.flops,
        call.interpret,
    )
    of_experts, of_weights = (
        each.reshape(result.shape) for each, result in zip(flat, results, strict=True)
    )
    of_experts = of_experts.squeeze(0) if splits == 1 else of_experts.sum(axis=0)
    if weights.shape[1] == 1:  # one for all taps
        of_weights = of_weights.sum(axis=(0, 1))[:, None]
    else:
        of_weights = of_weights.sum(axis=1).swapaxes(0, 1)
    return of_weights.astype(weights.dtype), of_experts.astype(experts.dtype)
