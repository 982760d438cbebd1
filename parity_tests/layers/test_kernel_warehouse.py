"""KernelWarehouse: layers that tile their kernels with mixtures of shared cells."""

import copy
import dataclasses
import itertools
import math
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import dynconv_jax
import dynconv_torch
from dynconv_jax import KernelWarehouse, set_assignment
from dynconv_jax.functional.tiling import Tiling
from dynconv_jax.weights import (
    load_torch_state_dict,
    to_torch_state_dict,
    torch_variables,
)
from dynconv_torch.functional.tiling import Tiling as TorchTiling
from parity_tests.functional.test_tiling import jax_geometries, torch_geometries
from parity_tests.parity import as_numpy, assert_parity, torch_state
from parity_tests.passes import run_torch
from parity_tests.tolerances import assert_close
from parity_tests.tools.warehouse_pairs import (
    CASES,
    TorchPair,
    outlined_pair,
    pairs,
    torch_layer,
)
from parity_tests.tools.warehouse_reference import Case, PlainPair


def assert_three_agree(case: Case, inputs: np.ndarray, rng) -> None:
    """Asserts that both frameworks and the plain reference compute the same."""
    theirs, plain = TorchPair(case), PlainPair(case)
    plain.load_state_dict(theirs.state_dict(), strict=True)
    assert_parity(outlined_pair(case), copy.deepcopy(theirs), inputs)
    shape = theirs(torch.from_numpy(inputs).movedim(-1, 1)).movedim(1, -1).shape
    plain.load_state_dict(theirs.state_dict(), strict=True)
    for training in (False, True):
        cotangent = rng.normal(size=tuple(shape))
        actual, expected = (
            run_torch(module, inputs, cotangent, training=training)
            for module in (theirs, plain)
        )
        for got, wanted in zip(actual[1:], expected[1:], strict=True):
            assert_close(got, wanted, dtype="float64")
        assert_close({"y": actual[0]}, {"y": expected[0]}, dtype="float64")


