"""The kernels of `"pallas"` for dense convolutions of stride 1, in Mosaic for TPUs.

Of a sample's image the padded copies that the columns of the window see are laid side
by side on the channel axis, in the core's own memory; a row of the window is then a
slice of whole tiles, and its product one of the matrix unit. The experts lie beside
them and are mixed for each sample while the matrix unit is busy with another. Backward
does both gradients of a sample in one pass: that of the experts never leaves the core
before the whole batch has been added to it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
# What of a core's memory a kernel may take; v5e, v5p and v6e have 128 MiB.
VMEM_BYTES = 96 * 2**20
# How many elements of mixed kernels a step may unroll: more overlap better, and take
# minutes to compile.
_UNROLLED = 1_250_000
_SAMPLES = (4, 2, 1)
_ROWS = 8  # of a register
SPARE_BYTES = 8 * 2**20  # for what the compiler itself keeps there


def rounded_up(size: int, unit: int) -> int:
    """Returns the least multiple of `unit` that is no less than `size`."""
    return -(-size // unit) * unit


def sublanes(dtype: Any) -> int:
    """Returns how many rows a tile of the core's memory has."""
    return 32 // jnp.dtype(dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Layer:
    """Everything static about a convolution of stride 1.

    Attributes:
        window: The size of the kernel.
        dilation: The step between its taps.
        low: How many zeros stand before each axis of the image; negative crops.
        inputs: The spatial size of the image.
        outputs: The spatial size of the result.
        precision: Of the products.
        interpret: Whether to run on the host, for tests.
    """

    window: tuple[int, int]
    dilation: tuple[int, int]
    low: tuple[int, int]
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    precision: Any = None
    interpret: bool = False

    @property
    def reach(self) -> tuple[int, int]:
        """How far a window goes beyond its first tap."""
        return (
            (self.window[0] - 1) * self.dilation[0],
            (self.window[1] - 1) * self.dilation[1],
        )


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How a kernel divides its work.

    Attributes:
        samples: The samples of a step.
        channels: The channels of a tile: outputs forward, inputs backward.
        bytes: What of the core's memory it takes.
    """

    samples: int
    channels: int
    bytes: int


def tile_bytes(shape: Sequence[int], dtype: Any) -> int:
    """Returns what an array takes of a core's memory, where it lies in whole tiles."""
    *outer, rows, lanes = shape
    tile = rounded_up(rows, sublanes(dtype)) * rounded_up(lanes, LANES)
    return math.prod(outer) * tile * jnp.dtype(dtype).itemsize


def choose_tiles(
    memory: Callable[[int, int], int],
    batch: int,
    channels: int,
    elements: int,
) -> Tiles | None:
    """Chooses the samples and channels of a step.

    Args:
        memory: (samples, channels of a tile) → bytes.
        batch: B.
        channels: What is divided into tiles.
        elements: The elements of a kernel for each of them.

    Returns:
        The most samples, and the widest tiles, that memory and compiler take; None if
        nothing fits.
    """
    widths = [channels]
    widths += [w for w in (512, 256, 128) if w < channels and channels % w == 0]
    found = [
        Tiles(samples, width, memory(samples, width))
        for width in widths
        for samples in _SAMPLES
        if batch % samples == 0
    ]
    found = [tiles for tiles in found if tiles.bytes <= VMEM_BYTES]
    quick = [
        tiles
        for tiles in found
        if tiles.samples * tiles.channels * elements <= _UNROLLED
    ]
    return (quick or found[-1:] or [None])[0]


def _forward_scratch(layer: Layer, samples: int, tile: int, shape: Any, dtype: Any):
    (num_experts, rows, columns, features, _) = shape
    height = layer.outputs[0] + layer.reach[0]
    pitch = rounded_up(layer.outputs[1], sublanes(dtype))
    return [
        ((samples, height, pitch, columns * features), dtype),
        ((num_experts, rows, columns * features, tile), jnp.float32),
        ((samples, rows, columns * features, tile), dtype),
    ]


def forward_tiles(
    layer: Layer, batch: int, shape: Sequence[int], dtype: Any
) -> Tiles | None:
    """Returns the tiles of the forward kernel; None where the core has no room."""
    num_experts, rows, columns, features, outputs = shape

    def memory(samples: int, tile: int) -> int:
        blocks = [
            ((samples, *layer.inputs, features), dtype),
            ((num_experts, rows, columns, features, tile), dtype),
            ((samples, *layer.outputs, tile), dtype),
        ]
        scratch = _forward_scratch(layer, samples, tile, shape, dtype)
        pixels = layer.outputs[0] * rounded_up(layer.outputs[1], sublanes(dtype))
        sums = 2 * samples * tile_bytes((pixels, tile), jnp.float32)
        return (
            2 * sum(tile_bytes(*each) for each in blocks)
            + sum(tile_bytes(*each) for each in scratch)
            + sums
        )

    return choose_tiles(memory, batch, outputs, rows * columns * features)


