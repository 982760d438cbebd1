"""How the kernels that mix experts lie in a TPU core's memory.

With a stride, s rows of the image are one block, which every window sees whole or not
at all; the kernel's rows are filled up with zeros to whole blocks. Columns are read s
apart.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dynconv_jax.functional.pallas.tpu_layer import (
    LANES,
    VMEM_BYTES,
    Layer,
    lane_tiles,
    rounded_up,
    sublanes,
    tile_bytes,
)

# How many elements of mixed kernels, and multiply-adds, a step may unroll: more overlap
# better, and take minutes to compile.
_UNROLLED = 1_250_000
_UNROLLED_PRODUCTS = 300_000_000
_SAMPLES = (4, 2, 1)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the taps of a layer's window lie.

    Attributes:
        layer: The layer.
        skip: How many rows of zeros stand before the kernel's.
        rows: The blocks of rows of the kernel.
        low: The padding before the image, in blocks of rows.
        reach: How far the kernel's last block is from its first.
        shifts: Of each column of the window how many columns of the result it is ahead,
            by phase: (phase, shift).
    """

    layer: Layer
    skip: int
    rows: int
    low: int
    reach: int
    shifts: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, layer: Layer) -> "Plan":
        """Returns the plan of a layer."""
        stride, across = layer.strides
        low = -(-layer.low[0] // stride)
        skip = low * stride - layer.low[0]
        rows = -(-(skip + layer.window[0]) // stride)
        ahead = (
            column * layer.dilation[1] - layer.low[1]
            for column in range(layer.window[1])
        )
        shifts = tuple((each % across, each // across) for each in ahead)
        return cls(layer, skip, rows, low, (rows - 1) * layer.dilation[0], shifts)

    @property
    def slots(self) -> list[tuple[int, int, int]]:
        """What is side by side: (row in its block, phase of the column, shift)."""
        return [
            (row, *shift)
            for row in range(self.layer.strides[0])
            for shift in self.shifts
        ]

    @property
    def blocks(self) -> tuple[int, int]:
        """The size of the image in steps of the stride."""
        (tall, wide), (stride, across) = self.layer.inputs, self.layer.strides
        return -(-tall // stride), -(-wide // across)

    @property
    def told(self) -> list[int]:
        """The different shifts of columns, in order."""
        return sorted({shift for _, shift in self.shifts})

    def group(self, phase: int) -> list[int]:
        """Returns the columns of the window that see columns of a phase, by shift."""
        found = [i for i, each in enumerate(self.shifts) if each[0] == phase]
        return sorted(found, key=lambda column: self.shifts[column][1])

    def arrange(self, experts: jax.Array) -> jax.Array:
        """Lays out experts (K, kh, kw, C, O) as (K, rows, slots, C, O)."""
        num_experts, taps, columns, *channels = experts.shape
        stride = self.layer.strides[0]
        missing = self.rows * stride - self.skip - taps
        pads = [(0, 0), (self.skip, missing), (0, 0), (0, 0), (0, 0)]
        filled = jnp.pad(experts, pads) if stride > 1 else experts
        return filled.reshape(num_experts, self.rows, stride * columns, *channels)

    def restore(self, arranged: jax.Array) -> jax.Array:
        """Returns what `arrange` lays out."""
        num_experts, _, _, *channels = arranged.shape
        rows = self.rows * self.layer.strides[0]
        filled = arranged.reshape(num_experts, rows, self.layer.window[1], *channels)
        return filled[:, self.skip : self.skip + self.layer.window[0]]


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


def choose_tiles(
    memory: Callable[[int, int], int],
    batch: int,
    channels: int,
    elements: int,
    pixels: int,
) -> Tiles | None:
    """Chooses the samples and channels of a step.

    Args:
        memory: (samples, channels of a tile) → bytes.
        batch: B.
        channels: What is divided into tiles.
        elements: The elements of a kernel for each of them.
        pixels: The pixels of a sample.

    Returns:
        The most samples, and the widest tiles, that memory and compiler take; None if
        not even one sample does.
    """
    widths = [channels]
    widths += [w for w in (512, 256, 128) if w < channels and channels % w == 0]
    found = [
        Tiles(samples, width, memory(samples, width))
        for width in widths
        for samples in _SAMPLES
        if batch % samples == 0
    ]
    found = [
        tiles
        for tiles in found
        if tiles.bytes <= VMEM_BYTES
        and tiles.channels * elements * pixels <= 2 * _UNROLLED_PRODUCTS
    ]
    quick = [
        tiles
        for tiles in found
        if (unrolled := tiles.samples * tiles.channels * elements) <= _UNROLLED
        and unrolled * pixels <= _UNROLLED_PRODUCTS
    ]
    return (quick or found[-1:] or [None])[0]


# By how much the schedules of a v5e are longer than their busiest unit is busy; what a
# stride adds to that.
_FORWARD, _BACKWARD, _STRIDED = 1.12, 1.27, 1.5


def cycles(layer: Layer, shape: tuple[int, ...], dtype: Any) -> tuple[float, float]:
    """Estimates what a sample takes forward, and backward, of a v5e.

    Args:
        layer: The convolution.
        shape: The shape (K, kh, kw, C, O) of the experts.
        dtype: That of the inputs.

    Returns:
        The cycles of the busier of the units: the four matrix units, each a row of 128
        by 128 a cycle, and the vector unit, four operations on 1024 numbers a cycle.
    """
    plan = Plan.of(layer)
    num_experts, *_, features, outputs = shape
    unit, slots = sublanes(dtype), len(plan.slots)
    tall, wide = layer.outputs[0], rounded_up(layer.outputs[1], unit)
    high, across = plan.blocks[0], rounded_up(plan.blocks[1], unit)

    def tiles(lanes: int) -> int:
        return -(-lanes // LANES)

    forward = tall * wide * tiles(slots * features) * tiles(outputs)
    groups = [len(plan.group(phase)) for phase in range(layer.strides[1])]
    told = sum(tiles(size * outputs) for size in groups) * layer.strides[0]
    of_inputs = high * across * told * tiles(features)
    of_experts = slots * features * tiles(tall * wide) * tiles(outputs)
    quarter = plan.rows / 4
    registers = plan.rows * slots * features * outputs / 1024
    mix, share = (2 * num_experts - 1) / 4, num_experts
    slower = _STRIDED if max(layer.strides) > 1 else 1
    return (
        slower * _FORWARD * max(quarter * forward, registers * mix),
        slower
        * _BACKWARD
        * max(quarter * (of_inputs + of_experts), registers * (mix + share)),
    )


def _plain(plan: Plan, features: int) -> list[Any]:
    """Returns an image as float32, by tiles whose columns can be read in steps."""
    if plan.layer.strides == (1, 1):
        return []
    return [
        ((*plan.layer.inputs, lanes.stop - lanes.start), jnp.float32)
        for lanes in lane_tiles(features)
    ]


def forward_scratch(
    plan: Plan, samples: int, tile: int, shape: Any, dtype: Any
) -> list[Any]:
    """Returns shape and dtype of what the forward kernel works in.

    The copies of the images, the experts widened, the mixed kernels; with a stride, an
    image as float32.
    """
    num_experts, rows, slots, features, _ = shape
    tall, wide = plan.layer.outputs
    return [
        (
            (samples, tall + plan.reach, rounded_up(wide, sublanes(dtype)))
            + (slots * features,),
            dtype,
        ),
        ((num_experts, rows, slots * features, tile), jnp.float32),
        ((samples, rows, slots * features, tile), dtype),
        *_plain(plan, features),
    ]


def _bytes(
    blocks: list[Any], scratch: list[Any], samples: int, sums: tuple[int, int]
) -> int:
    """Returns what a kernel needs: blocks are there twice, and so are its sums."""
    return (
        2 * sum(tile_bytes(*each) for each in blocks)
        + sum(tile_bytes(*each) for each in scratch)
        + 2 * samples * tile_bytes(sums, jnp.float32)
    )


def forward_tiles(
    plan: Plan, batch: int, shape: Sequence[int], dtype: Any
) -> Tiles | None:
    """Returns the tiles of the forward kernel; None where the core has no room."""
    num_experts, rows, slots, features, outputs = shape
    layer = plan.layer

    def memory(samples: int, tile: int) -> int:
        blocks = [
            ((samples, *layer.inputs, features), dtype),
            ((num_experts, rows, slots, features, tile), dtype),
            ((samples, *layer.outputs, tile), dtype),
        ]
        scratch = forward_scratch(plan, samples, tile, shape, dtype)
        pixels = layer.outputs[0] * rounded_up(layer.outputs[1], sublanes(dtype))
        return _bytes(blocks, scratch, samples, (pixels, tile))

    pixels = math.prod(layer.outputs)
    return choose_tiles(memory, batch, outputs, rows * slots * features, pixels)


def backward_scratch(
    plan: Plan, samples: int, tile: int, shape: Any, dtype: Any
) -> list[Any]:
    """Returns shape and dtype of what the backward kernel works in.

    The copies of the images, those of the cotangents for the inputs' gradient and
    another in their place, the experts widened, the mixed kernels and the samples' own
    gradients; with a stride, an image as float32.
    """
    num_experts, rows, slots, _, outputs = shape
    unit, columns = sublanes(dtype), plan.layer.window[1]
    (tall, wide), (high, across) = plan.layer.outputs, plan.blocks
    pitch = rounded_up(wide, unit)
    of_inputs = samples, tall + plan.reach, pitch
    of_outputs = samples, high + plan.reach, rounded_up(across, unit)
    return [
        ((*of_inputs, slots * tile), dtype),
        ((*of_outputs, len(plan.told) * outputs), dtype),
        ((samples, tall, pitch, outputs), dtype),
        ((num_experts, rows, slots * tile, outputs), jnp.float32),
        ((samples, rows, plan.layer.strides[0], tile, columns * outputs), dtype),
        ((samples, rows, slots * tile, outputs), jnp.float32),
        *_plain(plan, tile),
    ]


def backward_tiles(
    plan: Plan, batch: int, shape: Sequence[int], dtype: Any
) -> Tiles | None:
    """Returns the tiles of the backward kernel; None where the core has no room."""
    num_experts, rows, slots, features, outputs = shape
    layer = plan.layer

    def memory(samples: int, tile: int) -> int:
        kernel = (num_experts, rows, slots, tile, outputs)
        blocks = [
            ((samples, *layer.inputs, tile), dtype),
            ((samples, *layer.outputs, outputs), dtype),
            (kernel, dtype),
            ((samples, *layer.inputs, tile), dtype),
            (kernel, jnp.float32),
        ]
        scratch = backward_scratch(plan, samples, tile, shape, dtype)
        pixels = layer.inputs[0] * rounded_up(layer.inputs[1], sublanes(dtype))
        return _bytes(blocks, scratch, samples, (pixels, tile))

    pixels = math.prod(layer.outputs)
    return choose_tiles(memory, batch, features, rows * slots * outputs, pixels)


def has_room(layer: Layer, batch: int, shape: tuple[int, ...], dtype: Any) -> bool:
    """Tells whether a core's memory has room for a layer, in both passes.

    Args:
        layer: The convolution.
        batch: B.
        shape: The shape (K, kh, kw, C, O) of the experts.
        dtype: That of the inputs.
    """
    plan = Plan.of(layer)
    slots = layer.strides[0] * layer.window[1]
    arranged = (shape[0], plan.rows, slots, *shape[3:])
    found = (
        tiles(plan, batch, arranged, dtype) for tiles in (forward_tiles, backward_tiles)
    )
    return all(each is not None for each in found)
