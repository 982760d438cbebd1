"""Modules under the tools of flax, which call and trace their public methods."""

import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import dynconv_jax
from dynconv_jax import (
    CondConv,
    DecomposedConv,
    DynamicConv,
    DynamicConvBlock,
    DynamicConvTranspose,
    DynamicNet,
    EfficientNet,
    KernelWarehouse,
    MobileNetV2,
    ODConv,
    ResNet,
    SigmoidRouter,
    WarehouseConv,
    fold_batch_norm,
)
from dynconv_jax.functional import Geometry
from dynconv_jax.layers.cell_attention import CellAttention
from dynconv_jax.layers.od_conv import ODAttention
from dynconv_jax.models.efficientnet_cc import Stage
from dynconv_jax.models.registry import CONVOLUTIONS, MODELS
from dynconv_jax.models.resnet import BasicBlock, Bottleneck
from parity_tests.parity import assert_close
from parity_tests.tools.modules import build

CLASSES = [
    cls
    for found in pkgutil.walk_packages(dynconv_jax.__path__, "dynconv_jax.")
    for cls in vars(importlib.import_module(found.name)).values()
    if isinstance(cls, type) and issubclass(cls, nnx.Module)
    if cls.__module__ == found.name and not cls.__name__.startswith("_")
]


class Routed(nnx.Module):
    """A `CondConv` and its router."""

    def __init__(self, *arguments, **options):
        """Builds both."""
        self.router = SigmoidRouter(arguments[0], rngs=options["rngs"])
        self.conv = CondConv(*arguments, **options)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer."""
        return self.conv(inputs, self.router(inputs))


class Tiled(nnx.Module):
    """A `WarehouseConv` and its warehouse."""

    def __init__(self, *arguments, rngs, **options):
        """Builds both."""
        geometry = Geometry.create(*arguments, **options)
        self.warehouse = KernelWarehouse([geometry], rngs=rngs)
        self.conv = WarehouseConv(self.warehouse, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer."""
        return self.conv(inputs)


LAYERS: dict[str, Callable[..., Any]] = {
    "DynamicConv": DynamicConv,
    "DynamicConv, top-k and dropout": functools.partial(
        DynamicConv, top_k=2, router_dropout=0.5
    ),
    "DynamicConvTranspose": DynamicConvTranspose,
    "DynamicConvBlock": DynamicConvBlock,
    "CondConv": Routed,
    "ODConv": ODConv,
    "DecomposedConv": DecomposedConv,
    "WarehouseConv": Tiled,
}
METHODS = {
    "DynamicConv": "routing",
    "DynamicConvBlock": "routing",
    "ODConv": "attentions",
    "DecomposedConv": "decomposition",
}

SMALL: dict[str, Callable[..., Any]] = {
    "dynamic_net": functools.partial(DynamicNet, width_mult=0.1),
    "resnet18": functools.partial(ResNet, BasicBlock, [1, 1, 1, 1], 10),
    "resnet50": functools.partial(ResNet, Bottleneck, [1, 1, 1, 1], 10),
    "mobilenet_v2": functools.partial(
        MobileNetV2, 10, stages=((1, 8, 1, 1), (6, 16, 2, 2)), width_mult=0.25
    ),
    "efficientnet_cc": functools.partial(
        EfficientNet,
        10,
        stages=(Stage(3, 1, None, 8, 1), Stage(5, 2, 6, 12, 2)),
        dynamic=1,
        stem_features=8,
        head_features=16,
    ),
}


def layer(name: str, *arguments: Any, **options: Any) -> Any:
    arguments = arguments or (4, 6, (3, 3))
    return build(lambda: LAYERS[name](*arguments, rngs=nnx.Rngs(0), **options))


def table(module: nnx.Module, *inputs: jax.Array, **options: Any) -> str:
    return nnx.tabulate(module, *inputs, console_kwargs={"width": 300}, **options)


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (5, 4, 4), (2, 1, 5, 4, 4)])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_tabulates(name, shape):
    if name in ("DynamicConvBlock", "CondConv", "ODConv") and len(shape) != 4:
        pytest.skip if False else None
    assert f"[{','.join(map(str, shape))}]" in table(layer(name), jnp.ones(shape))
