"""What kernels take of a core's memory: what is said, and what their calls ask for.

A call holds each block twice, one in use and one on its way, and what it works in once.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import pytest

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.pallas import tpu_dense, tpu_depthwise, tpu_experts
from dynconv_jax.functional.pallas.tpu import estimated_cycles
from dynconv_jax.functional.pallas.tpu_layer import (
    LANES,
    VMEM_BYTES,
    Layer,
    rounded_up,
    sublanes,
    tile_bytes,
)
from dynconv_jax.functional.pallas.tpu_plan import (
    Plan,
    backward_tiles,
    cycles,
    forward_tiles,
)

B, K = 4, 2


def calls(jaxpr: Any) -> Iterator[Any]:
    """Yields the calls of kernels in a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            yield eqn.params["grid_mapping"]
            continue
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from calls(inner)


def assert_blocks_lie_inside(call: Any) -> None:
    """Asserts that each step takes blocks that begin in their arrays.

    An interpreted kernel would be given the last block in the place of one beyond.
    """
    for mapping in call.block_mappings:
        place = jax.extend.core.jaxpr_as_fun(mapping.index_map_jaxpr)
        for step in itertools.product(*map(range, call.grid)):
            for index, block, size in zip(
                place(*map(jnp.int32, step)),
                mapping.block_shape,
                mapping.array_aval.shape,
                strict=True,
            ):
                assert 0 <= int(index) * block.block_size < size


def held(function: Any, *shapes: Any, without: Any = ()) -> int:
    """Returns the bytes that a call holds; a few numbers a sample are not counted."""
    (call,) = calls(jax.make_jaxpr(function)(*shapes).jaxpr)
    assert_blocks_lie_inside(call)
    blocks = [
        (tuple(each.block_size for each in mapping.block_shape), mapping.array_aval)
        for mapping in call.block_mappings
    ]
    of_blocks = sum(
        tile_bytes(shape, aval.dtype)
        for shape, aval in blocks
        if len(shape) > 2 and shape not in without
    )
    scratch = (tile_bytes(aval.shape, aval.dtype) for aval in call.scratch_avals)
    return 2 * of_blocks + sum(scratch)


