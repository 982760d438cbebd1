"""How arrays lie in PyTorch: each number at the place that its comment says."""

import itertools
import types
from typing import Any

import numpy as np
import pytest

from dynconv_jax.weights import arrangements

K, G, C, O = 2, 3, 6, 9  # noqa: E741
SIZE = {"x": 4, "y": 5}
LAYER = types.SimpleNamespace(
    feature_group_count=G,
    in_features=C,
    out_features=O,
    kernel_size=(4, 5),
    rank=2,
    transpose_kernel=False,
)
TURNED = types.SimpleNamespace(transpose_kernel=True)


def numbered(*shape: int) -> np.ndarray:
    """Returns an array of which no two numbers are equal."""
    return np.arange(np.prod(shape)).reshape(shape)


# Arrangement, layer, shape in JAX, shape in PyTorch, and from a place in PyTorch to the
# place in JAX.
PLACES: dict[str, tuple[Any, Any, tuple, tuple, Any]] = {
    "same": (arrangements.same, None, (2, 3, 4), (2, 3, 4), lambda *at: at),
    "linear": (arrangements.channels_first, None, (C, O), (O, C), lambda o, c: (c, o)),
    "convolution": (
        *(arrangements.channels_first, None, (4, 5, C, O), (O, C, 4, 5)),
        lambda o, c, x, y: (x, y, c, o),
    ),
    "experts of rank 1": (
        *(arrangements.stacked_channels_first, None, (K, 4, C, O), (K, O, C, 4)),
        lambda k, o, c, x: (k, x, c, o),
    ),
    "experts": (
        *(arrangements.stacked_channels_first, None, (K, 4, 5, C, O), (K, O, C, 4, 5)),
        lambda k, o, c, x, y: (k, x, y, c, o),
    ),
    "transposed experts": (
        *(arrangements.stacked_transposed, LAYER),
        *((K, 4, 5, C // G, O), (K, C, O // G, 4, 5)),
        lambda k, c, o, x, y: (k, x, y, c % (C // G), c // (C // G) * (O // G) + o),
    ),
    "pointwise": (
        *(arrangements.pointwise, LAYER, (C, O), (O, C, 1, 1)),
        lambda o, c, *_: (c, o),
    ),
    "flattened experts": (
        *(arrangements.stacked_flattened, LAYER),
        *((K, 4, 5, C // G, O), (K, O * (C // G) * 4 * 5)),
        lambda k, at: (
            *(k, at // 5 % 4, at % 5, at // 20 % (C // G), at // 20 // (C // G)),
        ),
    ),
    "opposed": (
        *(arrangements.opposed, LAYER, (4, 5, C, O), (C, O, 4, 5)),
        lambda c, o, x, y: (3 - x, 4 - y, c, o),
    ),
    "opposed, which JAX flips": (
        *(arrangements.opposed, TURNED, (4, 5, O, C), (C, O, 4, 5)),
        lambda c, o, x, y: (x, y, o, c),
    ),
    "dense": (
        arrangements.dense,
        types.SimpleNamespace(in_features=(2, 3), out_features=(4, 5)),
        *((2, 3, 4, 5), (20, 6)),
        lambda o, c: (c // 3, c % 3, o // 5, o % 5),
    ),
    "flat": (
        arrangements.flat,
        types.SimpleNamespace(out_features=(4, 5)),
        *((4, 5), (20,)),
        lambda o: (o // 5, o % 5),
    ),
    "single": (arrangements.single, None, (), (1,), lambda _: ()),
}


@pytest.mark.parametrize("name", PLACES)
def test_each_number_lies_where_pytorch_has_it_and_back(name):
    arrangement, layer, ours, theirs, place_of = PLACES[name]
    array = numbered(*ours)
    moved = arrangement.to_torch(array, layer)
    assert moved.shape == theirs
    for place in itertools.product(*map(range, theirs)):
        assert moved[place] == array[place_of(*place)]
    np.testing.assert_array_equal(arrangement.from_torch(moved, layer), array)


def test_parts_lie_below_one_another_in_their_order():
    stacked = arrangements.stacked_rows(("first", "second"), arrangements.dense)
    part = types.SimpleNamespace(in_features=(6,), out_features=(4,))
    layer = types.SimpleNamespace(first=part, second=part)
    arrays = numbered(6, 4), 100 + numbered(6, 4)
    rows = stacked.to_torch(arrays, layer)
    np.testing.assert_array_equal(rows, np.concatenate([each.T for each in arrays]))
    for found, array in zip(stacked.from_torch(rows, layer), arrays, strict=True):
        np.testing.assert_array_equal(found, array)


def test_a_count_that_jax_has_not_is_zero():
    count = arrangements.nothing.to_torch((), None)
    assert (count.dtype, count.shape, int(count)) == (np.int64, (), 0)
    assert arrangements.nothing.from_torch(count, None) == ()
