"""What a warehouse and its layers refuse, in both frameworks alike."""

from typing import Any

import jax.numpy as jnp
import pytest
import torch
from flax import nnx

import dynconv_torch
import dynconv_torch.layers
from dynconv_jax import KernelWarehouse, WarehouseConv, set_assignment
from dynconv_jax.layers import WarehouseLinear, linear_geometry
from parity_tests.functional.test_tiling import jax_geometries, torch_geometries
from parity_tests.tools.warehouse_pairs import CASES, TorchPair, abstractly, pairs


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


@pytest.mark.parametrize("arguments", [(3, 8, (3, 3)), (3,), (None, 0), ("cells",)])
def test_a_layer_built_like_others_is_told_of_warehouses(arguments):
    message = "^`warehouse` .* must be a KernelWarehouse.*`with_warehouses`"
    ours: Any = WarehouseConv
    theirs: Any = dynconv_torch.WarehouseConv2d
    with pytest.raises(TypeError, match=message):
        ours(*arguments)
    with pytest.raises(TypeError, match=message):
        ours(*arguments, padding=1, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=message):
        theirs(*arguments, padding=1)


@pytest.mark.parametrize("wrong", [[(3, 8, (3, 3))], (3, 8, 3), None])
def test_what_are_no_geometries_is_refused(wrong):
    with pytest.raises(TypeError, match="^`geometries` .*Geometry.create"):
        KernelWarehouse(wrong, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="^`geometries` .*Geometry.create"):
        dynconv_torch.KernelWarehouse(wrong)


@pytest.mark.parametrize("init", ["kaiming", None, 1])
def test_another_way_to_draw_cells_is_refused(init):
    row = (4, 8, (1,))
    message = r"^`init` .* must be one of 'default', 'published'"
    with pytest.raises(ValueError, match=message):
        KernelWarehouse(jax_geometries(row), init=init, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        dynconv_torch.KernelWarehouse(torch_geometries(row), init=init)


@pytest.mark.parametrize(
    ("ratio", "error"), [(0, ValueError), (1.5, ValueError), ("1", TypeError)]
)
def test_an_impossible_basis_is_refused(ratio, error):
    rows = (4, 8, (1,)), (4, 8, (1,))
    options: dict[str, Any] = dict(nonlocal_basis_ratio=ratio)
    message = "`nonlocal_basis_ratio` "
    with pytest.raises(error, match=message):
        abstractly(
            lambda: WarehouseConv(
                KernelWarehouse(jax_geometries(*rows), rngs=nnx.Rngs(0)),
                rngs=nnx.Rngs(0),
                **options,
            )
        )
    with pytest.raises(error, match=message):
        warehouse = dynconv_torch.KernelWarehouse(torch_geometries(*rows))
        dynconv_torch.WarehouseConv1d(warehouse, **options)


def test_lists_are_no_inputs_of_a_linear_layer():
    warehouse = KernelWarehouse([linear_geometry(8, 5)], rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="`inputs` .a list. must be an array"):
        WarehouseLinear(warehouse, rngs=nnx.Rngs(1))([[1.0] * 8])  # pyright: ignore
    geometry = dynconv_torch.layers.linear_geometry(8, 5)
    twin = dynconv_torch.layers.WarehouseLinear(
        dynconv_torch.KernelWarehouse([geometry])
    )
    with pytest.raises(TypeError, match="`x` .a list. must be a tensor"):
        twin([[1.0] * 8])
