"""The kernels of `"pallas"` for few pixels and wide channels, in Mosaic for TPUs.

Where a sample has few pixels, mixing a kernel for it takes longer than applying all K
experts to all samples at once, which keeps the matrix unit full; the outputs are mixed
then. Arrays lie (H, W, B, C): a tap of the window is a slice of whole tiles.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dynconv_jax.functional.pallas_dense import (
    SPARE_BYTES,
    VMEM_BYTES,
    Layer,
    product,
    rounded_up,
    sublanes,
    tile_bytes,
)

# Up to so many pixels of a sample's result this is ahead of mixing kernels.
FEW_PIXELS = 64


def _width(channels: int) -> int:
    """Returns how many channels a step takes."""
    return next((w for w in (256, 128) if channels % w == 0), channels)


def _reached(layer: Layer, size: tuple[int, int]) -> tuple[int, int]:
    return size[0] + layer.reach[0], size[1] + layer.reach[1]


def memory(layer: Layer, batch: int, shape: tuple[int, ...], dtype: Any) -> int:
    """Returns the bytes that the backward kernel, the larger one, takes of a core."""
    _, rows, columns, features, outputs = shape
    samples = rounded_up(batch, sublanes(dtype))
    tile = _width(features)
    pixels = math.prod(layer.inputs) * samples
    reached = math.prod(_reached(layer, layer.inputs)) * samples
    kernel = (rows * columns, tile, outputs)
    backward = (
        2 * tile_bytes((math.prod(layer.outputs) * samples, outputs), dtype)
        + 4 * tile_bytes((pixels, tile), dtype)
        + 2 * tile_bytes(kernel, dtype)
        + 2 * tile_bytes(kernel, jnp.float32)
        + 2 * tile_bytes((reached, outputs), dtype)
        + tile_bytes((tile, pixels), dtype)
        + 4 * tile_bytes((pixels, tile), jnp.float32)
    )
    tile = _width(outputs)
    seen = math.prod(_reached(layer, layer.outputs)) * samples
    results = math.prod(layer.outputs) * samples
    forward = (
        2 * tile_bytes((pixels, features), dtype)
        + 2 * tile_bytes((rows * columns, features, tile), dtype)
        + 2 * tile_bytes((results, tile), dtype)
        + tile_bytes((seen, features), dtype)
        + 4 * tile_bytes((results, tile), jnp.float32)
    )
    return max(forward, backward)


def takes(layer: Layer, batch: int, shape: tuple[int, ...], dtype: Any) -> bool:
    """Returns whether these kernels can compute a layer and are ahead of mixing."""
    few = math.prod(layer.outputs) <= FEW_PIXELS
    whole = batch % sublanes(dtype) == 0 and min(layer.low) >= 0
    return few and whole and memory(layer, batch, shape, dtype) <= VMEM_BYTES


def _pad_into(target, image, lows, weights=None):
    """Copies an image (H, W, B, C), cut where it does not fit, row by row.

    Args:
        target: Where to; it is cleared first.
        image: What is copied.
        lows: How many zeros stand before each axis; negative cuts.
        weights: Shape (B, 1), what each sample is multiplied by, or None.
    """
    target[...] = jnp.zeros_like(target)
    spans = []
    for low, size, room in zip(lows, image.shape[:2], target.shape[:2], strict=True):
        first, skip = max(low, 0), max(-low, 0)
        spans.append((first, skip, max(min(size - skip, room - first), 0)))
    (top, skip_rows, rows), (left, skip_columns, columns) = spans
    for row in range(rows):
        for column in range(columns):
            pixel = image[skip_rows + row, skip_columns + column]
            if weights is not None:
                pixel = pixel.astype(jnp.float32) * weights
            target[top + row, left + column] = pixel.astype(target.dtype)


def _window(padded, layer, tap, size):
    """Returns what a tap of the window sees, as rows (H·W·B, C)."""
    columns = layer.window[1]
    row = lax.div(tap, columns) * layer.dilation[0]
    column = lax.rem(tap, columns) * layer.dilation[1]
    seen = padded[pl.ds(row, size[0]), pl.ds(column, size[1])]
    return seen.reshape(-1, padded.shape[-1])


def _column(weights, expert):
    """Returns the weights (B, K) of one expert, as a column (B, 1)."""
    index = lax.broadcasted_iota(jnp.int32, weights.shape, 1)
    chosen = jnp.where(index == expert, weights[...], 0.0)
    return chosen.sum(axis=1, keepdims=True)


def _forward_kernel(weights, inputs, experts, outputs, padded, own, sums, *, layer):
    expert = pl.program_id(1)

    @pl.when(expert == 0)
    def _():
        _pad_into(padded, inputs, layer.low)
        sums[...] = jnp.zeros_like(sums)

    own[...] = jnp.zeros_like(own)

    def tap(index, _):
        seen = _window(padded, layer, index, layer.outputs)
        own[...] += product(layer, seen, experts[0, index], (1, 0))
        return 0

    lax.fori_loop(0, experts.shape[1], tap, 0)
    samples = weights.shape[0]
    weight = _column(weights, expert)
    sums[...] += own[...].reshape(-1, samples, own.shape[-1]) * weight

    @pl.when(expert == pl.num_programs(1) - 1)
    def _():
        outputs[...] = sums[...].reshape(outputs.shape).astype(outputs.dtype)


def _backward_kernel(*refs: Any, layer: Layer):
    weights, inputs, cotangent, experts, of_inputs, of_weights, of_experts = refs[:7]
    back, weighted, turned, own, sums = refs[7:]
    expert = pl.program_id(1)
    samples, tile = weights.shape[0], inputs.shape[-1]
    lows = [layer.reach[axis] - layer.low[axis] for axis in range(2)]
    weight = _column(weights, expert)

    @pl.when(expert == 0)
    def _():
        _pad_into(back, cotangent, lows)
        turned[...] = inputs[...].reshape(-1, tile).T
        sums[...] = jnp.zeros_like(sums)

    _pad_into(weighted, cotangent, lows, weight)
    own[...] = jnp.zeros_like(own)
    taps = experts.shape[1]

    def tap(index, _):
        mirrored = taps - 1 - index
        seen = _window(back, layer, index, layer.inputs)
        own[...] += product(layer, seen, experts[0, mirrored], (1, 1))
        seen = _window(weighted, layer, index, layer.inputs)
        of_experts[0, mirrored] = product(layer, turned[...], seen, (1, 0))
        return 0

    lax.fori_loop(0, taps, tap, 0)
    found = own[...].reshape(-1, samples, tile)
    sums[...] += found * weight
    alike = found * inputs[...].reshape(-1, samples, tile).astype(jnp.float32)
    of_weights[0, 0] = alike.sum(axis=0)

    @pl.when(expert == pl.num_programs(1) - 1)
    def _():
        of_inputs[...] = sums[...].reshape(of_inputs.shape).astype(of_inputs.dtype)


def _call(kernel: Any, layer: Layer, operands: Any, results: Any, **spec: Any) -> Any:
    def bound(*refs):
        kernel(*refs, layer=layer)

    return pl.pallas_call(
        bound,
        out_shape=[jax.ShapeDtypeStruct(*result) for result in results],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"),
            vmem_limit_bytes=VMEM_BYTES + SPARE_BYTES,
        ),
        interpret=layer.interpret,
        **spec,
    )(*operands)


def _flat(experts: jax.Array) -> jax.Array:
    num_experts, rows, columns, *channels = experts.shape
    return experts.reshape(num_experts, rows * columns, *channels)


def forward(
    layer: Layer, inputs: jax.Array, attention: jax.Array, experts: jax.Array
) -> jax.Array:
    """Convolves samples (H, W, B, C) with their mixtures of experts (K, kh, kw, C, O).

    Returns:
        Shape (H_out, W_out, B, O), in the dtype of the inputs.
    """
    batch, features = inputs.shape[2:]
    num_experts, outputs = experts.shape[0], experts.shape[-1]
    tile, taps = _width(outputs), math.prod(layer.window)
    rows = math.prod(layer.outputs) * batch
    padded = (*_reached(layer, layer.outputs), batch, features)
    (result,) = _call(
        _forward_kernel,
        layer,
        (attention.astype(jnp.float32), inputs, _flat(experts)),
        [((*layer.outputs, batch, outputs), inputs.dtype)],
        grid=(outputs // tile, num_experts),
        in_specs=[
            pl.BlockSpec((batch, num_experts), lambda o, k: (0, 0)),
            pl.BlockSpec(inputs.shape, lambda o, k: (0, 0, 0, 0)),
            pl.BlockSpec((1, taps, features, tile), lambda o, k: (k, 0, 0, o)),
        ],
        out_specs=[
            pl.BlockSpec((*layer.outputs, batch, tile), lambda o, k: (0, 0, 0, o))
        ],
        scratch_shapes=[
            pltpu.VMEM(padded, inputs.dtype),
            pltpu.VMEM((rows, tile), jnp.float32),
            pltpu.VMEM((rows // batch, batch, tile), jnp.float32),
        ],
    )
    return result


def backward(
    layer: Layer,
    inputs: jax.Array,
    attention: jax.Array,
    experts: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of inputs, attention and experts, the latter in float32."""
    batch, features = inputs.shape[2:]
    num_experts, outputs = experts.shape[0], experts.shape[-1]
    tile, taps = _width(features), math.prod(layer.window)
    count, pixels = features // tile, math.prod(layer.inputs)
    rows = pixels * batch
    reached = (*_reached(layer, layer.inputs), batch, outputs)
    images = pl.BlockSpec((*layer.inputs, batch, tile), lambda c, k: (0, 0, 0, c))
    kernels = pl.BlockSpec((1, taps, tile, outputs), lambda c, k: (k, 0, c, 0))
    flat = _flat(experts)
    of_inputs, of_attention, of_experts = _call(
        _backward_kernel,
        layer,
        (attention.astype(jnp.float32), inputs, cotangent, flat),
        [
            (inputs.shape, inputs.dtype),
            ((count, num_experts, batch, tile), jnp.float32),
            (flat.shape, jnp.float32),
        ],
        grid=(count, num_experts),
        in_specs=[
            pl.BlockSpec((batch, num_experts), lambda c, k: (0, 0)),
            images,
            pl.BlockSpec(cotangent.shape, lambda c, k: (0, 0, 0, 0)),
            kernels,
        ],
        out_specs=[
            images,
            pl.BlockSpec((1, 1, batch, tile), lambda c, k: (c, k, 0, 0)),
            kernels,
        ],
        scratch_shapes=[
            pltpu.VMEM(reached, inputs.dtype),
            pltpu.VMEM(reached, inputs.dtype),
            pltpu.VMEM((tile, rows), inputs.dtype),
            pltpu.VMEM((rows, tile), jnp.float32),
            pltpu.VMEM((pixels, batch, tile), jnp.float32),
        ],
    )
    summed = of_attention.sum(axis=(0, 3)).T
    return of_inputs, summed, of_experts.reshape(experts.shape)
