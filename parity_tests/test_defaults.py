"""Defaults: alike in both frameworks, and as the frameworks' own layers have them."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax import functional
from dynconv_jax.layers.expert_conv import ExpertConv
from dynconv_torch import functional as torch_functional
from dynconv_torch.layers.expert_conv import ExpertConvNd
from dynconv_torch.layers.same_conv import SameConv2d

# What flax's words are in PyTorch.
WORDS = {
    "context_features": "context_channels",
    "dropout_rate": "dropout",
    "feature_group_count": "groups",
    "head_features": "head_channels",
    "hidden_features": "hidden_channels",
    "in_features": "in_channels",
    "kernel_dilation": "dilation",
    "router_hidden_features": "router_hidden_channels",
    "router_use_bias": "router_bias",
    "router_use_hidden_bias": "router_hidden_bias",
    "stem_features": "stem_channels",
    "strides": "stride",
    "style_features": "style_channels",
    "use_bias": "bias",
    "use_hidden_bias": "hidden_bias",
}
# What both have by one name, and of its own kind in each.
OF_ITS_OWN_KIND = {"conv", "group_by", "padding"}

LAYERS: list[tuple[Any, Any]] = [
    (dynconv_jax.AdaptiveConv, dynconv_torch.AdaptiveConv2d),
    (dynconv_jax.CondConv, dynconv_torch.CondConv2d),
    (dynconv_jax.ContextConv, dynconv_torch.ContextConv2d),
    (dynconv_jax.DecomposedConv, dynconv_torch.DecomposedConv2d),
    (dynconv_jax.DynamicConv, dynconv_torch.DynamicConv2d),
    (dynconv_jax.DynamicConvTranspose, dynconv_torch.DynamicConvTranspose2d),
    (dynconv_jax.ModulatedConv, dynconv_torch.ModulatedConv2d),
    (dynconv_jax.ODConv, dynconv_torch.ODConv2d),
    (ExpertConv, ExpertConvNd.build_experts),
]
FUNCTIONS: list[tuple[Any, Any]] = [
    (dynconv_jax.adaptive_conv, dynconv_torch.adaptive_conv),
    (dynconv_jax.dynamic_conv, dynconv_torch.dynamic_conv),
    (dynconv_jax.modulated_conv, dynconv_torch.modulated_conv),
    (dynconv_jax.per_sample_conv, dynconv_torch.per_sample_conv),
    (dynconv_jax.dynamic_conv_transpose, dynconv_torch.dynamic_conv_transpose),
    (dynconv_jax.per_sample_conv_transpose, dynconv_torch.per_sample_conv_transpose),
    (functional.Geometry.create, torch_functional.Geometry.create),
]
PAIRS: list[tuple[Any, Any]] = [
    *LAYERS,
    *FUNCTIONS,
    (dynconv_jax.DynamicClassifier, dynconv_torch.DynamicClassifier),
    (dynconv_jax.DynamicConvBlock, dynconv_torch.DynamicConvBlock),
    (dynconv_jax.KernelWarehouse, dynconv_torch.KernelWarehouse),
    (dynconv_jax.WarehouseConv, dynconv_torch.WarehouseConv2d),
    (dynconv_jax.with_warehouses, dynconv_torch.with_warehouses),
    (dynconv_jax.Router, dynconv_torch.Router),
    (dynconv_jax.SigmoidRouter, dynconv_torch.SigmoidRouter),
    (dynconv_jax.ContextGenerator, dynconv_torch.ContextGenerator),
    (dynconv_jax.CoordinateAttention, dynconv_torch.CoordinateAttention),
    (dynconv_jax.DynamicReLU, dynconv_torch.DynamicReLU),
    (dynconv_jax.two_slope_temperature, dynconv_torch.two_slope_temperature),
    (dynconv_jax.DyMN, dynconv_torch.DyMN),
    (dynconv_jax.DynamicNet, dynconv_torch.DynamicNet),
    (dynconv_jax.EfficientNet, dynconv_torch.EfficientNet),
    (dynconv_jax.MobileNetV2, dynconv_torch.MobileNetV2),
    (dynconv_jax.MobileNetV3, dynconv_torch.MobileNetV3),
    (dynconv_jax.ResNet, dynconv_torch.ResNet),
    (dynconv_jax.create_model, dynconv_torch.create_model),
    (dynconv_jax.load_balance_loss, dynconv_torch.load_balance_loss),
    (dynconv_jax.chen_options, dynconv_torch.chen_options),
]


def defaults(function: Callable) -> dict[str, Any]:
    """Returns the arguments that may be left out, in PyTorch's words."""
    built = function.__init__ if inspect.isclass(function) else function
    return {
        WORDS.get(name, name): parameter.default
        for name, parameter in inspect.signature(built).parameters.items()
        if parameter.default is not parameter.empty
    }


def named(pairs: list[tuple[Any, Any]]) -> list[str]:
    return [theirs.__qualname__ for _, theirs in pairs]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=named(PAIRS))
def test_the_twin_leaves_out_the_same_and_means_the_same(ours, theirs):
    of_jax, of_torch = defaults(ours), defaults(theirs)
    if inspect.isclass(ours) and issubclass(ours, ExpertConv):
        of_jax = {**defaults(ExpertConv), **of_jax}  # which takes the other options
    shared = of_jax.keys() & of_torch.keys() - OF_ITS_OWN_KIND
    assert shared
    for name in shared:
        expected = of_jax[name]
        if name == "kernel_size":  # a square by an int, in PyTorch
            (expected,) = set(expected)
        assert (of_torch[name], type(of_torch[name])) == (expected, type(expected))
    alone = of_torch.keys() - of_jax.keys()
    assert alone <= {"device", "dtype", "rank"}  # which are PyTorch's matters


GEOMETRY = {"stride", "padding", "dilation", "groups", "output_padding"}


@pytest.mark.parametrize(
    ("ours", "theirs"), [*LAYERS, *FUNCTIONS], ids=named([*LAYERS, *FUNCTIONS])
)
def test_convolutions_stand_in_for_those_of_the_frameworks(ours, theirs):
    is_transposed = "transpose" in theirs.__qualname__.lower()
    conv = torch.nn.ConvTranspose2d if is_transposed else torch.nn.Conv2d
    for own, standard in ((ours, nnx.Conv), (theirs, conv)):
        of_own, expected = defaults(own), defaults(standard)
        for name in GEOMETRY & of_own.keys() & expected.keys():
            assert of_own[name] == expected[name]


def test_what_the_frameworks_have_not_is_as_the_definition_says():
    found = defaults(dynconv_torch.DynamicConv2d)
    expected = dict(
        num_experts=4,
        reduction=4,
        temperature=1.0,
        top_k=None,
        router_dropout=0.0,
        router_noise=0.0,
        router_hidden_bias=True,
        router_bias=True,
        init="default",
        bias=False,
    )
    assert expected.items() <= found.items()
    assert defaults(dynconv_torch.DynamicConvBlock)["kernel_size"] == 3
    assert defaults(dynconv_torch.SigmoidRouter)["num_experts"] == 4
    assert defaults(dynconv_torch.CondConv2d)["num_experts"] == 4
    assert defaults(dynconv_torch.ODConv2d)["num_experts"] == 4


def test_same_conv_leaves_out_what_a_convolution_of_pytorch_does():
    expected = defaults(torch.nn.Conv2d)
    for name, default in defaults(SameConv2d).items():
        assert expected[name] == default
