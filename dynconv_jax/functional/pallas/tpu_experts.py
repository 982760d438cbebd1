"""The kernels of `"pallas"` for few pixels and wide channels, in Mosaic for TPUs.

Where a sample has few pixels, mixing a kernel for it takes longer than applying all K
experts to all samples at once, which keeps the matrix unit full; the outputs are mixed
then. Arrays lie (H, W, B, C): a tap of the window is a slice of whole tiles.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dynconv_jax.functional.pallas.tpu_layer import (
    LANES,
    VMEM_BYTES,
    Layer,
    call,
    lane_tiles,
    product,
    rounded_up,
    sublanes,
    tile_bytes,
)
from dynconv_jax.functional.pallas.tpu_plan import cycles as mixing

# How long schedules of a v5e are, against the rows that its matrix units take; and by
# how much strides lengthen them.
_FORWARD, _BACKWARD, _STRIDED = 0.91, 1.74, 1.2
# How many rows of a product a kernel unrolls; more samples are taken by another.
MOST_ROWS = 3200


def _width(channels: int, layer: Layer) -> int:
    """Returns how many channels a step takes; results in steps are one tile wide."""
    widths = (256, 128) if max(layer.strides) == 1 else (128,)
    return next((width for width in widths if channels % width == 0), channels)


def memory(layer: Layer, batch: int, shape: tuple[int, ...], dtype: Any) -> int:
    """Returns the bytes that the backward kernel, the larger one, takes of a core."""
    _, rows, columns, features, outputs = shape
    samples = rounded_up(_samples(layer, batch, dtype) or batch, sublanes(dtype))
    tile = _width(features, layer)
    pixels = math.prod(layer.inputs) * samples
    results = math.prod(layer.outputs) * samples
    kernel = (rows * columns, tile, outputs)
    backward = (
        3 * tile_bytes((results, outputs), dtype)
        + 4 * tile_bytes((pixels, tile), dtype)
        + 2 * tile_bytes(kernel, dtype)
        + 2 * tile_bytes(kernel, dtype)
        + 5 * tile_bytes((pixels, tile), jnp.float32)
    )
    tile = _width(outputs, layer)
    forward = (
        2 * tile_bytes((pixels, features), dtype)
        + tile_bytes((pixels, features), jnp.float32)
        + 2 * tile_bytes((rows * columns, features, tile), dtype)
        + 2 * tile_bytes((results, tile), dtype)
        + 4 * tile_bytes((results, tile), jnp.float32)
    )
    return max(forward, backward)


def _samples(layer: Layer, batch: int, dtype: Any) -> int | None:
    """Returns how many samples a kernel takes at once; None if they fill no tiles."""
    unit = sublanes(dtype)
    most = max(MOST_ROWS // math.prod(layer.outputs), unit)
    whole = (each for each in range(unit, batch + 1, unit) if batch % each == 0)
    return max((each for each in whole if each <= most), default=None)


def cycles(layer: Layer, shape: tuple[int, ...]) -> tuple[float, float]:
    """Estimates what a sample takes forward, and backward, of a v5e.

    As `cycles` of the kernels that mix experts: those of the matrix units.
    """
    num_experts, *_, features, outputs = shape
    seen = sum(math.prod(each.size for each in span[1]) for span in _spans(layer))
    tiles = -(-features // LANES) * -(-outputs // LANES)
    rows = num_experts * seen * tiles / 4
    rows *= _STRIDED if max(layer.strides) > 1 else 1
    return _FORWARD * rows, _BACKWARD * rows


def takes(layer: Layer, batch: int, shape: tuple[int, ...], dtype: Any) -> bool:
    """Tells whether these kernels can compute a layer and are ahead of mixing."""
    can = _samples(layer, batch, dtype) is not None
    if max(layer.strides) > 1:
        can = can and _width(shape[-2], layer) <= LANES
    can = can and memory(layer, batch, shape, dtype) <= VMEM_BYTES
    return can and sum(cycles(layer, shape)) < sum(mixing(layer, shape, dtype))


def _spans(layer: Layer) -> list[tuple[int, Any, Any]]:
    """Returns for each tap where windows and image meet, padding left out.

    The tap's index, the slices (rows, columns) of the result, those of the image; taps
    that see more come first. A tap that sees padding only is left out.
    """
    found = []
    for tap in range(math.prod(layer.window)):
        results, images = [], []
        for axis, index in enumerate(divmod(tap, layer.window[1])):
            stride = layer.strides[axis]
            ahead = index * layer.dilation[axis] - layer.low[axis]
            first = max(-(ahead // stride), 0)
            end = min(
                layer.outputs[axis], (layer.inputs[axis] - 1 - ahead) // stride + 1
            )
            count = max(end - first, 0)
            results.append(pl.ds(first, count))
            images.append(pl.ds(first * stride + ahead, count, stride))
        if all(each.size for each in results):
            found.append((tap, tuple(results), tuple(images)))
    return sorted(found, key=lambda span: -math.prod(each.size for each in span[1]))


def _rows(image: Any) -> Any:
    """Returns an image (H, W, B, C) as rows (H·W·B, C)."""
    return image.reshape(-1, image.shape[-1])


def _column(weights, expert):
    """Returns the weights (B, K) of one expert, to multiply images (H, W, B, C)."""
    index = lax.broadcasted_iota(jnp.int32, weights.shape, 1)
    chosen = jnp.where(index == expert, weights[...], 0.0)
    return chosen.sum(axis=1, keepdims=True)[None, None]


def _add(target: Any, place: Any, rows: Any, is_first: bool) -> None:
    """Adds rows (H·W·B, C) to a part of an image (H, W, B, C); the first clears it."""
    shape = tuple(each.size for each in place)
    if is_first and shape == target.shape[:2]:
        target[...] = rows.reshape(target.shape)
        return
    if is_first:
        target[...] = jnp.zeros_like(target)
    held = target[*place]
    target[*place] = held + rows.reshape(held.shape)


def _plain(layer: Layer, batch: int, features: int) -> list[Any]:
    """Returns the memory for an image that can be read in steps, where there are."""
    if layer.strides == (1, 1):
        return []
    return [
        pltpu.VMEM((*layer.inputs, batch, lanes.stop - lanes.start), jnp.float32)
        for lanes in lane_tiles(features)
    ]


def _read(inputs: Any, plains: Any, place: Any) -> Any:
    """Returns pixels of an image as rows (H·W·B, C)."""
    if not plains:
        return _rows(inputs[*place])
    parts = [plain[*place].astype(inputs.dtype) for plain in plains]
    return _rows(jnp.concatenate(parts, axis=-1))


def _start(sums: Any, inputs: Any, plains: Any) -> None:
    """Prepares what is used for every expert, with the first."""

    @pl.when(pl.program_id(1) == 0)
    def _():
        sums[...] = jnp.zeros_like(sums)
        for lanes, plain in zip(lane_tiles(inputs.shape[-1]), plains, strict=False):
            plain[...] = inputs[:, :, :, lanes].astype(plain.dtype)


def _forward_kernel(weights, inputs, experts, outputs, own, sums, *plains, layer):
    expert = pl.program_id(1)
    _start(sums, inputs, plains)
    for index, (tap, results, images) in enumerate(_spans(layer)):
        seen = _read(inputs, plains, images)
        _add(own, results, product(layer, seen, experts[0, tap], (1, 0)), index == 0)
    sums[...] += own[...] * _column(weights, expert)

    @pl.when(expert == pl.num_programs(1) - 1)
    def _():
        outputs[...] = sums[...].astype(outputs.dtype)


def _backward_kernel(*refs: Any, layer: Layer):
    weights, inputs, cotangent, experts, of_inputs, of_weights, of_experts = refs[:7]
    weighted, own, sums, *plains = refs[7:]
    expert = pl.program_id(1)
    weight = _column(weights, expert)
    _start(sums, inputs, plains)
    told = cotangent[...].astype(jnp.float32) * weight
    weighted[...] = told.astype(weighted.dtype)
    spans = _spans(layer)
    for tap in {*range(experts.shape[1])} - {tap for tap, _, _ in spans}:
        of_experts[0, tap] = jnp.zeros(of_experts.shape[2:], of_experts.dtype)
    for index, (tap, results, images) in enumerate(spans):
        term = product(layer, _rows(cotangent[*results]), experts[0, tap], (1, 1))
        _add(own, images, term, index == 0)
        seen = _read(inputs, plains, images)
        own_gradient = product(layer, seen, _rows(weighted[*results]), (0, 0))
        of_experts[0, tap] = own_gradient.astype(of_experts.dtype)
    sums[...] += own[...] * weight
    alike = own[...] * inputs[...].astype(jnp.float32)
    of_weights[0, 0] = alike.sum(axis=(0, 1))

    @pl.when(expert == pl.num_programs(1) - 1)
    def _():
        of_inputs[...] = sums[...].astype(of_inputs.dtype)


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
    parts = [
        _forward_part(layer, images, weights, experts)
        for (images,), weights in _parts(layer, attention, inputs)
    ]
    return jnp.concatenate(parts, axis=2)


def _parts(
    layer: Layer, attention: jax.Array, *images: jax.Array
) -> Iterator[tuple[list[jax.Array], jax.Array]]:
    """Yields images and attention of the samples that a kernel takes at once."""
    samples = _samples(layer, attention.shape[0], images[0].dtype)
    assert samples is not None, "refused by `takes`"
    for first in range(0, attention.shape[0], samples):
        part = slice(first, first + samples)
        yield [each[:, :, part] for each in images], attention[part]


def _forward_part(
    layer: Layer, inputs: jax.Array, attention: jax.Array, experts: jax.Array
) -> jax.Array:
    batch, features = inputs.shape[2:]
    num_experts, outputs = experts.shape[0], experts.shape[-1]
    tile, taps = _width(outputs, layer), math.prod(layer.window)
    sums = pltpu.VMEM((*layer.outputs, batch, tile), jnp.float32)
    (result,) = call(
        functools.partial(_forward_kernel, layer=layer),
        (attention.astype(jnp.float32), inputs, _flat(experts)),
        [((*layer.outputs, batch, outputs), inputs.dtype)],
        layer.interpret,
        grid=(outputs // tile, num_experts),
        in_specs=[
            pl.BlockSpec((batch, num_experts), lambda o, k: (0, 0)),
            pl.BlockSpec(inputs.shape, lambda o, k: (0, 0, 0, 0)),
            pl.BlockSpec((1, taps, features, tile), lambda o, k: (k, 0, 0, o)),
        ],
        out_specs=[
            pl.BlockSpec((*layer.outputs, batch, tile), lambda o, k: (0, 0, 0, o))
        ],
        scratch_shapes=[sums, sums, *_plain(layer, batch, features)],
    )
    return result


def backward(
    layer: Layer,
    inputs: jax.Array,
    attention: jax.Array,
    experts: jax.Array,
    cotangent: jax.Array,
    dtype: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of inputs, attention and, in `dtype`, experts.

    Each is rounded once. That of attention is float32.
    """
    parts = list(_parts(layer, attention, inputs, cotangent))
    partial = dtype if len(parts) == 1 else jnp.float32
    found = [
        _backward_part(layer, images, weights, experts, told, partial)
        for (images, told), weights in parts
    ]
    of_inputs, of_attention, of_experts = zip(*found, strict=True)
    return (
        jnp.concatenate(of_inputs, axis=2),
        jnp.concatenate(of_attention),
        functools.reduce(jnp.add, of_experts),
    )