def layer_of(window, stride, inputs, low=1) -> Layer:
    outputs = tuple(-(-size // stride) for size in inputs)
    return Layer(window, (stride,) * 2, (1, 1), (low, low), inputs, outputs)


def shaped(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


LAYERS = {
    "odd": (layer_of((3, 3), 1, (7, 6)), 24, 40),
    "strided": (layer_of((3, 2), 2, (8, 10)), 24, 40),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_kernels_that_mix_hold_what_their_tiles_say(name, dtype):
    layer, features, outputs = LAYERS[name]
    plan, experts = Plan.of(layer), (K, *layer.window, features, outputs)
    arranged = (K, plan.rows, len(plan.slots), features, outputs)
    images = shaped((B, *layer.inputs, features), dtype)
    told = shaped((B, *layer.outputs, outputs), dtype)
    weights, kernels = shaped((B, K), "float32"), shaped(experts, dtype)

    def forward(*operands):
        return tpu_dense.forward(layer, *operands)

    def backward(*operands):
        return tpu_dense.backward(layer, *operands)

    def sums(tiles, size):
        pixels = size[0] * rounded_up(size[1], sublanes(dtype))
        return 2 * tiles.samples * tile_bytes((pixels, tiles.channels), "float32")

    tiles = forward_tiles(plan, B, arranged, jnp.dtype(dtype))
    assert tiles is not None
    asked = held(forward, images, weights, kernels)
    assert tiles.bytes == asked + sums(tiles, layer.outputs)

    tiles = backward_tiles(plan, B, arranged, jnp.dtype(dtype))
    assert tiles is not None
    partial = (1, tiles.samples, K, 2 * LANES)  # of the attention's gradient
    asked = held(backward, images, weights, kernels, told, without=[partial])
    assert tiles.bytes == asked + sums(tiles, layer.inputs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_depthwise_kernels_hold_what_is_said(name, dtype):
    layer, features, _ = LAYERS[name]
    geometry = Geometry.create(
        *(LANES, LANES, layer.window),
        strides=layer.strides,
        padding=1,
        kernel_dilation=(2, 1),
        feature_group_count=LANES,
    )
    images = shaped((*layer.inputs, B, LANES), dtype)
    kernels = shaped((geometry.taps, B, LANES), dtype)
    size = geometry.output_size(layer.inputs)
    told = shaped((*size, B, LANES), dtype)

    def backward(*operands):
        return tpu_depthwise.backward(geometry, False, *operands)

    # As wide as what the windows that see an edge of the image are told.
    reach = [2 * (extent - 1) for extent in geometry.extent]
    wide = (side + more for side, more in zip(size, reach, strict=True))
    (call,) = calls(jax.make_jaxpr(backward)(images, kernels, told).jaxpr)
    assert call.scratch_avals[1].shape == (*wide, B, LANES)
    asked = held(backward, images, kernels, told)
    shape = (B, *layer.inputs, LANES)
    assert tpu_depthwise.memory(geometry, shape, dtype) == asked
    assert asked > held(
        lambda *both: tpu_depthwise.forward(geometry, False, *both), images, kernels
    )


@pytest.mark.parametrize(("features", "outputs"), [(128, 40), (24, 256)])
def test_kernels_of_all_experts_hold_what_is_said(features, outputs):
    layer, dtype = layer_of((3, 2), 2, (6, 5)), jnp.dtype("float32")
    batch = 2 * sublanes(dtype)
    images = shaped((*layer.inputs, batch, features), dtype)
    told = shaped((*layer.outputs, batch, outputs), dtype)
    experts = (K, *layer.window, features, outputs)
    weights, kernels = shaped((batch, K), dtype), shaped(experts, dtype)

    def forward(*operands):
        return tpu_experts.forward(layer, *operands)

    def backward(inputs, weights, experts, told):
        return tpu_experts.backward(layer, inputs, weights, experts, told, dtype)

    def product(size, lanes):  # two of them, before they are added to what is held
        rows = math.prod(size) * batch
        return 2 * tile_bytes((rows, min(lanes, LANES)), "float32")

    partial = (1, 1, batch, min(features, LANES))  # of the attention's gradient
    asked = max(
        held(forward, images, weights, kernels) + product(layer.outputs, outputs),
        held(backward, images, weights, kernels, told, without=[partial])
        + product(layer.inputs, features),
    )
    assert tpu_experts.memory(layer, batch, experts, dtype) == asked


def test_a_core_has_more_memory_than_kernels_take():
    assert VMEM_BYTES == 54 * 2**20  # of 64 MiB
    assert tile_bytes((3, 9, 130), "float32") == 3 * 16 * 256 * 4
    assert tile_bytes((3, 9, 130), "bfloat16") == 3 * 16 * 256 * 2
    assert tile_bytes((17, 128), "bfloat16") == 32 * 128 * 2


@pytest.mark.parametrize(("size", "batch"), [(14, 3), (3, 32)])
def test_a_batch_takes_so_many_times_the_cycles_of_a_sample(size, batch):
    geometry = Geometry.create(128, 128, (3, 3), padding=1)
    layer = layer_of((3, 3), 1, (size, size))
    experts = (4, 3, 3, 128, 128)
    is_few = tpu_experts.takes(layer, batch, experts, jnp.dtype("bfloat16"))
    assert is_few == (size == 3)
    of_sample = (
        tpu_experts.cycles(layer, experts)
        if is_few
        else cycles(layer, experts, "bfloat16")
    )
    shape = (batch, size, size, 128)
    found = estimated_cycles(geometry, shape, 4, "bfloat16")
    assert found == pytest.approx(batch * sum(of_sample))


# Where K experts are mixed for few pixels, the vector unit is the busier one: so many
# operations on each number of a kernel, forward, and for their gradient one more each.
@pytest.mark.parametrize("experts", [1, 4])
def test_cycles_are_those_of_the_busier_unit(experts):
    layer, features, outputs = layer_of((3, 3), 1, (8, 16)), 128, 256
    found = cycles(layer, (experts, 3, 3, features, outputs), "float32")
    # Tiles of 128 rows by 128 columns, on a quarter of the unit's time each.
    products = 3 / 4 * 8 * 16
    forward = products * 3 * 2
    backward = products * (-(-3 * outputs // 128)) + 3 / 4 * 3 * features * 1 * 2
    numbers = 3 * 3 * features * outputs / 1024
    mixing = numbers * (2 * experts - 1) / 4
    assert found[0] == pytest.approx(1.12 * max(forward, mixing))
    assert found[1] == pytest.approx(1.27 * max(backward, mixing + experts * numbers))
