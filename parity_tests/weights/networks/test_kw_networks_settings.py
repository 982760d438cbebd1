"""Checkpoints of KernelWarehouse's networks that users trained with other settings."""

import functools
from typing import Any

import pytest

import dynconv_jax
import dynconv_torch
from dynconv_jax.layers.warehouse_layout import to_warehouse_layout
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.weights.networks import resnet
from dynconv_jax.weights.networks.kw_networks import call_of
from dynconv_jax.weights.torch_layout import torch_shapes
from parity_tests.tools import kw_checkpoints

resnet18 = functools.partial(kw_checkpoints.resnet, (2, 2, 2, 2), is_bottleneck=False)
resnet50 = functools.partial(kw_checkpoints.resnet, (3, 4, 6, 3), is_bottleneck=True)

WHOLE = dict(in_ratio=1.0, out_ratio=1.0)
# Of the authors' code and of ours: `basis` is what we call `nonlocal_basis_ratio`.
OTHERS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "reduction": (resnet18, "kw_resnet18", dict(ratio=1, reduction=8)),
    "reduction by no power": (resnet18, "kw_resnet18", dict(ratio=1, reduction=10)),
    "ratio": (resnet18, "kw_resnet18", dict(ratio=3, **WHOLE)),
    "whole cells": (resnet18, "kw_resnet18", dict(ratio=0.5, out_ratio=1.0)),
    "smaller cells": (
        resnet18,
        "kw_resnet18",
        dict(ratio=0.25, in_ratio=0.25, out_ratio=0.25),
    ),
    "basis": (resnet18, "kw_resnet18", dict(ratio=1, basis=1 / 16)),
    "no basis": (resnet50, "kw_resnet50", dict(ratio=0.5, basis=1.0)),
    "another basis": (resnet50, "kw_resnet50", dict(ratio=0.5, basis=0.15)),
    "all": (
        resnet50,
        "kw_resnet50",
        dict(ratio=1, in_ratio=0.5, out_ratio=0.5, basis=1 / 8, reduction=32),
    ),
}


def in_our_words(options: dict[str, Any]) -> dict[str, Any]:
    own = dict(options)
    if "basis" in own:
        own["nonlocal_basis_ratio"] = own.pop("basis")
    return own


CASES = pytest.mark.parametrize("case", OTHERS)


@CASES
def test_other_settings_are_read_off_the_shapes(case):
    checkpoint, name, options = OTHERS[case]
    shapes = checkpoint(**options)
    expected = dict(num_classes=1000, **in_our_words(options))
    # Files of safetensors have an order of their own.
    for given in (shapes, dict(sorted(shapes.items()))):
        call = call_of(given)
        assert call is not None and call.doubts == ()
        assert (call.name, call.options) == (name, expected)


@CASES
def test_the_twin_has_the_shapes_of_these_checkpoints(case):
    checkpoint, name, options = OTHERS[case]
    own: dict[str, Any] = in_our_words(options)
    net: Any = dynconv_torch.create_model(name, device="meta", **own)
    returned = dynconv_torch.to_warehouse_layout(net.state_dict())
    shapes = {key: tuple(value.shape) for key, value in returned.items()}
    assert shapes == checkpoint(**options)


@pytest.mark.slow
@CASES
def test_so_has_the_network_of_jax(case):
    checkpoint, name, options = OTHERS[case]
    own: dict[str, Any] = in_our_words(options)
    net: Any = abstract_module(
        lambda rngs: dynconv_jax.create_model(name, rngs=rngs, **own)
    )
    assert to_warehouse_layout(torch_shapes(net)) == checkpoint(**options)


@pytest.mark.parametrize("package", [dynconv_jax, dynconv_torch])
@pytest.mark.parametrize("own", [{}, dict(in_ratio=1.0), dict(out_ratio=1.0)])
def test_of_another_budget_it_must_be_said_what_cells_are(package, own):
    build: Any = package.models.kw_resnet18
    with pytest.raises(ValueError, match=r"^`ratio` \(=3\) of kw_res.*`out_ratio`"):
        build(ratio=3, **own)


# What no option explains is told.


def doubts_of(shapes) -> str:
    call = call_of(shapes)
    assert call is not None and len(call.doubts) == 1
    assert "\n" not in call.doubts[0]
    return call.doubts[0]


@pytest.mark.parametrize(
    ("shared", "number"),
    [(lambda name: "all", 1), (lambda name: name.replace("3", "2"), 3)],
)
def test_layers_that_share_otherwise_are_told(shared, number):
    told = doubts_of(resnet18(1, shared=shared))
    assert f"its warehouses are {number} and not 4" in told
    assert "`sharing_range`" in told and "`group_by`" in told


@pytest.mark.parametrize(("ratio", "like"), [(4, 1), (1, 4)])
def test_a_mobilenet_that_shares_as_with_another_ratio_is_told(ratio, like):
    told = doubts_of(kw_checkpoints.mobilenet_v2(ratio, 1.0, like=like))
    assert f"which a `ratio` of {ratio} does not make" in told


def test_ratios_of_warehouses_that_differ_are_told():
    ratio = {"stage 0": 1.0, "stage 1": 1.0, "stage 2": 2.0, "stage 3": 2.0}
    told = doubts_of(resnet18(ratio, in_ratio=1.0, out_ratio=1.0))
    assert "its warehouses differ in their `cell_num_ratio`" in told


def test_hidden_units_of_no_reduction_are_told():
    shapes = resnet18(1)
    shapes["layer1.0.conv1.attention.fc1.weight"] = (17, 64)
    assert "follow no `reduction`" in doubts_of(shapes)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((39, 17), "follow no `nonlocal_basis_ratio`"), ((0, 16), "the shape (0, 16)")],
)
def test_bases_that_are_not_built_here_are_told(shape, words):
    shapes = resnet18(1, basis=1 / 16)
    shapes["layer4.0.conv2.attention.fc3.weight"] = shape
    assert words in doubts_of(shapes)


@pytest.mark.parametrize("shape", [(56, 48, 64, 1, 1), (56, 0, 64, 1, 1)])
def test_cells_that_tile_no_stage_are_told(shape):
    shapes = resnet18(1)
    shapes["warehouse_manager.weights.0"] = shape
    assert "no part of 64 planes" in doubts_of(shapes)


def test_networks_of_other_depths_are_told():
    shapes = kw_checkpoints.resnet((3, 4, 6, 3), 1, is_bottleneck=False)
    assert call_of(shapes) is None
    call = resnet.call_of(shapes)
    assert call.name == "resnet34" and "`with_warehouses`" in "".join(call.doubts)