@pytest.mark.parametrize("name", CASES)
def test_layers_agree_with_each_other_and_the_plain_reference(name, rng):
    case = CASES[name]
    assert_three_agree(case, case.inputs(rng), rng)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draws any options whose tiles the reference can assign."""
    rank = draw(st.integers(1, 3))
    partition = draw(st.booleans())
    sizes = st.tuples(*[st.integers(1, 2)] * rank)
    first = draw(sizes)
    groups = draw(st.sampled_from([1, 2]))
    ratio = draw(st.sampled_from([3.0, 2.0, 1.0, 0.5]))
    return Case(
        rank=rank,
        kernel_sizes=(first, draw(sizes) if partition else first),
        groups=groups,
        ratio=ratio,
        # Halves make the tiles of every layer even in number.
        in_ratio=0.5 if ratio < 1 else draw(st.sampled_from([1.0, 0.5])),
        out_ratio=draw(st.sampled_from([1.0, 0.5])),
        spatial_partition=partition,
        norm=draw(st.sampled_from(["layer", "none"])),  # one program for both modes
        bias=draw(st.booleans()),
        assignment=draw(st.sampled_from([0.0, 0.4, 1.0])),
        nonlocal_basis_ratio=draw(st.sampled_from([1.0, 0.3])),
        batch=draw(st.integers(2, 3)),
    )


@pytest.mark.slow
@settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(case=cases())
def test_layers_agree_under_any_options(case):
    rng = np.random.default_rng(0)
    assert_three_agree(case, case.inputs(rng), rng)


def test_assigned_cells_alone_make_a_static_convolution():
    layer, warehouse = torch_layer(in_ratio=0.5, out_ratio=0.25, assignment=1.0)
    cells = warehouse.cells.detach()  # (9 · 4 · 2, 2, 2, 1, 1)
    kernel = torch.zeros(8, 4, 3, 3, dtype=torch.float64)
    places = itertools.product(range(3), range(3), range(4), range(2))
    for cell, (row, column, out, into) in enumerate(places):
        block = slice(2 * out, 2 * out + 2), slice(2 * into, 2 * into + 2)
        kernel[(*block, row, column)] = cells[cell, :, :, 0, 0]
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    expected = {"y": as_numpy(F.conv2d(x, kernel))}
    assert_close({"y": as_numpy(layer(x))}, expected, dtype="float64")


def test_magnitudes_of_the_attention_of_a_tile_sum_to_less_than_one():
    layer, _ = torch_layer()
    attention = layer.attention(torch.randn(3, 4, 5, 4).double())
    sums = attention.abs().sum(-1)
    assert attention.shape == (3, 9, 10)
    assert 0.9 < sums.min() <= sums.max() < 1
    assert (attention < 0).any()


@pytest.mark.parametrize("ratio", [0.5, 1, 2])
def test_layers_start_as_kaiming_would_draw_them(ratio):
    rows = (32, 64, (3, 3)), (64, 16, (2, 2))
    options: dict[str, Any] = dict(ratio=ratio, in_ratio=0.5)
    twin = dynconv_torch.KernelWarehouse(torch_geometries(*rows), **options)
    drawn = [twin.cells.detach().numpy()]
    if ratio == 0.5:
        ours = KernelWarehouse(jax_geometries(*rows), rngs=nnx.Rngs(0), **options)
        drawn.append(np.asarray(ours.cells[...]))
    for cells in drawn:
        for share in twin.tiling.shares:
            powers = [
                np.square(cells[c]).mean() for c in share.assigned if c < len(cells)
            ]
            fan_out = (
                math.prod(share.geometry.kernel_size) * share.geometry.out_channels
            )
            mean = sum(powers) / len(share.assigned)  # zero tiles among them
            assert abs(mean * fan_out / 2 - 1) < 0.1


@pytest.mark.parametrize(
    ("ratio", "deviation"), [(4, 0.0295), (1, 0.0590), (0.25, 0.0833)]
)
def test_cells_may_be_drawn_as_the_authors_draw_them(ratio, deviation):
    row = (64, 64, (3, 3))
    half: dict[str, Any] = dict(in_ratio=0.5, out_ratio=0.5) if ratio < 1 else {}
    options: dict[str, Any] = dict(ratio=ratio, init="published", **half)
    twin = dynconv_torch.KernelWarehouse(torch_geometries(row), **options)
    drawn = [twin.cells.detach().numpy()]
    if ratio == 0.25:
        ours = KernelWarehouse(jax_geometries(row), rngs=nnx.Rngs(0), **options)
        drawn.append(np.asarray(ours.cells[...]))
    for cells in drawn:
        assert abs(cells.std() / deviation - 1) < 0.02


def test_every_layer_has_the_published_deviation_of_its_own_cells():
    rows = (8, 16, (3, 3)), (8, 4, (1, 1))
    for tiling in (
        Tiling.create(jax_geometries(*rows), ratio=2),
        TorchTiling.create(torch_geometries(*rows), ratio=2),
    ):
        first, second = 9 * 4 * 2, 1 * 2  # each cell has 4 out-planes
        expected = [(2 / (4 * first)) ** 0.5] * first
        expected += [(2 / (4 * second)) ** 0.5] * second
        assert tiling.deviations("published") == tuple(expected)


# τ.


def test_assignments_on_one_jitted_pair_compile_once_and_differ(rng):
    graphdef, state = nnx.split(pairs("2d, half the cells, groups")[0])
    traces = []

    @jax.jit
    def forward(state, value, x, y):
        traces.append(x)
        pair = nnx.merge(graphdef, state)
        set_assignment(pair, value)
        return pair.first.mixture(x), pair.second.mixture(y)

    x, y = (jnp.asarray(rng.normal(size=(2, 4, 3, c))) for c in (4, 8))
    mixtures = [forward(state, jnp.asarray(value), x, y) for value in (0.0, 0.3, 1.0)]
    assert len(traces) == 1
    for attention, some, alone in zip(*mixtures, strict=True):
        assert_close({"α": some}, {"α": 0.7 * attention + 0.3 * alone}, dtype="float64")
        assert set(np.unique(alone)) == {0.0, 1.0}
        assert (alone[0] == alone[1]).all() and (attention[0] != attention[1]).any()


def test_set_assignment_reaches_every_warehouse_of_the_twin():
    warehouses = [torch_layer()[1], torch_layer()[1]]
    dynconv_torch.set_assignment(torch.nn.ModuleList(warehouses), 0.3)
    assert [float(each.assignment) for each in warehouses] == [0.3, 0.3]


def test_assignment_is_in_checkpoints_and_may_be_missing_there():
    case = dataclasses.replace(CASES["2d"], assignment=0.6)
    pair, twin = outlined_pair(case), TorchPair(case)
    state = torch_state(twin)
    assert state["warehouse.assignment"] == np.float64(0.6)
    changed = state | {"warehouse.assignment": np.array(0.1)}
    dynconv_jax.load_torch_state_dict(pair, changed)
    assert float(pair.warehouse.assignment[...]) == 0.1
    del state["warehouse.assignment"]
    dynconv_jax.load_torch_state_dict(pair, state)
    assert float(pair.warehouse.assignment[...]) == 0.1
    tensors = twin.state_dict()
    del tensors["warehouse.assignment"]
    twin.load_state_dict(tensors, strict=True)
    assert twin.half().warehouse.assignment.item() == 0.6


# One warehouse, several layers.


def test_cells_are_once_in_every_state():
    pair, twin = pairs("2d")
    names = [path[-1] for path, _ in nnx.to_flat_state(nnx.state(pair))]
    assert names.count("cells") == names.count("assignment") == 1
    keys = list(twin.state_dict())
    assert [key for key in keys if "warehouse" in key] == [
        "warehouse.cells",
        "warehouse.assignment",
    ]
    assert sorted(torch_variables(pair)) == sorted(keys)
    assert len(list(twin.parameters())) == len({id(p) for p in twin.parameters()})


def test_layers_without_their_warehouse_are_neither_saved_nor_loaded():
    class Bare(nnx.Module):
        def __init__(self, conv):
            self.conv = conv

    pair, _ = pairs("2d")
    message = "keep the warehouse as an attribute of the model"
    with pytest.raises(ValueError, match=f"its kernel.*{message}"):
        to_torch_state_dict(pair.first)
    with pytest.raises(ValueError, match=f"Bare.*its layer conv.*{message}"):
        load_torch_state_dict(Bare(pair.first), {})
    assert "warehouse.cells" in to_torch_state_dict(pair)


def test_names_of_the_attention_are_those_of_published_checkpoints():
    layer = dynconv_torch.WarehouseConv2d(
        dynconv_torch.KernelWarehouse(torch_geometries((32, 8, (3, 3))))
    )
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {
        "attention.fc1.weight": (16, 32),
        "attention.norm1.weight": (16,),
        "attention.norm1.bias": (16,),
        "attention.fc2.weight": (90, 16),
        "attention.fc2.bias": (90,),
    }


def test_names_of_an_attention_with_a_basis_are_those_of_published_checkpoints():
    rows = (32, 8, (3, 3)), (32, 64, (3, 3))  # 9 and 72 tiles: 81 cells
    layer = dynconv_torch.WarehouseConv2d(
        dynconv_torch.KernelWarehouse(torch_geometries(*rows)),
        nonlocal_basis_ratio=0.25,
    )
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {
        "attention.basis_bias": (9 * 82,),
        "attention.fc1.weight": (16, 32),
        "attention.norm1.weight": (16,),
        "attention.norm1.bias": (16,),
        "attention.fc2.weight": (9 * (9 + 18 + 1), 16),
        "attention.fc3.weight": (72, 18),
    }


@pytest.mark.parametrize("ratio", [1.0, 0.25])
def test_a_warehouse_of_one_layer_has_nothing_to_have_a_basis_for(ratio):
    layer = dynconv_torch.WarehouseConv2d(
        dynconv_torch.KernelWarehouse(torch_geometries((4, 8, (3, 3)))),
        nonlocal_basis_ratio=ratio,
    )
    assert layer.attention.fc3 is None and layer.attention.fc2.bias is not None


def test_the_gradient_of_the_cells_sums_over_the_layers():
    pair = TorchPair(dataclasses.replace(CASES["2d"], norm="layer"))
    x, y = torch.randn(2, 4, 4, 3).double(), torch.randn(2, 8, 4, 3).double()
    of_first = pair.first(x).sin().sum()
    of_second = pair.second(y).cos().sum()

    def gradient(loss):
        return torch.autograd.grad(loss, pair.warehouse.cells, retain_graph=True)[0]

    first, second = gradient(of_first), gradient(of_second)
    assert first.any() and second.any()
    both = {"cells": as_numpy(gradient(of_first + of_second))}
    assert_close(both, {"cells": as_numpy(first + second)}, dtype="float64")


def test_split_and_merge_keep_the_cells_shared():
    pair, _ = pairs("2d")
    graphdef, state = nnx.split(pair)
    for merged in nnx.merge(graphdef, state), copy.deepcopy(pair), nnx.clone(pair):
        assert merged.first.warehouse is merged.second.warehouse is merged.warehouse
        assert merged.warehouse is not pair.warehouse


def test_copies_and_pickles_of_the_twin_keep_the_cells_shared():
    pair = TorchPair(CASES["2d"]).eval()
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    expected = pair(x)
    for twin in copy.deepcopy(pair), pickle.loads(pickle.dumps(pair)):
        assert torch.equal(twin(x), expected)
        assert twin.first.warehouse is twin.second.warehouse is twin.warehouse
        twin.warehouse.cells.data.zero_()
        assert not twin.first(x).any()
    assert torch.equal(pair(x), expected)


def test_casting_and_laying_out_the_twin_reaches_the_cells():
    pair = TorchPair(CASES["2d"]).eval()
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    expected = {"y": as_numpy(pair(x))}
    pair.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    assert_close({"y": as_numpy(pair(x))}, expected, dtype="float64")
    assert pair.float()(x.float()).dtype == torch.float32
