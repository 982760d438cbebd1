"""`"looped taps"`: shifted multiply-adds, a few samples at a time; for CPUs.

It computes what `taps.py` does, and differs in what is alive at the same time. Of the
whole batch there are only the operands and the results: what else a convolution and its
two gradients need, padded images above all, is made for the samples of a step, stays
in cache, and is written over by the next step. Temporaries of the whole batch would
soon be more than the 32 MB that glibc keeps when they are freed, and be mapped and
cleared anew at every call.

The gradients:

- of the input, with strides, one sum of taps for every remainder of a position by the
  stride (a phase), which are then interleaved; the other taps meet no output there;
- of the kernel, for each tap a sum over the rows, which is vectorised over columns and
  channels, and then one over the columns.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics, at_least_float32
from dynconv_jax.functional.taps import conv_by_taps
from dynconv_jax.functional.windows import pad_spatial, tap_offsets, window_slice

# So many bytes of images, as wide as they are summed, are the samples of a step.
_STEP = 2_000_000
# Nor are there more than so many.
_MOST_SAMPLES = 128
# Padded images of a whole batch that are larger are made step by step in the forward
# pass too; smaller ones are freed and given out again without being cleared.
_WHOLE = 24_000_000
# How many rows one fused sum adds: more is faster, and compiles longer.
_ROWS = 32


@dataclasses.dataclass(frozen=True)
class _Plane:
    """A depthwise convolution whose input has a known size.

    Attributes:
        geometry: The convolution, its padding as numbers.
        spatial: The spatial size of the input.
        output_dtype: The dtype of the result.
        step: As in `conv_by_looped_taps`.
        whole: As in `conv_by_looped_taps`.
    """

    geometry: Geometry
    spatial: tuple[int, ...]
    output_dtype: jnp.dtype
    step: int
    whole: int

    @property
    def accumulator(self) -> jnp.dtype:
        """The dtype in which sums are taken."""
        return at_least_float32(self.output_dtype)

    @property
    def size(self) -> tuple[int, ...]:
        """The spatial size of the output."""
        return self.geometry.output_size(self.spatial)

    @property
    def multiplier(self) -> int:
        """How many outputs a channel has."""
        return self.geometry.out_features // self.geometry.in_features

    def widened(self, inputs: jax.Array) -> jax.Array:
        """Pads inputs (n, *S, C), each channel once for each of its outputs."""
        padded = pad_spatial(inputs, _list(self.geometry.padding))
        padded = padded.astype(self.accumulator)
        return (
            jnp.repeat(padded, self.multiplier, -1) if self.multiplier > 1 else padded
        )

    def bytes_of_padded(self) -> int:
        """The bytes of a sample's padded input."""
        pixels = (
            size + low + high
            for size, (low, high) in zip(
                self.spatial, _list(self.geometry.padding), strict=True
            )
        )
        each = self.accumulator.itemsize * self.geometry.out_features
        return math.prod(pixels) * each

    def bytes_of_output(self) -> int:
        """The bytes of a sample's output."""
        each = self.accumulator.itemsize * self.geometry.out_features
        return math.prod(self.size) * each


def _list(padding: Any) -> Sequence[tuple[int, int]]:
    return padding