def _backward_part(
    layer: Layer,
    inputs: jax.Array,
    attention: jax.Array,
    experts: jax.Array,
    cotangent: jax.Array,
    dtype: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    batch, features = inputs.shape[2:]
    num_experts, outputs = experts.shape[0], experts.shape[-1]
    tile, taps = _width(features, layer), math.prod(layer.window)
    count = features // tile
    sums = pltpu.VMEM((*layer.inputs, batch, tile), jnp.float32)
    images = pl.BlockSpec((*layer.inputs, batch, tile), lambda c, k: (0, 0, 0, c))
    kernels = pl.BlockSpec((1, taps, tile, outputs), lambda c, k: (k, 0, c, 0))
    flat = _flat(experts)
    of_inputs, of_attention, of_experts = call(
        functools.partial(_backward_kernel, layer=layer),
        (attention.astype(jnp.float32), inputs, cotangent, flat),
        [
            (inputs.shape, inputs.dtype),
            ((count, num_experts, batch, tile), jnp.float32),
            (flat.shape, dtype),
        ],
        layer.interpret,
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
            pltpu.VMEM(cotangent.shape, inputs.dtype),
            *(sums, sums, *_plain(layer, batch, tile)),
        ],
    )
    summed = of_attention.sum(axis=(0, 3)).T
    return of_inputs, summed, of_experts.reshape(experts.shape)