def _backward_scratch(layer: Layer, samples: int, tile: int, shape: Any, dtype: Any):
    (num_experts, rows, columns, _, outputs) = shape
    unit = sublanes(dtype)
    of_inputs = layer.outputs[0] + layer.reach[0], rounded_up(layer.outputs[1], unit)
    of_outputs = layer.inputs[0] + layer.reach[0], rounded_up(layer.inputs[1], unit)
    return [
        ((samples, *of_inputs, columns * tile), dtype),
        ((samples, *of_outputs, columns * outputs), dtype),
        ((samples, layer.outputs[0], of_inputs[1], outputs), dtype),
        ((num_experts, rows, columns * tile, outputs), jnp.float32),
        ((samples, rows, tile, columns * outputs), dtype),
        ((samples, rows, columns * tile, outputs), jnp.float32),
    ]


def backward_tiles(
    layer: Layer, batch: int, shape: Sequence[int], dtype: Any
) -> Tiles | None:
    """Returns the tiles of the backward kernel; None where the core has no room."""
    num_experts, rows, columns, features, outputs = shape

    def memory(samples: int, tile: int) -> int:
        kernel = (num_experts, rows, columns, tile, outputs)
        blocks = [
            ((samples, *layer.inputs, tile), dtype),
            ((samples, *layer.outputs, outputs), dtype),
            (kernel, dtype),
            ((samples, *layer.inputs, tile), dtype),
            (kernel, jnp.float32),
        ]
        scratch = _backward_scratch(layer, samples, tile, shape, dtype)
        pixels = layer.inputs[0] * rounded_up(layer.inputs[1], sublanes(dtype))
        sums = 2 * samples * tile_bytes((pixels, tile), jnp.float32)
        return (
            2 * sum(tile_bytes(*each) for each in blocks)
            + sum(tile_bytes(*each) for each in scratch)
            + sums
        )

    return choose_tiles(memory, batch, features, rows * columns * outputs)


def product(
    layer: Layer, left: jax.Array, right: jax.Array, axes: tuple[int, int]
) -> jax.Array:
    """Returns the product of two matrices over one axis of each, in float32."""
    return lax.dot_general(
        left,
        right,
        (((axes[0],), (axes[1],)), ((), ())),
        precision=layer.precision,
        preferred_element_type=jnp.float32,
    )


def _copy_shifted(target, sample, image, first_row, shifts):
    """Lays copies of an image (H, W, C) side by side on the channel axis.

    Copy j has column q + shifts[j] of the image in its column q, and its row r in row
    r + first_row; where there is no such pixel the target keeps its zeros.
    """
    height, width, features = image.shape
    rows, columns = target.shape[1:3]
    top, skip = max(first_row, 0), max(-first_row, 0)
    count = min(height - skip, rows - top)
    for index, shift in enumerate(shifts):
        left, begin = max(-shift, 0), max(shift, 0)
        across = min(width - begin, columns - left)
        if count <= 0 or across <= 0:
            continue
        target[
            sample,
            top : top + count,
            left : left + across,
            index * features : (index + 1) * features,
        ] = image[skip : skip + count, begin : begin + across, :]


def _blocks(rows: int, lanes: int):
    """Yields the slices of an array that few registers hold."""
    for row in range(0, rows, 16):
        for lane in range(0, lanes, LANES):
            yield slice(row, min(row + 16, rows)), slice(lane, min(lane + LANES, lanes))


def _widen(experts, wide):
    """Copies experts (K, kh, kw, C, O) as float32 (K, kh, kw·C, O)."""
    num_experts, rows, columns, features, _ = experts.shape

    def one(index, _):
        expert, row = lax.div(index, rows), lax.rem(index, rows)
        for column in range(columns):
            part = slice(column * features, (column + 1) * features)
            wide[expert, row, part, :] = experts[expert, row, column].astype(wide.dtype)
        return 0

    lax.fori_loop(0, num_experts * rows, one, 0)


def _weights(attention, first, samples, num_experts):
    return [
        [attention[first + sample, expert] for expert in range(num_experts)]
        for sample in range(samples)
    ]