def conv_by_looped_taps(
    inputs: Float[jax.Array, "batch *spatial in_features"],
    kernel: Float[jax.Array, "batch taps out_features"],
    geometry: Geometry,
    numerics: Numerics,
    *,
    step: int = _STEP,
    whole: int = _WHOLE,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Convolves depthwise, as sums of shifted multiples of a few images at a time.

    It has a gradient rule of its own, which can be differentiated again, in either
    mode; the form itself in reverse mode only, as any `jax.custom_vjp`. A batch that is
    sharded over devices would be gathered.

    Args:
        inputs: The samples. With a size that is not known nothing can be looped over,
            nor planned by it: it is then `conv_by_taps`.
        kernel: From `arrange_for_taps`.
        geometry: The convolution, with C groups.
        numerics: Its numerical options. Sums are taken in float32 at least.
        step: How many bytes of images, as wide as they are summed, the samples of a
            step may have; there is at least one.
        whole: How many bytes the padded images of the whole batch may have for the
            forward pass to compute them at once.

    Returns:
        The outputs.
    """
    if not all(isinstance(size, int) for size in inputs.shape):
        return conv_by_taps(inputs, kernel, geometry, numerics)
    spatial = inputs.shape[1:-1]
    geometry = dataclasses.replace(geometry, padding=geometry.pads(spatial))
    dtype = numerics.output_dtype(inputs.dtype)
    plane = _Plane(geometry, spatial, dtype, step, whole)
    return _convolve(plane, inputs, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(plane: _Plane, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    if len(inputs) * plane.bytes_of_padded() <= plane.whole:
        return _outputs(plane, plane.widened(inputs), kernel)

    def step(index: jax.Array, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        convolve = functools.partial(_outputs, plane)
        return _apart(index, convolve, plane.widened(inputs), kernel)

    return _by_steps(step, _samples(plane), inputs, kernel)


def _forward(plane, inputs, kernel):
    return _convolve(plane, inputs, kernel), (inputs, kernel)


def _backward(plane, saved, cotangent):
    def step(index, inputs, kernel, cotangent):
        cotangent = cotangent.astype(plane.accumulator)
        phases, sums = _apart(
            index,
            functools.partial(_phases_and_sums, plane),
            plane.widened(inputs),
            kernel,
            cotangent,
            pad_spatial(cotangent, _reach(plane)),
        )
        of_kernel = jnp.stack([_sum_over_pixels(each) for each in sums], axis=1)
        of_inputs = _interleave(plane, phases)
        return of_inputs.astype(inputs.dtype), of_kernel.astype(kernel.dtype)

    return _by_steps(step, _samples(plane), *saved, cotangent)


_convolve.defvjp(_forward, _backward)


def _samples(plane: _Plane) -> int:
    """Returns how many samples a step may take."""
    each = plane.bytes_of_padded() + plane.bytes_of_output()
    return min(_MOST_SAMPLES, max(1, plane.step // each))


def _by_steps(step: Callable[..., Any], most: int, *arrays: jax.Array) -> Any:
    """Maps a function over the leading axis of arrays, some entries at a time.

    Args:
        step: From the index of the step, and the entries of each array, to arrays.
        most: How many entries a step may take; they are spread evenly.
        *arrays: What is mapped over.

    Returns:
        What the steps return, one after the other.
    """
    count = len(arrays[0])
    if count <= most:
        return step(jnp.zeros((), jnp.int32), *arrays)
    steps = -(-count // most)
    chunk = -(-count // steps)

    def results_of(index, start):
        own = (lax.dynamic_slice_in_dim(array, start, chunk) for array in arrays)
        return step(index, *own)

    def advance(index, results):
        # The last step begins early enough, and computes a few samples once more.
        start = jnp.minimum(index * chunk, count - chunk)
        return jax.tree.map(
            lambda array, part: lax.dynamic_update_slice_in_dim(array, part, start, 0),
            results,
            results_of(index, start),
        )

    parts = jax.eval_shape(results_of, jnp.int32(0), jnp.int32(0))
    empty = jax.tree.map(
        lambda part: lax.full_like(arrays[0], 0, part.dtype, (count, *part.shape[1:])),
        parts,
    )
    return lax.fori_loop(0, steps, advance, empty)


def _apart(index: jax.Array, function: Callable[..., Any], *operands: jax.Array) -> Any:
    """Calls a function whose operands and results are to be written down.

    XLA fuses what it can. Padding that is fused into each tap tests each index; a sum
    that is fused into a further sum is not vectorised; and what is fused into the
    update of a loop's result runs on one thread. It fuses nothing into a condition, nor
    out of it, and does not see that this one is always true.
    """
    shapes = jax.eval_shape(function, *operands)

    def never(*operands: jax.Array) -> Any:
        return jax.tree.map(
            lambda each: lax.full_like(operands[0], 0, each.dtype, each.shape), shapes
        )

    return lax.cond(index >= 0, function, never, *operands)


def _outputs(plane: _Plane, padded: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves (n, *S, O), padded, with (n, taps, O)."""
    taps = [(offsets, tap) for tap, offsets in enumerate(tap_offsets(plane.geometry))]
    sums = _sum_of_taps(padded, kernel, taps, plane.size, plane.geometry.strides)
    return sums.astype(plane.output_dtype)


def _sum_of_taps(
    padded: jax.Array,
    kernel: jax.Array,
    taps: Sequence[tuple[Sequence[int], int]],
    size: Sequence[int],
    strides: Sequence[int],
) -> jax.Array:
    """Returns Σ over taps (offsets, index) of the image from there on times kernel."""
    per_pixel = jnp.expand_dims(kernel.astype(padded.dtype), range(2, 2 + len(size)))
    terms = (
        window_slice(padded, offsets, size, strides) * per_pixel[:, tap]
        for offsets, tap in taps
    )
    return functools.reduce(jnp.add, terms)


def _phases_and_sums(plane, padded, kernel, cotangent, reached):
    return (
        _phases(plane, kernel, reached),
        [
            _sum_over_rows(plane, offsets, padded, cotangent)
            for offsets in tap_offsets(plane.geometry)
        ],
    )


def _sum_over_rows(plane, offsets, padded, cotangent):
    """Returns Σ over rows of the image from `offsets` on times the cotangent."""
    height, *pixels = plane.size
    stride, *strides = plane.geometry.strides
    # Rows are added so many at a time, in as many blocks as there are whole ones, and
    # those that are left in a block of their own.
    blocks = -(-height // _ROWS)
    rows = -(-height // blocks)
    blocks, left = divmod(height, rows)
    first, *others = offsets

    def sums(begin: int, rows: int, blocks: int) -> jax.Array:
        terms = (
            window_slice(
                padded,
                (first + row * stride, *others),
                (blocks, *pixels),
                (rows * stride, *strides),
            )
            * window_slice(
                cotangent,
                (row, *(0 for _ in pixels)),
                (blocks, *pixels),
                (rows, *(1 for _ in pixels)),
            )
            for row in range(begin, begin + rows)
        )
        return functools.reduce(jnp.add, terms)

    whole = sums(0, rows, blocks)
    if not left:
        return whole
    return lax.concatenate([whole, sums(blocks * rows, left, 1)], 1)


def _sum_over_pixels(array: jax.Array) -> jax.Array:
    return array.sum(tuple(range(1, array.ndim - 1)))


def _phases(plane: _Plane, kernel: jax.Array, reached: jax.Array) -> list[jax.Array]:
    """Returns the gradient of the input at the positions of each phase.

    Args:
        plane: The convolution.
        kernel: Shape (n, taps, O).
        reached: The cotangent, padded by `_reach`.

    Returns:
        For each remainder, in row-major order, an array (n, *counts, O): the positions
        of the padded input that leave it.
    """
    geometry = plane.geometry
    ones = (1,) * geometry.rank
    # A position stride·q + rest has been multiplied by the taps that begin at rest, and
    # by that at rest + stride·back for the output q - back.
    by_rest: dict[tuple[int, ...], list[tuple[list[int], int]]] = {}
    for tap, begins in enumerate(tap_offsets(geometry)):
        pairs = [divmod(*pair) for pair in zip(begins, geometry.strides, strict=True)]
        offsets = [
            most - back for most, (back, _) in zip(_most(geometry), pairs, strict=True)
        ]
        by_rest.setdefault(tuple(rest for _, rest in pairs), []).append((offsets, tap))
    counts = _counts(plane)
    return [
        _sum_of_taps(reached, kernel, by_rest[rests], counts, ones)
        if rests in by_rest
        else lax.full_like(reached, 0, shape=(len(reached), *counts, reached.shape[-1]))
        for rests in itertools.product(*map(range, geometry.strides))
    ]


def _interleave(plane: _Plane, phases: Sequence[jax.Array]) -> jax.Array:
    """Puts the phases together, and takes the padding and the multiplier off."""
    geometry = plane.geometry
    found = list(phases)
    for axis in reversed(range(geometry.rank)):
        stride = geometry.strides[axis]
        if stride == 1:
            continue
        merged = []
        for first in range(0, len(found), stride):
            stacked = jnp.stack(found[first : first + stride], axis + 2)
            merged.append(lax.collapse(stacked, axis + 1, axis + 3))
        found = merged
    (wide,) = found
    crops = [
        (-low, low + size - stride * count)
        for size, (low, _), stride, count in zip(
            plane.spatial,
            _list(geometry.padding),
            geometry.strides,
            _counts(plane),
            strict=True,
        )
    ]
    wide = pad_spatial(wide, crops)
    if plane.multiplier == 1:
        return wide
    return wide.reshape(*wide.shape[:-1], -1, plane.multiplier).sum(-1)


def _counts(plane: _Plane) -> list[int]:
    """Returns for each axis how many positions of the padded input a phase has."""
    return [
        max(1, -(-(low + size) // stride))
        for size, (low, _), stride in zip(
            plane.spatial,
            _list(plane.geometry.padding),
            plane.geometry.strides,
            strict=True,
        )
    ]


def _most(geometry: Geometry) -> list[int]:
    """Returns for each axis how many outputs back the last tap of a position is."""
    return [
        (extent - 1) // stride
        for extent, stride in zip(geometry.extent, geometry.strides, strict=True)
    ]


def _reach(plane: _Plane) -> list[tuple[int, int]]:
    """Returns how the cotangent is padded, so that each phase is a sum of its taps."""
    return [
        (most, count - size)
        for most, count, size in zip(
            _most(plane.geometry), _counts(plane), plane.size, strict=True
        )
    ]
