"""KernelWarehouse: layers that tile their kernels with mixtures of shared cells."""

import copy
import dataclasses
import functools
import itertools
import math
import pickle
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from torch.nn import functional as F

import dynconv_jax
import dynconv_torch
from dynconv_jax import KernelWarehouse, WarehouseConv, set_assignment
from dynconv_jax.functional import Geometry
from dynconv_jax.routing import Attention
from dynconv_jax.weights import (
    load_torch_state_dict,
    to_torch_state_dict,
    torch_variables,
)
from dynconv_torch.functional import Geometry as TorchGeometry
from parity_tests.parity import (
    as_numpy,
    assert_close,
    assert_parity,
    copy_weights,
    run_torch,
    torch_state,
)
from parity_tests.test_tiling import jax_geometries, torch_geometries
from parity_tests.test_weights import build
from parity_tests.warehouse_reference import Case, PlainPair

CASES = {
    "1d, twice the cells": Case(
        1, ((3,), (2,)), ratio=2, norm="layer", assignment=0.3, bias=True
    ),
    "2d": Case(assignment=0.25),
    "2d, half the cells, groups": Case(
        groups=2,
        ratio=0.5,
        in_ratio=0.5,
        out_ratio=0.5,
        assignment=0.7,
        norm="layer",
        bias=True,
    ),
    "2d, a quarter, attention alone": Case(
        ratio=0.25, in_ratio=0.5, norm="none", batch=2
    ),
    "3d, whole windows": Case(
        3, ((2, 1, 2), (2, 1, 2)), spatial_partition=False, norm="none", batch=1
    ),
}


class JaxPair(nnx.Module):
    def __init__(self, case: Case, dtype: Any = "float64"):
        rngs = nnx.Rngs(0)
        first, second = case.kernel_sizes
        geometries = [
            Geometry.create(4, 8, first, padding=1),
            Geometry.create(
                8,
                6,
                second,
                strides=2,
                padding="VALID",
                feature_group_count=case.groups,
            ),
        ]
        self.warehouse = KernelWarehouse(
            geometries, param_dtype=dtype, rngs=rngs, **case.sharing
        )
        options: dict[str, Any] = dict(norm=case.norm, use_bias=case.bias, rngs=rngs)
        self.first = WarehouseConv(self.warehouse, **options)
        self.second = WarehouseConv(self.warehouse, **options)

    def __call__(self, x):
        return self.second(self.first(x))


class TorchPair(torch.nn.Module):
    def __init__(self, case: Case, dtype: torch.dtype = torch.float64):
        super().__init__()
        rank, (first, second) = case.rank, case.kernel_sizes
        geometries = [
            TorchGeometry.create(4, 8, first, rank=rank, padding=1),
            TorchGeometry.create(8, 6, second, rank=rank, stride=2, groups=case.groups),
        ]
        self.warehouse = dynconv_torch.KernelWarehouse(
            geometries, dtype=dtype, **case.sharing
        )
        layer = getattr(dynconv_torch, f"WarehouseConv{rank}d")
        self.first = layer(self.warehouse, norm=case.norm, bias=case.bias)
        self.second = layer(self.warehouse, norm=case.norm, bias=case.bias)
        for parameter in self.parameters():  # also the biases
            parameter.data.normal_(0, 0.5)

    def forward(self, x):
        return self.second(self.first(x))


def outlined_pair(case: Case, dtype: Any = "float64") -> JaxPair:
    """A pair that is to be loaded: drawing it would compile a program a shape."""
    return nnx.eval_shape(lambda: JaxPair(case, dtype))


@functools.cache
def pairs(name: str) -> tuple[JaxPair, TorchPair]:
    """Both pairs of a case with the same weights; only to be read."""
    ours, theirs = outlined_pair(CASES[name]), TorchPair(CASES[name])
    copy_weights(theirs, ours)
    return ours, theirs


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
        batch=draw(st.integers(2, 3)),
    )


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


def torch_layer(row=(4, 8, (3, 3)), norm="layer", **options):
    """A layer of the twin in float64, and its warehouse."""
    warehouse = dynconv_torch.KernelWarehouse(
        torch_geometries(row), dtype=torch.float64, **options
    )
    layer = getattr(dynconv_torch, f"WarehouseConv{len(row[2])}d")
    return layer(warehouse, norm=norm), warehouse