def _mixed(weights, wide, row, part):
    terms = (weight * wide[k, row, *part] for k, weight in enumerate(weights))
    return functools.reduce(jnp.add, terms)


def _forward_kernel(attention, inputs, experts, outputs, copies, wide, mixed, *, layer):
    step = pl.program_id(1)
    samples, height, pitch, lanes = copies.shape
    del height
    num_experts, rows = wide.shape[:2]

    @pl.when(step == 0)
    def _():
        copies[...] = jnp.zeros_like(copies)
        _widen(experts, wide)

    shifts = [j * layer.dilation[1] - layer.low[1] for j in range(layer.window[1])]
    tall, across = layer.outputs
    weights = _weights(attention, step * samples, samples, num_experts)
    for sample in range(samples):
        _copy_shifted(copies, sample, inputs[sample], layer.low[0], shifts)
        sums = None
        for row in range(rows):
            for part in _blocks(*wide.shape[2:]):
                kernel = _mixed(weights[sample], wide, row, part)
                mixed[sample, row, *part] = kernel.astype(mixed.dtype)
            first = row * layer.dilation[0]
            seen = copies[sample, first : first + tall].reshape(tall * pitch, lanes)
            term = product(layer, seen, mixed[sample, row], (1, 0))
            sums = term if sums is None else sums + term
        assert sums is not None
        image = sums.reshape(tall, pitch, -1)[:, :across]
        outputs[sample] = image.astype(outputs.dtype)


def _backward_kernel(
    *refs: Any,
    layer: Layer,
):
    """Adds to the experts' gradients, and finds the others of the step's samples."""
    attention, inputs, cotangent, experts = refs[:4]
    of_inputs, of_attention, of_experts = refs[4:7]
    copies, back, centre, wide, mixed, own = refs[7:]
    step = pl.program_id(1)
    samples, _, pitch, lanes = copies.shape
    num_experts, rows = wide.shape[:2]
    tile, outputs = inputs.shape[-1], cotangent.shape[-1]
    columns = layer.window[1]

    @pl.when(step == 0)
    def _():
        for each in (copies, back, centre, of_experts):
            each[...] = jnp.zeros_like(each)
        _widen(experts, wide)

    offsets = [j * layer.dilation[1] - layer.low[1] for j in range(columns)]
    mirrored = [-offset for offset in offsets]
    tall, across = layer.inputs
    first_row = layer.reach[0] - layer.low[0]
    weights = _weights(attention, step * samples, samples, num_experts)
    for sample in range(samples):
        _copy_shifted(copies, sample, inputs[sample], layer.low[0], offsets)
        _copy_shifted(back, sample, cotangent[sample], first_row, mirrored)
        _copy_shifted(centre, sample, cotangent[sample], 0, [0])
        flat = centre[sample].reshape(layer.outputs[0] * pitch, outputs)
        sums: Any = None
        of_weights: list[dict[int, Any]] = [{} for _ in range(num_experts)]
        for row in range(rows):
            for column in range(columns):
                for part in _blocks(tile, outputs):
                    place = slice(
                        part[0].start + column * tile, part[0].stop + column * tile
                    )
                    kernel = _mixed(weights[sample], wide, row, (place, part[1]))
                    lane = slice(
                        part[1].start + column * outputs,
                        part[1].stop + column * outputs,
                    )
                    mixed[sample, row, part[0], lane] = kernel.astype(mixed.dtype)
            first = (rows - 1 - row) * layer.dilation[0]
            seen = back[sample, first : first + tall]
            seen = seen.reshape(-1, columns * outputs)
            term = product(layer, seen, mixed[sample, row], (1, 1))
            sums = term if sums is None else sums + term

            first = row * layer.dilation[0]
            seen = copies[sample, first : first + layer.outputs[0]]
            seen = seen.reshape(layer.outputs[0] * pitch, lanes)
            own[sample, row] = product(layer, seen, flat, (0, 0))
            for column in range(columns):
                for part in _blocks(tile, outputs):
                    place = slice(
                        part[0].start + column * tile, part[0].stop + column * tile
                    )
                    gradient = own[sample, row, place, part[1]]
                    for k, weight in enumerate(weights[sample]):
                        of_experts[k, row, column, *part] += weight * gradient
                        alike = wide[k, row, place, part[1]] * gradient
                        width = alike.shape[-1]
                        alike = alike.reshape(-1, _ROWS, width).sum(axis=0)
                        of_weights[k][width] = of_weights[k].get(width, 0.0) + alike
        image = sums.reshape(tall, -1, tile)[:, :across]
        of_inputs[sample] = image.astype(of_inputs.dtype)
        of_attention[0, sample] = jnp.zeros(of_attention.shape[2:], jnp.float32)
        for k, found in enumerate(of_weights):
            for index, (width, alike) in enumerate(found.items()):
                lane = slice(index * LANES, index * LANES + width)
                total = alike.sum(axis=0, keepdims=True)
                of_attention[0, sample, k : k + 1, lane] = total


