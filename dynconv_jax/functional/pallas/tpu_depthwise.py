"""The kernels of `"pallas"` for depthwise convolutions, in Mosaic for TPUs.

There is nothing for the matrix unit: each tap is one multiply-add of the vector unit
for every pixel. Arrays lie (H, W, B, C), as XLA lays out images on a TPU as well: a
register then has eight samples by 128 channels, each with weights of its own, a shift
moves nothing, and of what does not fill a register nothing ever reaches the rest.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.pallas.tpu_layer import (
    LANES,
    call,
    rounded_up,
    sublanes,
)

_ROWS = 8  # of a register: samples
_COLUMNS = 8  # how many pixels of a row are summed in registers


def _padded_size(geometry: Geometry, spatial: Any) -> tuple[int, ...]:
    """Returns the size of what all windows together see."""
    return tuple(
        (size - 1) * stride + extent
        for size, stride, extent in zip(
            geometry.output_size(spatial),
            geometry.strides,
            geometry.extent,
            strict=True,
        )
    )


def _samples(batch: int, dtype: Any) -> int:
    return min(batch, sublanes(dtype))


def memory(geometry: Geometry, shape: tuple[int, ...], dtype: Any) -> int:
    """Returns the bytes that the backward kernel, the larger one, takes of a core."""
    batch, *spatial, _ = shape
    samples = _samples(batch, dtype)
    pixels = math.prod(spatial), math.prod(geometry.output_size(spatial))
    size = jnp.dtype(dtype).itemsize
    blocks = (2 * pixels[0] + pixels[1]) * rounded_up(samples, sublanes(dtype)) * size
    blocks += 2 * geometry.taps * rounded_up(samples, _ROWS) * 4
    tall, wide = _padded_size(geometry, spatial)
    beyond = [2 * (extent - 1) for extent in geometry.extent]
    back = math.prod(
        side + more
        for side, more in zip(geometry.output_size(spatial), beyond, strict=True)
    )
    copies = (tall * wide + back) * rounded_up(samples, _ROWS) * 4
    return LANES * (2 * blocks + copies)


def _pad_into(target: Any, image: Any, lows: tuple[int, int]) -> None:
    """Copies an image (H, W, B, C) to where its padding leaves it, as float32."""
    target[...] = jnp.zeros_like(target)
    parts, sources = [], []
    for low, size, room in zip(lows, image.shape[:2], target.shape[:2], strict=True):
        first, skip = max(low, 0), max(-low, 0)
        count = max(min(size - skip, room - first), 0)
        parts.append((first, skip, count))
        sources.append(count)
    if not all(sources):
        return
    (top, skip_rows, rows), (left, skip_columns, columns) = parts

    def one(row, _):
        line = image[skip_rows + row, skip_columns : skip_columns + columns]
        target[top + row, left : left + columns] = line.astype(target.dtype)
        return 0

    lax.fori_loop(0, rows, one, 0)


def _spans(columns: int):
    for first in range(0, columns, _COLUMNS):
        yield first, min(_COLUMNS, columns - first)


def _sum_taps(padded, kernel, terms, rows, columns, store, strides):
    """Sums taps for every pixel of a row: the loop of all that is convolved here.

    Args:
        padded: (H, W, B, C), float32, in the core's memory.
        kernel: (taps, B, C).
        terms: For each residue of a column (first column of the result, step, and for
            each of its taps: index of the tap, row and column of the image from where
            the result's pixel 0 sees it).
        rows: How many turns the loop makes.
        columns: How many columns a residue has.
        store: (turn, residue, column, sum or None).
        strides: How far the image moves for each turn, and for each column.
    """

    def turn(row, _):
        for residue, taps in enumerate(terms):
            for first, count in _spans(columns[residue]):
                sums: list[Any] = [None] * count
                for index, tap_row, tap_column in taps:
                    weight = kernel[index]
                    for column in range(count):
                        seen = padded[
                            row * strides[0] + tap_row,
                            (first + column) * strides[1] + tap_column,
                        ]
                        term = seen * weight
                        held = sums[column]
                        sums[column] = term if held is None else held + term
                for column, total in enumerate(sums):
                    store(row, residue, first + column, total)
        return 0

    lax.fori_loop(0, rows, turn, 0)


def _forward_kernel(inputs, kernel, outputs, padded, *, geometry, lows):
    tall, wide = outputs.shape[:2]
    _pad_into(padded, inputs, lows)
    (rows, columns), (down, across) = geometry.kernel_size, geometry.kernel_dilation
    taps = [
        (i * columns + j, i * down, j * across)
        for i in range(rows)
        for j in range(columns)
    ]

    def store(row, residue, column, total):
        del residue
        outputs[row, column] = total.astype(outputs.dtype)

    _sum_taps(padded, kernel, [taps], tall, [wide], store, geometry.strides)


def _backward_kernel(
    inputs,
    kernel,
    cotangent,
    of_inputs,
    of_kernel,
    padded,
    back,
    *,
    geometry,
    lows,
):
    _pad_into(padded, inputs, lows)
    reach = [extent - 1 for extent in geometry.extent]
    _pad_into(back, cotangent, tuple(reach))
    _input_gradient(kernel, back, of_inputs, geometry, lows, reach)
    _kernel_gradient(padded, cotangent, of_kernel, geometry)


def _input_gradient(kernel, back, of_inputs, geometry, lows, reach):
    """Sums, for each pixel of the image, what the windows that see it are told.

    Pixel r sees tap i from the window (r + low − i·d) / s, where that is whole: so the
    pixels of each residue by s have taps of their own.
    """
    (rows, columns), strides = geometry.kernel_size, geometry.strides
    (down, across), (tall, wide) = geometry.kernel_dilation, of_inputs.shape[:2]
    for row_residue in range(min(strides[0], tall)):
        residues = range(min(strides[1], wide))
        terms: list[list[tuple[int, int, int]]] = [[] for _ in residues]
        for i in range(rows):
            row, left = divmod(row_residue + lows[0] - i * down, strides[0])
            for residue in residues:
                for j in range(columns):
                    column, rest = divmod(residue + lows[1] - j * across, strides[1])
                    if not left and not rest:
                        index = i * columns + j
                        place = row + reach[0], column + reach[1]
                        terms[residue].append((index, *place))
        counts = [len(range(residue, wide, strides[1])) for residue in residues]

        def store(row, residue, column, total, row_residue=row_residue):
            place = row * strides[0] + row_residue, column * strides[1] + residue
            if total is None:  # no window sees it
                total = jnp.zeros(of_inputs.shape[2:], jnp.float32)
            of_inputs[*place] = total.astype(of_inputs.dtype)

        turns = len(range(row_residue, tall, strides[0]))
        _sum_taps(back, kernel, terms, turns, counts, store, (1, 1))


def _kernel_gradient(padded, cotangent, of_kernel, geometry):
    """Sums, for each tap, over all pixels, image times cotangent."""
    (rows, columns), strides = geometry.kernel_size, geometry.strides
    (down, across), (tall, wide) = geometry.kernel_dilation, cotangent.shape[:2]
    of_kernel[...] = jnp.zeros_like(of_kernel)

    def turn(row, _):
        for first, count in _spans(wide):
            line = range(first, first + count)
            told = [cotangent[row, column].astype(jnp.float32) for column in line]
            for i in range(rows):
                for j in range(columns):
                    total = None
                    for column, each in zip(line, told, strict=True):
                        seen = padded[
                            row * strides[0] + i * down,
                            column * strides[1] + j * across,
                        ]
                        term = seen * each
                        total = term if total is None else total + term
                    of_kernel[i * columns + j] += total
        return 0

    lax.fori_loop(0, tall, turn, 0)


def _blocks(geometry, shape, dtype):
    """Returns the grid, and how the blocks of images and of kernels are found."""
    batch, *_, features = shape
    samples, lanes = _samples(batch, dtype), min(LANES, features)
    grid = (pl.cdiv(batch, samples), pl.cdiv(features, lanes))

    def images(size):
        return pl.BlockSpec((*size, samples, lanes), lambda b, c: (0, 0, b, c))

    kernels = pl.BlockSpec((geometry.taps, samples, lanes), lambda b, c: (0, b, c))
    return grid, images, kernels, samples, lanes


def _bind(kernel, geometry: Geometry, spatial: Any):
    lows = tuple(low for low, _ in geometry.pads(spatial))

    def bound(*refs):
        kernel(*refs, geometry=geometry, lows=lows)

    return bound


def forward(
    geometry: Geometry, interpret: bool, inputs: jax.Array, kernel: jax.Array
) -> jax.Array:
    """Convolves samples (H, W, B, C) with kernels (taps, B, C), depthwise.

    Returns:
        Shape (H_out, W_out, B, C), in the dtype of the inputs. Sums are float32.
    """
    *spatial, batch, features = inputs.shape
    size = geometry.output_size(spatial)
    grid, images, kernels, samples, lanes = _blocks(
        geometry, (batch, *spatial, features), inputs.dtype
    )
    padded = (*_padded_size(geometry, spatial), samples, lanes)
    (result,) = call(
        _bind(_forward_kernel, geometry, spatial),
        (inputs, kernel.astype(jnp.float32)),
        [((*size, batch, features), inputs.dtype)],
        interpret,
        grid=grid,
        in_specs=[images(spatial), kernels],
        out_specs=[images(size)],
        scratch_shapes=[pltpu.VMEM(padded, jnp.float32)],
    )
    return result


def backward(
    geometry: Geometry,
    interpret: bool,
    inputs: jax.Array,
    kernel: jax.Array,
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of the inputs and, in float32, of the kernels."""
    *spatial, batch, features = inputs.shape
    size = geometry.output_size(spatial)
    grid, images, kernels, samples, lanes = _blocks(
        geometry, (batch, *spatial, features), inputs.dtype
    )
    padded = (*_padded_size(geometry, spatial), samples, lanes)
    reach = [2 * (extent - 1) for extent in geometry.extent]
    sides = [side + more for side, more in zip(size, reach, strict=True)]
    of_inputs, of_kernel = call(
        _bind(_backward_kernel, geometry, spatial),
        (inputs, kernel.astype(jnp.float32), cotangent),
        [(inputs.shape, inputs.dtype), (kernel.shape, jnp.float32)],
        interpret,
        grid=grid,
        in_specs=[images(spatial), kernels, images(size)],
        out_specs=[images(spatial), kernels],
        scratch_shapes=[
            pltpu.VMEM(padded, jnp.float32),
            pltpu.VMEM((*sides, samples, lanes), jnp.float32),
        ],
    )
    return of_inputs, of_kernel