def jax_layer(row=(4, 8, (1,)), norm="layer") -> WarehouseConv:
    """A small layer in float64, with random numbers in it."""

    def make():
        warehouse = KernelWarehouse(
            jax_geometries(row), param_dtype="float64", rngs=nnx.Rngs(0)
        )
        return WarehouseConv(warehouse, norm=norm, rngs=nnx.Rngs(1))

    return build(make)


def abstractly(function) -> None:
    """Runs what builds JAX layers without drawing their parameters."""
    nnx.eval_shape(lambda: function() and None)


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


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "a", None])
def test_impossible_assignments_are_refused(value):
    ours, theirs = pairs("2d")
    rows = ((4, 8, (3, 3)),)
    for call in (
        lambda: set_assignment(ours, value),
        lambda: dynconv_torch.set_assignment(theirs, value),
        lambda: KernelWarehouse(
            jax_geometries(*rows), assignment=value, rngs=nnx.Rngs(0)
        ),
        lambda: dynconv_torch.KernelWarehouse(
            torch_geometries(*rows), assignment=value
        ),
    ):
        with pytest.raises(ValueError, match=r"assignment.*\[0, 1\]"):
            call()


def test_setting_the_assignment_of_a_model_without_warehouse_is_refused():
    with pytest.raises(ValueError, match="Linear.*no warehouse"):
        set_assignment(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), 1.0)
    with pytest.raises(ValueError, match="Linear.*no warehouse"):
        dynconv_torch.set_assignment(torch.nn.Linear(2, 3), 1.0)


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


# What a user of nnx.Conv or torch.nn.Conv2d expects.


def test_layers_agree_in_bfloat16(rng):
    case = Case(1, ((1,), (1,)), assignment=0.5)
    inputs = jnp.asarray(rng.normal(size=(4, 6, 4)), "bfloat16")
    twin = TorchPair(case, torch.bfloat16)
    assert_parity(outlined_pair(case, "bfloat16"), twin, np.asarray(inputs))


