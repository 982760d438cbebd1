"""How kernels for GPUs cut a convolution: the tiles of some layers, as they are chosen.

The choice is by a count of cycles. Whoever changes it sees here which tiles change.
"""

import jax.numpy as jnp
import pytest

from benchmarks.shapes import Shape
from dynconv_jax.functional.pallas.gpu_tiles import (
    Layer,
    Tile,
    gradient_tile,
    product_tile,
)


def layer_of(shape: Shape) -> Layer:
    height, width = shape.input_shape[1:3]
    return Layer.of(shape.batch, (height, width + 1), shape.experts, shape.geometry)


# Shape, dtype, whether it is the inputs' gradient; tile and grid.
PRODUCTS = [
    (Shape(32, 56, 64, 64), "bfloat16", False, Tile(1, 512, 32, 32), (32, 7, 2)),
    (Shape(32, 14, 256, 256), "bfloat16", False, Tile(1, 256, 64, 64), (32, 1, 4)),
    (Shape(1, 7, 512, 512), "float32", False, Tile(1, 16, 16, 32), (1, 4, 32)),
    (
        Shape(16, 28, 40, 240, kernel=1, experts=16),
        *("bfloat16", False, Tile(2, 512, 16, 16), (8, 2, 15)),
    ),
    (
        Shape(64, 14, 96, 576, kernel=1, experts=8),
        *("float32", True, Tile(1, 256, 16, 32), (64, 1, 6)),
    ),
    (
        Shape(256, 7, 160, 960, kernel=1),
        *("bfloat16", False, Tile(4, 64, 64, 32), (64, 1, 15)),
    ),
    (
        Shape(8, 112, 3, 32, stride=2, experts=1),
        *("bfloat16", False, Tile(1, 256, 32, 16), (8, 13, 1)),
    ),
]
GRADIENTS = [
    (Shape(64, 14, 96, 576, kernel=1, experts=8), Tile(1, 64, 32, 32), 2),
    (Shape(32, 14, 256, 256), Tile(1, 64, 64, 64), 1),
]


@pytest.mark.parametrize(
    ("shape", "dtype", "mirrored", "tile", "grid"), PRODUCTS, ids=str
)
def test_the_tile_of_a_product_takes_the_fewest_cycles(
    shape, dtype, mirrored, tile, grid
):
    found = product_tile(layer_of(shape), mirrored, jnp.dtype(dtype))
    assert found == (tile, grid)


@pytest.mark.parametrize(("shape", "tile", "splits"), GRADIENTS, ids=str)
def test_the_tile_of_a_gradient_keeps_its_sums_in_registers(shape, tile, splits):
    assert gradient_tile(layer_of(shape), jnp.dtype("bfloat16")) == (tile, splits)


@pytest.mark.parametrize(("experts", "stack"), [(1, 1), (2, 2), (3, 4), (5, 8)])
def test_experts_are_filled_up_to_a_power_of_two(experts, stack):
    layer = layer_of(Shape(3, 7, 5, 6, experts=experts))
    assert layer.stack == stack
    assert layer.flops == 2 * 3 * (7 * 8) * (3 * 3 * 5 * 6)
