"""The kernels of `"pallas"` that mix experts for each sample, in Mosaic for TPUs.

Of a sample's image the padded copies that the columns of the window see are laid side
by side on the channel axis, in the core's own memory; a row of the window is then a
slice of whole tiles, and its product one of the matrix unit. The experts lie beside
them and are mixed for each sample while the matrix unit is busy with another. Backward
does both gradients of a sample in one pass: that of the experts never leaves the core
before the whole batch has been added to it.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dynconv_jax.functional.pallas.tpu_layer import (
    LANES,
    Layer,
    call,
    lane_tiles,
    product,
)
from dynconv_jax.functional.pallas.tpu_plan import (
    Plan,
    backward_scratch,
    backward_tiles,
    forward_scratch,
    forward_tiles,
)

_ROWS = 8  # of a register


def _phase(image: Any, plains: Any, layer: Layer, row: int, column: int) -> Any:
    """Returns the pixels of an image that are a stride apart."""
    if not plains:
        return image
    place = _steps(layer, 0, row), _steps(layer, 1, column)
    parts = [plain[*place, :].astype(image.dtype) for plain in plains]
    return jnp.concatenate(parts, axis=-1)


def _steps(layer: Layer, axis: int, first: int) -> Any:
    count = len(range(first, layer.inputs[axis], layer.strides[axis]))
    return pl.ds(first, count, layer.strides[axis])


def _copy_shifted(place, image, first_row, shift):
    """Copies an image (H, W, C) into a larger one, which keeps zeros where it ends.

    Args:
        place: (reference, sample, slice of the channels).
        image: Its column q + shift comes into column q.
        first_row: The row that its row 0 comes into.
        shift: See above.
    """
    target, sample, lanes = place
    height, width, _ = image.shape
    rows, columns = target.shape[1:3]
    top, skip = max(first_row, 0), max(-first_row, 0)
    count = min(height - skip, rows - top)
    left, begin = max(-shift, 0), max(shift, 0)
    across = min(width - begin, columns - left)
    if count > 0 and across > 0:
        part = image[skip : skip + count, begin : begin + across, :]
        target[sample, top : top + count, left : left + across, lanes] = part


def _lay_out(plan: Plan, copies: Any, sample: int, image: Any, plains: Any) -> None:
    """Lays copies of an image side by side, one for each slot."""
    features = image.shape[-1]
    for lanes, plain in zip(lane_tiles(features), plains, strict=False):
        plain[...] = image[:, :, lanes].astype(plain.dtype)
    for slot, (row, phase, shift) in enumerate(plan.slots):
        if row < plan.layer.inputs[0] and phase < plan.layer.inputs[1]:
            part = _phase(image, plains, plan.layer, row, phase)
            place = (copies, sample, _slot(slot, features))
            _copy_shifted(place, part, plan.low, shift)


def _slot(index: int, width: int) -> slice:
    return slice(index * width, (index + 1) * width)


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _parts(rows: int, lanes: int) -> Iterator[tuple[slice, slice]]:
    """Yields the slices of an array that few registers hold."""
    for row in range(0, rows, 16):
        for lane in range(0, lanes, LANES):
            yield slice(row, min(row + 16, rows)), slice(lane, min(lane + LANES, lanes))


def _widen(experts: Any, wide: Any) -> None:
    """Copies experts (K, rows, slots, C, O) as float32 (K, rows, slots·C, O)."""
    num_experts, rows, slots, features, _ = experts.shape

    def one(index, _):
        expert, row = lax.div(index, rows), lax.rem(index, rows)
        for slot in range(slots):
            part = experts[expert, row, slot].astype(wide.dtype)
            wide[expert, row, _slot(slot, features), :] = part
        return 0

    lax.fori_loop(0, num_experts * rows, one, 0)


def _weights(attention: Any, first: Any, samples: int, num_experts: int) -> list[Any]:
    return [
        [attention[first + sample, expert] for expert in range(num_experts)]
        for sample in range(samples)
    ]


def _mixed(weights: list[Any], wide: Any, row: int, part: Any) -> Any:
    terms = (weight * wide[k, row, *part] for k, weight in enumerate(weights))
    return functools.reduce(jnp.add, terms)


def _forward_kernel(
    attention, inputs, experts, outputs, copies, wide, mixed, *plains, plan
):
    step = pl.program_id(1)
    samples, _, pitch, lanes = copies.shape
    num_experts, rows = wide.shape[:2]

    @pl.when(step == 0)
    def _():
        copies[...] = jnp.zeros_like(copies)
        _widen(experts, wide)

    tall, across = plan.layer.outputs
    weights = _weights(attention, step * samples, samples, num_experts)
    for sample in range(samples):
        _lay_out(plan, copies, sample, inputs[sample], plains)
        sums: Any = None
        for row in range(rows):
            for part in _parts(*wide.shape[2:]):
                kernel = _mixed(weights[sample], wide, row, part)
                mixed[sample, row, *part] = kernel.astype(mixed.dtype)
            first = row * plan.layer.dilation[0]
            seen = copies[sample, first : first + tall].reshape(tall * pitch, lanes)
            term = product(plan.layer, seen, mixed[sample, row], (1, 0))
            sums = term if sums is None else sums + term
        image = sums.reshape(tall, pitch, -1)[:, :across]
        outputs[sample] = image.astype(outputs.dtype)


def _backward_kernel(*refs: Any, plan: Plan) -> None:
    """Adds to the experts' gradients, and finds the others of the step's samples."""
    attention, inputs, cotangent, experts = refs[:4]
    of_inputs, of_attention, of_experts = refs[4:7]
    copies, back, centre, wide, mixed, own, *plains = refs[7:]
    step = pl.program_id(1)
    samples, num_experts = copies.shape[0], wide.shape[0]
    outputs = cotangent.shape[-1]

    @pl.when(step == 0)
    def _():
        for each in (copies, back, centre, of_experts):
            each[...] = jnp.zeros_like(each)
        _widen(experts, wide)

    weights = _weights(attention, step * samples, samples, num_experts)
    for sample in range(samples):
        _lay_out(plan, copies, sample, inputs[sample], plains)
        told = cotangent[sample]
        for index, shift in enumerate(plan.told):
            place = (back, sample, _slot(index, outputs))
            _copy_shifted(place, told, plan.reach - plan.low, -shift)
        _copy_shifted((centre, sample, slice(0, outputs)), told, 0, 0)
        sums: dict[tuple[int, int], Any] = {}
        alike: list[dict[int, Any]] = [{} for _ in range(num_experts)]
        for row in range(plan.rows):
            _mix_mirrored(plan, mixed, wide, sample, row, weights[sample])
            _add_input_gradient(plan, sums, back, mixed, sample, row)
            _find_own_gradient(plan, own, copies, centre, sample, row)
            _share_gradient(
                *(of_experts, alike, own, wide), sample, row, weights[sample]
            )
        _store_phases(plan, of_inputs, sample, sums, plains)
        of_attention[0, sample] = jnp.zeros(of_attention.shape[2:], jnp.float32)
        for k, found in enumerate(alike):
            for index, (width, each) in enumerate(found.items()):
                lane = slice(index * LANES, index * LANES + width)
                total = each.sum(axis=0, keepdims=True)
                of_attention[0, sample, k : k + 1, lane] = total


def _mix_mirrored(plan, mixed, wide, sample, row, weights):
    """Mixes a row of the kernel, columns of a phase side by side on the lanes."""
    tile, outputs = mixed.shape[3], wide.shape[3]
    columns = plan.layer.window[1]
    order = [column for p in range(plan.layer.strides[1]) for column in plan.group(p)]
    for slot in range(len(plan.slots)):
        block, column = divmod(slot, columns)
        lane = order.index(column) * outputs
        for part in _parts(tile, outputs):
            place = (_moved(part[0], slot * tile), part[1])
            kernel = _mixed(weights, wide, row, place)
            mixed[sample, row, block, part[0], _moved(part[1], lane)] = kernel.astype(
                mixed.dtype
            )


def _add_input_gradient(plan, sums, back, mixed, sample, row):
    """Adds what a row of the kernel tells the pixels of each phase."""
    layer, (tall, _) = plan.layer, plan.blocks
    outputs = back.shape[-1] // len(plan.told)
    first = (plan.rows - 1 - row) * layer.dilation[0]
    lane = 0
    for phase in range(layer.strides[1]):
        group = plan.group(phase)
        if not group:
            continue
        begin = plan.told.index(plan.shifts[group[0]][1])
        seen = back[
            sample,
            first : first + tall,
            :,
            begin * outputs : (begin + len(group)) * outputs,
        ].reshape(-1, len(group) * outputs)
        for block in range(layer.strides[0]):
            lanes = slice(lane, lane + len(group) * outputs)
            term = product(layer, seen, mixed[sample, row, block, :, lanes], (1, 1))
            held = sums.get((block, phase))
            sums[block, phase] = term if held is None else held + term
        lane += len(group) * outputs


def _find_own_gradient(plan, own, copies, centre, sample, row):
    """Finds the gradient of a row of the sample's own kernel."""
    tall, pitch, outputs = centre.shape[1:]
    first = row * plan.layer.dilation[0]
    seen = copies[sample, first : first + tall].reshape(tall * pitch, -1)
    told = centre[sample].reshape(tall * pitch, outputs)
    own[sample, row] = product(plan.layer, seen, told, (0, 0))