def test_the_attention_is_float32_for_narrower_layers():
    case = CASES["2d"]
    x = jnp.ones((2, 5, 4, 4), jnp.bfloat16)
    mixture = nnx.eval_shape(lambda: JaxPair(case, "bfloat16").first.mixture(x))
    assert mixture.dtype == jnp.float32
    twin = TorchPair(case, torch.bfloat16)
    y = torch.ones(2, 4, 5, 4, dtype=torch.bfloat16)
    assert twin.first.mixture(y).dtype == torch.float32
    assert twin(y).dtype == torch.bfloat16
    single = TorchPair(case, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert single.first(y.float()).dtype == torch.bfloat16
        assert single.first.mixture(y.float()).dtype == torch.float32


def test_any_number_of_batch_dimensions_is_accepted(rng):
    graphdef, state = nnx.split(jax_layer())
    inputs = jnp.asarray(rng.normal(size=(2, 3, 5, 4)))

    @jax.jit
    def run(state, x):
        layer = nnx.merge(graphdef, state)
        flat = x.reshape(6, 5, 4)
        actual = dict(y=layer(x), mixture=layer.mixture(x), one=layer(x[0, 0]))
        expected = dict(
            y=layer(flat).reshape(2, 3, 5, 8),
            mixture=layer.mixture(flat).reshape(2, 3, 1, 1),
            one=layer(flat)[0],
        )
        return actual, expected, layer(x[:0, 0])

    actual, expected, empty = run(state, inputs)
    assert_close(actual, expected, dtype="float64")
    assert empty.shape == (0, 5, 8)


def test_the_twin_takes_one_sample_and_none():
    pair = TorchPair(CASES["2d"]).eval()
    x = torch.randn(4, 6, 5, dtype=torch.float64)
    assert torch.equal(pair.first(x), pair.first(x[None])[0])
    assert torch.equal(pair.first.mixture(x), pair.first.mixture(x[None])[0])
    assert pair(x[None][:0]).shape == (0, 6, 4, 3)


def test_one_sample_trains_with_layer_norm_and_is_refused_with_batch_norm():
    def check():
        x = jnp.ones((1, 5, 4))
        layer = jax_layer(norm="batch")
        with pytest.raises(ValueError, match="norm='layer'"):
            layer(x)
        assert nnx.view(layer, use_running_average=True)(x).shape == (1, 5, 8)
        assert jax_layer(norm="layer")(x).shape == (1, 5, 8)

    abstractly(check)
    one = torch.randn(1, 4, 6, 5).double()
    with pytest.raises(ValueError, match="norm='layer'"):
        torch_layer(norm="batch")[0](one)
    assert torch_layer(norm="batch")[0].eval()(one).shape == (1, 8, 4, 3)
    assert torch_layer(norm="layer")[0](one).isfinite().all()


def test_no_convolution_is_grouped_over_the_batch():
    pair, _ = pairs("2d, half the cells, groups")
    graphdef, state = nnx.split(pair)

    def gradient(state, x):
        def loss(state, x):
            return jnp.sin(nnx.merge(graphdef, state)(x)).sum()

        return jax.grad(loss, argnums=(0, 1), allow_int=True)(state, x)

    program = jax.jit(gradient).lower(state, jnp.ones((5, 6, 5, 4))).as_text()
    counts = re.findall(r"(?:feature|batch)_group_count = (\d+)", program)
    assert "dot_general" in program
    assert all(int(count) <= 2 for count in counts)  # the groups of the layers


@pytest.mark.parametrize("name", ["2d, half the cells, groups", "3d, whole windows"])
def test_a_batch_may_be_sharded_over_explicit_axes(name):
    graphdef, state = nnx.split(pairs(name)[0])

    def loss(state, x):
        return jnp.sin(nnx.merge(graphdef, state)(x)).sum()

    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    shape = (2, *(6, 5, 4)[: CASES[name].rank], 4)
    with jax.set_mesh(mesh):
        by_sample = NamedSharding(mesh, PartitionSpec("data"))
        x = jax.device_put(jnp.ones(shape), by_sample)
        gradient = jax.grad(loss, argnums=1, allow_int=True)
        assert jax.jit(gradient).eval_shape(state, x).sharding.spec[0] == "data"


def test_layers_work_under_vmap_remat_and_export_with_a_free_batch(rng):
    layer = nnx.view(jax_layer(norm="batch"), use_running_average=True)
    graphdef, state = nnx.split(layer)
    x = jnp.asarray(rng.normal(size=(2, 5, 4)))

    @jax.jit
    def forward(state, x):
        return nnx.merge(graphdef, state)(x)

    ensemble = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    symbolic = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 5, 4"), x.dtype)
    exported = jax.export.export(forward)(state, symbolic)
    actual = {
        "vmap": jax.vmap(forward, in_axes=(0, None))(ensemble, x)[1],
        "remat": jax.checkpoint(forward)(state, x),
        "export": exported.call(state, x),
    }
    assert_close(actual, dict.fromkeys(actual, forward(state, x)), dtype="float64")


def test_the_twin_compiles_without_graph_breaks():
    layer, _ = torch_layer()
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    actual, expected = as_numpy(compiled(x)), as_numpy(layer(x))
    assert_close({"y": actual}, {"y": expected}, dtype="float64")


def test_the_mixture_can_be_captured(rng):
    layer = jax_layer()
    x = jnp.asarray(rng.normal(size=(2, 5, 4)))
    capture: Any = nnx.capture(layer, Attention)
    _, captured = capture(x)
    (seen,) = captured["mixture"].get_value()
    assert_close({"α": seen}, {"α": layer.mixture(x)}, dtype="float64")


# What is refused.

CANNOT_SHARE = {
    "rank": ([(4, 8, (3,)), (4, 8, (3, 3))], {}, r"layer 1 .*\(3, 3\).*rank 2.*rank 1"),
    "window": (
        [(4, 8, (3, 3)), (4, 8, (1, 1))],
        dict(spatial_partition=False),
        r"layer 1 .*\(1, 1\)\), layer 0 \(3, 3\).*spatial_partition",
    ),
    "no layers": ([], {}, "geometries.*at least one"),
    "ratio": ([(4, 8, (3,))], dict(ratio=1.5), r"ratio` \(=1.5\)"),
    "ratio below": ([(4, 8, (3,))], dict(ratio=0.4), r"ratio` \(=0.4\)"),
    "no ratio": ([(4, 8, (3,))], dict(ratio=0), r"ratio` \(=0\)"),
    "planes": ([(6, 8, (3,))], dict(in_ratio=0.7), r"in_ratio` \(=0.7\).*\(=6\)"),
    "too wide": ([(6, 8, (3,))], dict(out_ratio=2), r"out_ratio` \(=2\).*\(=8\)"),
}


@pytest.mark.parametrize("name", CANNOT_SHARE)
def test_layers_that_cannot_share_cells_are_refused_by_both(name):
    rows, options, message = CANNOT_SHARE[name]
    with pytest.raises(ValueError, match=message):
        KernelWarehouse(jax_geometries(*rows), rngs=nnx.Rngs(0), **options)
    with pytest.raises(ValueError, match=message):
        dynconv_torch.KernelWarehouse(torch_geometries(*rows), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(index=1), r"index` \(=1\).*1 layers"),
        (dict(index=-1), r"index` \(=-1\)"),
        (dict(norm="group"), "norm` .*'group'.*'layer'"),
        (dict(reduction=0), r"reduction` \(=0\)"),
        (dict(implementation="experts"), "'experts'.*attention"),
    ],
)
def test_bad_options_are_refused_by_both(options, message):
    rows = ((4, 8, (3, 3)),)

    def check():
        warehouse = KernelWarehouse(jax_geometries(*rows), rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match=message):
            WarehouseConv(warehouse, rngs=nnx.Rngs(0), **options)

    abstractly(check)
    twin = dynconv_torch.KernelWarehouse(torch_geometries(*rows))
    with pytest.raises(ValueError, match=message):
        dynconv_torch.WarehouseConv2d(twin, **options)


