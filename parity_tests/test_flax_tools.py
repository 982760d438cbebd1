"""Modules under the tools of flax, which trace the public methods that are called."""

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
    DynamicNet,
    EfficientNet,
    MobileNetV2,
    ResNet,
    Router,
    SigmoidRouter,
    create_model,
    fold_batch_norm,
)
from dynconv_jax.models.efficientnet_cc import Stage
from dynconv_jax.models.resnet import BasicBlock, Bottleneck
from parity_tests.tolerances import assert_close
from parity_tests.tools.family import LAYERS, images, layer
from parity_tests.tools.jax_modules import build
from parity_tests.tools.slow import thinned

MODULES = sorted(
    {
        cls
        for found in pkgutil.walk_packages(dynconv_jax.__path__, "dynconv_jax.")
        for cls in vars(importlib.import_module(found.name)).values()
        if inspect.isclass(cls) and issubclass(cls, nnx.Module)
        if cls.__module__.startswith("dynconv_jax") and cls.__name__[0] != "_"
    },
    key=lambda cls: cls.__name__,
)

NETS: dict[str, Callable[..., Any]] = {
    "DynamicNet": functools.partial(DynamicNet, width_mult=0.1),
    "DynamicNet, tiled": functools.partial(
        create_model, "dynamic_net", conv="kernel_warehouse", width_mult=0.1
    ),
    "ResNet": functools.partial(
        ResNet, BasicBlock, (1, 1, 1, 1), 10, conv=dynconv_jax.CondConv
    ),
    "ResNet of bottlenecks": functools.partial(
        ResNet, Bottleneck, (1, 1, 1, 1), 10, conv=None
    ),
    "MobileNetV2": functools.partial(
        MobileNetV2,
        10,
        stages=((1, 8, 1, 1), (2, 16, 1, 2)),
        width_mult=0.25,
        conv=dynconv_jax.ODConv,
    ),
    "EfficientNet": functools.partial(
        EfficientNet,
        10,
        stages=(Stage(3, 1, None, 8, 1), Stage(5, 2, 2, 12, 2)),
        conv=dynconv_jax.DynamicConv,
        dynamic=1,
        stem_features=8,
        head_features=16,
        drop_path_rate=0.1,
    ),
}


def table(module: nnx.Module, *inputs: Any, **options: Any) -> str:
    return nnx.tabulate(module, *inputs, console_kwargs={"width": 300}, **options)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_tabulates(name):
    assert "[2,5,4,6]" in table(layer(name), jnp.ones((2, 5, 4, 4)))


@pytest.mark.parametrize("shape", [(2, 1, 5, 4, 4), (5, 4, 4)])
@pytest.mark.parametrize("name", ["DynamicConv", "DecomposedConv"])
def test_layer_tabulates_with_any_batch(name, shape):
    module = nnx.view(layer(name), use_running_average=True, raise_if_not_found=False)
    assert f"[{','.join(map(str, shape[:-1]))},6]" in table(module, jnp.ones(shape))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("DynamicConv", "routing"),
        ("DynamicConvTranspose", "routing"),
        ("DynamicConvBlock", "routing"),
        ("ODConv", "attentions"),
        ("DecomposedConv", "decomposition"),
    ],
)
def test_what_a_layer_answers_besides_tabulates(name, method):
    assert method in table(layer(name), jnp.ones((2, 5, 4, 4)), method=method)


def test_mixture_of_cells_tabulates():
    conv = layer("WarehouseConv").conv
    assert "mixture" in table(conv, jnp.ones((2, 5, 4, 4)), method="mixture")


@pytest.mark.parametrize("cls", [Router, SigmoidRouter])
def test_router_tabulates(cls):
    router = build(lambda: cls(4, 3, rngs=nnx.Rngs(0)))
    assert "[2,3]" in table(router, jnp.ones((2, 5, 4, 4)))


def test_layer_and_its_class_are_as_they_were_after_a_table(rng):
    module = layer("ODConv")
    inputs = jnp.asarray(rng.normal(size=(2, 5, 4, 4)), jnp.float32)
    expected = module.attentions(inputs)
    table(module, inputs)
    other = layer("ODConv", 5, 6, (3, 3))
    assert_close(
        module.attentions(inputs)._asdict(), expected._asdict(), dtype="float32"
    )
    assert other(jnp.ones((2, 5, 4, 5))).shape == (2, 5, 4, 6)


QUICK = "DynamicNet, tiled", "ResNet of bottlenecks", "EfficientNet"


@pytest.mark.parametrize("name", thinned(NETS, *QUICK))
def test_network_tabulates(name):
    net = build(lambda: NETS[name](rngs=nnx.Rngs(0)))
    assert "[2,10]" in table(net, jnp.ones((2, 16, 12, 3)))


@pytest.mark.slow
def test_folded_network_tabulates():
    net = build(lambda: NETS["DynamicNet"](rngs=nnx.Rngs(0)))
    net = nnx.view(net, use_running_average=True, raise_if_not_found=False)
    inputs = jnp.ones((2, 16, 12, 3))
    assert "[2,10]" in table(fold_batch_norm(net, inputs), inputs)


@pytest.mark.parametrize("cls", MODULES)
def test_public_methods_take_and_answer_arrays(cls):
    def is_of_arrays(kind: Any) -> bool:
        if typing.get_args(kind):  # of a union
            return all(map(is_of_arrays, typing.get_args(kind)))
        # A switch of the caller is no array, and flax's own layers have some too.
        allowed = (jax.Array, bool, type(None))
        if inspect.isclass(kind) and hasattr(kind, "_fields"):  # a named tuple
            return all(map(is_of_arrays, typing.get_type_hints(kind).values()))
        return getattr(kind, "array_type", kind) in allowed  # with a shape, or without

    for name, method in inspect.getmembers(cls, inspect.isfunction):
        is_ours = method.__module__.startswith("dynconv_jax")
        if is_ours and (name == "__call__" or not name.startswith("_")):
            hints = typing.get_type_hints(method)
            odd = {key: kind for key, kind in hints.items() if not is_of_arrays(kind)}
            assert not odd, f"{cls.__name__}.{name} takes or answers {odd}"
            parameters = set(inspect.signature(method).parameters) - {"self"}
            assert parameters | {"return"} == set(hints), f"{cls.__name__}.{name}"


IN_A_ROW = ["DynamicConv", "ODConv", "DecomposedConv", "WarehouseConv"]


@pytest.mark.parametrize("name", thinned(IN_A_ROW, "DynamicConv", "WarehouseConv"))
def test_layers_in_a_row_by_scan_and_remat(name, rng):
    @nnx.split_rngs(splits=2)
    @nnx.vmap
    def make(rngs):
        return LAYERS[name](4, 4, (3, 3), padding=1, rngs=rngs)

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    @nnx.remat
    def scanned(row, inputs):
        return row(inputs)

    inputs = jnp.asarray(images(2, 5, 4, 4))
    row = make(nnx.Rngs(0))
    graphdef, state = nnx.split(row)
    expected = inputs
    for index in range(2):
        one = jax.tree.map(lambda array, index=index: array[index], state)
        expected = nnx.merge(graphdef, one)(expected)
    actual = nnx.jit(scanned)(row, inputs)
    assert_close({"outputs": actual}, {"outputs": expected}, dtype="float32")
