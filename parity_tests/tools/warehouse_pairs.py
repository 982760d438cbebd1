"""Two layers that share a warehouse, in both frameworks."""

import functools
from typing import Any

import torch
from flax import nnx

import dynconv_torch
from dynconv_jax import KernelWarehouse, WarehouseConv
from dynconv_jax.functional import Geometry
from dynconv_torch.functional import Geometry as TorchGeometry
from parity_tests.functional.test_tiling import jax_geometries, torch_geometries
from parity_tests.parity import copy_weights
from parity_tests.tools.jax_modules import build
from parity_tests.tools.warehouse_reference import Case

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
    "2d, half the cells, a basis": Case(
        ratio=0.5,
        in_ratio=0.5,
        out_ratio=0.5,
        assignment=0.3,
        nonlocal_basis_ratio=0.5,
    ),
    "3d, whole windows": Case(
        3, ((2, 1, 2), (2, 1, 2)), spatial_partition=False, norm="none", batch=1
    ),
}


class JaxPair(nnx.Module):
    """Two layers in a row."""

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
        options: dict[str, Any] = dict(
            norm=case.norm,
            use_bias=case.bias,
            nonlocal_basis_ratio=case.nonlocal_basis_ratio,
            rngs=rngs,
        )
        self.first = WarehouseConv(self.warehouse, **options)
        self.second = WarehouseConv(self.warehouse, **options)

    def __call__(self, x):
        """Returns the output of the second."""
        return self.second(self.first(x))


class TorchPair(torch.nn.Module):
    """The twin of `JaxPair`."""

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
        options: dict[str, Any] = dict(
            norm=case.norm,
            bias=case.bias,
            nonlocal_basis_ratio=case.nonlocal_basis_ratio,
        )
        self.first = layer(self.warehouse, **options)
        self.second = layer(self.warehouse, **options)
        for parameter in self.parameters():  # also the biases
            parameter.data.normal_(0, 0.5)

    def forward(self, x):
        """Returns the output of the second."""
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