def _call(kernel: Any, layer: Layer, tiles: Tiles, operands: Any, results: Any, **spec):
    return pl.pallas_call(
        functools.partial(kernel, layer=layer),
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in results],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"),
            vmem_limit_bytes=max(tiles.bytes + SPARE_BYTES, 16 * 2**20),
        ),
        interpret=layer.interpret,
        **spec,
    )(*operands)


def forward(
    layer: Layer, inputs: jax.Array, attention: jax.Array, experts: jax.Array
) -> jax.Array:
    """Convolves every sample with its own mixture of the experts.

    Args:
        layer: The convolution.
        inputs: Shape (B, H, W, C), C a multiple of what `sublanes` says.
        attention: Shape (B, K).
        experts: Shape (K, kh, kw, C, O).

    Returns:
        Shape (B, H_out, W_out, O), in the dtype of the inputs.
    """
    batch, features, outputs = inputs.shape[0], inputs.shape[-1], experts.shape[-1]
    tiles = forward_tiles(layer, batch, experts.shape, inputs.dtype)
    assert tiles is not None, "refused at the door"
    samples, tile = tiles.samples, tiles.channels
    scratch = _forward_scratch(layer, samples, tile, experts.shape, inputs.dtype)
    (result,) = _call(
        _forward_kernel,
        layer,
        tiles,
        (attention.astype(jnp.float32), inputs, experts),
        [((batch, *layer.outputs, outputs), inputs.dtype)],
        grid=(outputs // tile, batch // samples),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec((samples, *layer.inputs, features), lambda o, b: (b, 0, 0, 0)),
            pl.BlockSpec((*experts.shape[:-1], tile), lambda o, b: (0, 0, 0, 0, o)),
        ],
        out_specs=[
            pl.BlockSpec((samples, *layer.outputs, tile), lambda o, b: (b, 0, 0, o))
        ],
        scratch_shapes=[pltpu.VMEM(*each) for each in scratch],
    )
    return result


def backward(
    layer: Layer,
    inputs: jax.Array,
    attention: jax.Array,
    experts: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of inputs, attention and experts.

    Those of attention and experts are float32; they are summed on the core.
    """
    batch, features, outputs = inputs.shape[0], inputs.shape[-1], experts.shape[-1]
    tiles = backward_tiles(layer, batch, experts.shape, inputs.dtype)
    assert tiles is not None, "refused at the door"
    samples, tile = tiles.samples, tiles.channels
    scratch = _backward_scratch(layer, samples, tile, experts.shape, inputs.dtype)
    num_experts = experts.shape[0]
    kernel_block = (*experts.shape[:-2], tile, outputs)
    count = features // tile
    partial = (count, batch, num_experts, 2 * LANES)
    of_inputs, of_attention, of_experts = _call(
        _backward_kernel,
        layer,
        tiles,
        (attention.astype(jnp.float32), inputs, cotangent, experts),
        [
            (inputs.shape, inputs.dtype),
            (partial, jnp.float32),
            (experts.shape, jnp.float32),
        ],
        grid=(count, batch // samples),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec((samples, *layer.inputs, tile), lambda c, b: (b, 0, 0, c)),
            pl.BlockSpec((samples, *layer.outputs, outputs), lambda c, b: (b, 0, 0, 0)),
            pl.BlockSpec(kernel_block, lambda c, b: (0, 0, 0, c, 0)),
        ],
        out_specs=[
            pl.BlockSpec((samples, *layer.inputs, tile), lambda c, b: (b, 0, 0, c)),
            pl.BlockSpec((1, samples, *partial[2:]), lambda c, b: (c, b, 0, 0)),
            pl.BlockSpec(kernel_block, lambda c, b: (0, 0, 0, c, 0)),
        ],
        scratch_shapes=[pltpu.VMEM(*each) for each in scratch],
    )
    return of_inputs, of_attention.sum(axis=(0, 3)), of_experts