def assert_built_once(build_layer) -> None:
    """Asserts that of two layers, each is built once."""
    assert build_layer(1).index == 1
    with pytest.raises(ValueError, match="layer 1 .*built before"):
        build_layer(1)
    assert build_layer().index == 0
    with pytest.raises(ValueError, match="all 2 layers"):
        build_layer()


def test_a_layer_is_built_once():
    rows = ((4, 8, (3, 3)), (8, 8, (3, 3)))

    def check():
        warehouse = KernelWarehouse(jax_geometries(*rows), rngs=nnx.Rngs(0))
        assert_built_once(
            lambda *index: WarehouseConv(warehouse, *index, rngs=nnx.Rngs(0))
        )

    abstractly(check)
    twin = dynconv_torch.KernelWarehouse(torch_geometries(*rows))
    assert_built_once(lambda *index: dynconv_torch.WarehouseConv2d(twin, *index))


def test_a_layer_that_was_refused_is_not_built():
    rows = ((4, 8, (3, 3)),)

    def check():
        warehouse = KernelWarehouse(jax_geometries(*rows), rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="norm"):
            WarehouseConv(warehouse, norm="group", rngs=nnx.Rngs(0))
        assert WarehouseConv(warehouse, rngs=nnx.Rngs(0)).index == 0

    abstractly(check)
    twin = dynconv_torch.KernelWarehouse(torch_geometries(*rows))
    with pytest.raises(ValueError, match="norm"):
        dynconv_torch.WarehouseConv2d(twin, norm="group")
    assert dynconv_torch.WarehouseConv2d(twin).index == 0


def test_what_is_no_warehouse_of_the_rank_is_refused():
    linear: Any = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="warehouse` .*Linear"):
        WarehouseConv(linear, rngs=nnx.Rngs(0))
    linear = torch.nn.Linear(2, 3)
    with pytest.raises(TypeError, match="warehouse` .*Linear"):
        dynconv_torch.WarehouseConv2d(linear)
    twin = dynconv_torch.KernelWarehouse(torch_geometries((4, 8, (3,))))
    with pytest.raises(ValueError, match="rank 1, not 2.*WarehouseConv1d"):
        dynconv_torch.WarehouseConv2d(twin)


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"inputs.*in_features` \(=4\)"):
        pairs("2d")[0](jnp.ones((2, 5, 6, 3)))
    with pytest.raises(ValueError, match=r"in_channels` \(=4\)"):
        TorchPair(CASES["2d"])(torch.ones(2, 3, 5, 6))
