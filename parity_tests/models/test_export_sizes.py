"""Layers and networks exported with batch and sizes left open, run at others."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import pytest
from flax import nnx

from dynconv_jax import (
    CondConv,
    DyMN,
    DynamicConv,
    DynamicNet,
    EfficientNet,
    create_model,
)
from dynconv_jax.models.efficientnet_cc import Stage
from dynconv_jax.models.mobilenet_v2 import MobileNetV2
from dynconv_jax.models.resnet import BasicBlock, ResNet
from parity_tests.tolerances import assert_close
from parity_tests.tools.exported import exported
from parity_tests.tools.family import LAYERS, images, layer
from parity_tests.tools.jax_modules import build
from parity_tests.tools.slow import thinned

NETS: dict[str, Callable[..., Any]] = {
    "DynamicNet": functools.partial(DynamicNet, width_mult=0.1),
    "DynamicNet, tiled": functools.partial(
        create_model, "dynamic_net", conv="kernel_warehouse", width_mult=0.1
    ),
    "ResNet": functools.partial(
        ResNet,
        BasicBlock,
        (1, 1, 1, 1),
        10,
        conv=functools.partial(CondConv, num_experts=1),
        dynamic=1,
    ),
    "MobileNetV2": functools.partial(
        MobileNetV2,
        10,
        stages=((1, 8, 1, 1), (2, 16, 2, 2)),
        width_mult=0.25,
        conv=DynamicConv,
    ),
    "DyMN": functools.partial(
        DyMN,
        10,
        in_features=3,
        blocks=((3, 16, 16, 1, False), (5, 32, 8, 2, True)),
        width_mult=0.25,
    ),
    # Which pads each size by what is left of it.
    "EfficientNet of TensorFlow": functools.partial(
        EfficientNet,
        10,
        stages=(Stage(3, 1, None, 8, 1), Stage(5, 2, 2, 12, 2)),
        conv=CondConv,
        dynamic=1,
        stem_features=8,
        head_features=16,
        tensorflow=True,
    ),
}


def check(module: Any, spec: str, *shapes: tuple[int, ...]) -> None:
    """Exports a module with sizes open, and compares it with itself at some."""
    module = nnx.view(
        module,
        use_running_average=True,
        deterministic=True,
        raise_if_not_found=False,
    )
    graphdef, state = nnx.split(module)

    def apply(inputs):
        return nnx.merge(graphdef, state)(inputs)

    artifact = exported(apply, spec, dtype="float64")
    for shape in shapes:
        inputs = images(*shape, dtype="float64")
        actual, expected = artifact.call(inputs), jax.jit(apply)(inputs)
        assert_close({"outputs": actual}, {"outputs": expected}, dtype="float64")


OF_EACH_KIND = (
    *("DynamicConv", "DynamicConvTranspose", "CondConv", "ODConv, layer norm"),
    *("DecomposedConv", "ModulatedConv", "WarehouseConv"),
)


@pytest.mark.parametrize("name", thinned(LAYERS, *OF_EACH_KIND))
def test_layer_of_any_size(name):
    module = layer(name, 4, 6, (3, 3), strides=2, padding=1, param_dtype="float64")
    check(module, "b, h, w, 4", (2, 5, 4, 4), (1, 1, 7, 4))


@pytest.mark.parametrize(
    "name", ["DynamicConv", "ODConv", "DecomposedConv, pooled", "DynamicConvTranspose"]
)
def test_sound_of_any_length(name):
    module = layer(name, 4, 6, (3,), param_dtype="float64")
    check(module, "b, t, 4", (2, 5, 4), (1, 8, 4))


@pytest.mark.parametrize("name", ["DynamicConv", "DecomposedConv", "WarehouseConv"])
def test_video_of_any_size(name):
    module = layer(name, 4, 6, (3, 2, 1), strides=2, param_dtype="float64")
    check(module, "b, t, h, w, 4", (2, 3, 4, 3, 4), (1, 4, 5, 2, 4))


def test_strides_beyond_the_window_of_a_decomposed_layer_want_numbers():
    make = functools.partial(
        layer, "DecomposedConv", 4, 6, (2, 2), 3, param_dtype="float64"
    )
    with pytest.raises(ValueError, match=r"'SAME'.*\(3, 3\).*numbers.*\(0, 1\)"):
        check(make(), "b, h, w, 4")
    module = make(padding=((0, 1), (0, 1)))
    check(module, "b, h, w, 4", (2, 5, 4, 4), (1, 1, 7, 4))


DEAR = (
    *(
        "DyMN",
        "ResNet",
        "EfficientNet of TensorFlow",
        "DynamicNet, tiled",
        "MobileNetV2",
    ),
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in DEAR else ())
        for name in NETS
    ],
)
def test_network_of_any_size(name):
    net = build(lambda: NETS[name](param_dtype="float64", rngs=nnx.Rngs(0)))
    for _, value in nnx.to_flat_state(nnx.state(net, nnx.Param)):
        value.set_value(value[...] * 1e-3)
    check(net, "b, h, w, 3", (2, 33, 24, 3), (1, 16, 37, 3))