def _share_gradient(of_experts, alike, own, wide, sample, row, weights):
    """Adds a row of the own gradient to each expert's, as it was mixed."""
    slots, tile, outputs = of_experts.shape[2:]
    for slot in range(slots):
        for part in _parts(tile, outputs):
            place = (_moved(part[0], slot * tile), part[1])
            gradient = own[sample, row, *place]
            width = gradient.shape[-1]
            for k, weight in enumerate(weights):
                of_experts[k, row, slot, *part] += weight * gradient
                both = wide[k, row, *place] * gradient
                both = both.reshape(-1, _ROWS, width).sum(axis=0)
                held = alike[k].get(width)
                alike[k][width] = both if held is None else held + both


def _store_phases(plan, of_inputs, sample, sums, plains):
    """Puts the pixels of all phases in their places."""
    layer, (tall, _), tile = plan.layer, plan.blocks, of_inputs.shape[-1]
    if not plains:
        image = sums[0, 0].reshape(tall, -1, tile)[:, : layer.inputs[1]]
        of_inputs[sample] = image.astype(of_inputs.dtype)
        return
    for lanes, plain in zip(lane_tiles(tile), plains, strict=True):
        plain[...] = jnp.zeros_like(plain)
        for (row, column), total in sums.items():
            rows, columns = _steps(layer, 0, row), _steps(layer, 1, column)
            if rows.size and columns.size:
                image = total.reshape(tall, -1, tile)[: rows.size, : columns.size]
                plain[rows, columns, :] = image[:, :, lanes]
        of_inputs[sample, :, :, lanes] = plain[...].astype(of_inputs.dtype)


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
    plan = Plan.of(layer)
    experts = plan.arrange(experts)
    batch, features, outputs = inputs.shape[0], inputs.shape[-1], experts.shape[-1]
    tiles = forward_tiles(plan, batch, experts.shape, inputs.dtype)
    assert tiles is not None, "refused at the door"
    samples, tile = tiles.samples, tiles.channels
    scratch = forward_scratch(plan, samples, tile, experts.shape, inputs.dtype)
    (result,) = call(
        functools.partial(_forward_kernel, plan=plan),
        (attention.astype(jnp.float32), inputs, experts),
        [((batch, *layer.outputs, outputs), inputs.dtype)],
        layer.interpret,
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
    plan = Plan.of(layer)
    experts = plan.arrange(experts)
    batch, features, outputs = inputs.shape[0], inputs.shape[-1], experts.shape[-1]
    tiles = backward_tiles(plan, batch, experts.shape, inputs.dtype)
    assert tiles is not None, "refused at the door"
    samples, tile = tiles.samples, tiles.channels
    scratch = backward_scratch(plan, samples, tile, experts.shape, inputs.dtype)
    kernel_block = (*experts.shape[:-2], tile, outputs)
    count = features // tile
    partial = (count, batch, experts.shape[0], 2 * LANES)
    images = pl.BlockSpec((samples, *layer.inputs, tile), lambda c, b: (b, 0, 0, c))
    kernels = pl.BlockSpec(kernel_block, lambda c, b: (0, 0, 0, c, 0))
    of_inputs, of_attention, of_experts = call(
        functools.partial(_backward_kernel, plan=plan),
        (attention.astype(jnp.float32), inputs, cotangent, experts),
        [
            (inputs.shape, inputs.dtype),
            (partial, jnp.float32),
            (experts.shape, jnp.float32),
        ],
        layer.interpret,
        grid=(count, batch // samples),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            images,
            pl.BlockSpec((samples, *layer.outputs, outputs), lambda c, b: (b, 0, 0, 0)),
            kernels,
        ],
        out_specs=[
            images,
            pl.BlockSpec((1, samples, *partial[2:]), lambda c, b: (c, b, 0, 0)),
            kernels,
        ],
        scratch_shapes=[pltpu.VMEM(*each) for each in scratch],
    )
    return of_inputs, of_attention.sum(axis=(0, 3)), plan.restore(of_experts)
