"""The door of functions and layers: what is no array of numbers is named at once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax.functional import Geometry, checks
from dynconv_jax.models.options import option_names
from dynconv_torch.functional import Geometry as TwinGeometry
from dynconv_torch.functional import checks as twin_checks

X = jnp.ones((2, 6, 5, 3), "float32")
ATTENTION = jnp.ones((2, 4), "float32")
EXPERTS = jnp.ones((4, 3, 3, 3, 8), "float32")
KERNELS = jnp.ones((2, 3, 3, 3, 8), "float32")
BIAS = jnp.ones((4, 8), "float32")
TAPS = jnp.ones((2, 3, 3), "float32")

OPERANDS = {
    dynconv_jax.dynamic_conv: dict(
        inputs=X, attention=ATTENTION, kernel=EXPERTS, bias=BIAS, spatial_attention=TAPS
    ),
    dynconv_jax.dynamic_conv_transpose: dict(
        inputs=X, attention=ATTENTION, kernel=EXPERTS, bias=BIAS
    ),
    dynconv_jax.per_sample_conv: dict(inputs=X, kernel=KERNELS, bias=BIAS[:2]),
    dynconv_jax.per_sample_conv_transpose: dict(
        inputs=X, kernel=KERNELS, bias=BIAS[:2]
    ),
    dynconv_jax.adaptive_conv: dict(
        inputs=X,
        styles=jnp.ones((2, 3), "float32"),
        attention=ATTENTION,
        kernel=EXPERTS,
        bias=BIAS,
    ),
    dynconv_jax.modulated_conv: dict(
        inputs=X, styles=jnp.ones((2, 3), "float32"), kernel=KERNELS[0], bias=BIAS[0]
    ),
    dynconv_jax.mix_kernels: dict(attention=ATTENTION, kernel=EXPERTS),
}
TWINS = {
    dynconv_torch.dynamic_conv: dict(
        input=torch.ones(2, 3, 6, 5),
        attention=torch.ones(2, 4),
        weight=torch.ones(4, 8, 3, 3, 3),
        bias=torch.ones(4, 8),
        spatial_attention=torch.ones(2, 3, 3),
    ),
    dynconv_torch.dynamic_conv_transpose: dict(
        input=torch.ones(2, 3, 6, 5),
        attention=torch.ones(2, 4),
        weight=torch.ones(4, 3, 8, 3, 3),
        bias=torch.ones(4, 8),
    ),
    dynconv_torch.adaptive_conv: dict(
        input=torch.ones(2, 3, 6, 5),
        styles=torch.ones(2, 3),
        attention=torch.ones(2, 4),
        weight=torch.ones(4, 8, 3, 3, 3),
        bias=torch.ones(4, 8),
    ),
    dynconv_torch.modulated_conv: dict(
        input=torch.ones(2, 3, 6, 5),
        styles=torch.ones(2, 3),
        weight=torch.ones(8, 3, 3, 3),
        bias=torch.ones(8),
    ),
    dynconv_torch.mix_kernels: dict(
        attention=torch.ones(2, 4), weight=torch.ones(4, 8, 3, 3, 3)
    ),
}
EACH_OPERAND = [(f, name) for f, given in OPERANDS.items() for name in given]
EACH_OF_TWINS = [(f, name) for f, given in TWINS.items() for name in given]


def name_of(value):
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("function", "name"), EACH_OPERAND, ids=name_of)
def test_a_complex_operand_is_refused_by_its_own_name(function, name):
    given = OPERANDS[function]
    wrong = given | {name: given[name].astype(complex)}
    with pytest.raises(ValueError, match=f"^`{name}` .complex.* must be real"):
        function(**wrong)


@pytest.mark.parametrize(("function", "name"), EACH_OF_TWINS, ids=name_of)
def test_a_complex_operand_of_the_twin_is_refused_by_its_own_name(function, name):
    given = TWINS[function]
    wrong = given | {name: given[name].to(torch.complex64)}
    with pytest.raises(ValueError, match=f"^`{name}` .torch.complex64. must be real"):
        function(**wrong)


@pytest.mark.parametrize("wrong", [torch.ones(2, 4), [1.0], None, 3.0], ids=str)
@pytest.mark.parametrize(
    ("function", "name"),
    [(f, name) for f, name in EACH_OPERAND if name in ("inputs", "kernel")],
    ids=name_of,
)
def test_an_operand_that_is_no_array_is_refused_by_its_own_name(function, name, wrong):
    with pytest.raises(TypeError, match=f"^`{name}` .* must be an array of JAX"):
        function(**OPERANDS[function] | {name: wrong})


@pytest.mark.parametrize("wrong", [jnp.ones((2, 4)), np.ones((2, 4)), [1.0]], ids=type)
@pytest.mark.parametrize(("function", "name"), EACH_OF_TWINS, ids=name_of)
def test_an_operand_that_is_no_tensor_is_refused_by_its_own_name(function, name, wrong):
    with pytest.raises(TypeError, match=f"^`{name}` .* must be a tensor of PyTorch"):
        function(**TWINS[function] | {name: wrong})


@pytest.mark.parametrize("dtype", ["int32", "bool"])
@pytest.mark.parametrize(
    ("function", "name"),
    [(f, name) for f, name in EACH_OPERAND if name in ("kernel", "bias")],
    ids=name_of,
)
def test_weights_that_are_not_floating_are_refused_by_their_own_name(
    function, name, dtype
):
    given = OPERANDS[function]
    with pytest.raises(ValueError, match=f"^`{name}` .{dtype}. must be floating"):
        function(**given | {name: given[name].astype(dtype)})


def test_a_bias_of_integers_is_refused_in_the_twin_too():
    given = TWINS[dynconv_torch.dynamic_conv]
    with pytest.raises(ValueError, match="^`bias` .torch.int64. must be of the dtype"):
        function: Any = dynconv_torch.dynamic_conv
        function(**given | {"bias": given["bias"].long()})


@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_attention_of_whole_numbers_is_taken_as_it_is(dtype):
    one_hot = np.eye(4)[[2, 0]]
    convolve = functools.partial(dynconv_jax.dynamic_conv, X, kernel=EXPERTS)
    expected = convolve(jnp.asarray(one_hot, "float32"))
    np.testing.assert_array_equal(convolve(jnp.asarray(one_hot, dtype)), expected)
    inputs, experts = TWINS[dynconv_torch.dynamic_conv]["input"], torch.ones(4, 8, 3, 1)
    attention = torch.from_numpy(one_hot.astype(dtype))
    theirs = dynconv_torch.dynamic_conv(inputs[..., 0], attention, experts)
    assert theirs.shape == (2, 8, 6)


# Layers


LAYERS = [
    functools.partial(dynconv_jax.DynamicConv, 3, 4, (1, 1)),
    functools.partial(dynconv_jax.ODConv, 3, 4, (1, 1)),
    functools.partial(dynconv_jax.DecomposedConv, 3, 4, (1, 1)),
    functools.partial(dynconv_jax.DynamicConvBlock, 3, 4, (1, 1)),
    functools.partial(dynconv_jax.DynamicNet, width_mult=0.05),
    functools.partial(dynconv_jax.Router, 3),
    functools.partial(dynconv_jax.SigmoidRouter, 3),
    functools.partial(dynconv_jax.BatchNorm, 3),
]
TWIN_LAYERS = [
    dynconv_torch.DynamicConv2d(3, 4, 1),
    dynconv_torch.ODConv2d(3, 4, 1),
    dynconv_torch.DecomposedConv2d(3, 4, 1),
    dynconv_torch.DynamicConvBlock(3, 4, 1),
    dynconv_torch.DynamicNet(width_mult=0.05),
    dynconv_torch.Router(3),
    dynconv_torch.SigmoidRouter(3),
]


def kind(value):
    return type(value).__name__


@pytest.mark.parametrize("make", LAYERS, ids=lambda make: make.func.__name__)
def test_layers_refuse_what_is_no_array_of_real_numbers(make):
    layer = make(rngs=nnx.Rngs(0))
    name = "x" if isinstance(layer, nnx.BatchNorm) else "inputs"
    with pytest.raises(TypeError, match=f"^`{name}` .a torch.Tensor.*jnp.asarray"):
        layer(torch.ones(2, 6, 5, 3))
    with pytest.raises(TypeError, match=f"^`{name}` .a list.*jnp.asarray"):
        layer([[1.0]])
    with pytest.raises(ValueError, match=f"^`{name}` .complex64. must be real"):
        layer(X.astype("complex64"))
    with pytest.raises(ValueError, match=f"^`{name}` .key<fry>. must hold numbers"):
        layer(jax.random.key(0))


@pytest.mark.parametrize("layer", TWIN_LAYERS, ids=kind)
def test_twin_layers_refuse_what_is_no_tensor_of_real_numbers(layer):
    with pytest.raises(TypeError, match="^`x` .a jaxlib.*dynconv_jax"):
        layer(X)
    with pytest.raises(TypeError, match="^`x` .a numpy.ndarray.*from_numpy"):
        layer(np.ones((2, 3, 6, 5)))
    with pytest.raises(ValueError, match="^`x` .torch.complex64. must be real"):
        layer(torch.ones(2, 3, 6, 5) * 1j)


def test_images_of_bytes_are_refused_by_the_networks_of_the_twin():
    with pytest.raises(ValueError, match="^`x` .torch.uint8. must be floating"):
        TWIN_LAYERS[4](torch.ones(2, 3, 6, 5, dtype=torch.uint8))


@pytest.mark.parametrize("make", [np.asarray, nnx.Variable, lambda x: x > 0])
def test_layers_take_what_flax_takes(make):
    layer = dynconv_jax.DynamicConv(3, 4, (1, 1), rngs=nnx.Rngs(0))
    with jax.numpy_dtype_promotion("standard"):  # else flax takes no bool either
        assert layer(make(X)).shape == (2, 6, 5, 4)


# What layers are built with


BUILDERS = {
    name: functools.partial(getattr(dynconv_jax, name), *arguments)
    for name, arguments in {
        "DynamicConv": (3, 8, (3, 3)),
        "DynamicConvTranspose": (3, 8, (3, 3)),
        "CondConv": (3, 8, (3, 3)),
        "ODConv": (3, 8, (3, 3)),
        "DecomposedConv": (3, 8, (3, 3)),
        "DynamicConvBlock": (3, 8, (3, 3)),
        "DynamicNet": (),
        "Router": (3,),
        "SigmoidRouter": (3,),
        "BatchNorm": (3,),
        "KernelWarehouse": ([Geometry.create(3, 8, (3, 3))],),
        "create_model": ("resnet18",),
    }.items()
}
BUILDERS |= {
    name: functools.partial(getattr(dynconv_jax, name), 3, 8, (3, 3), style_features=5)
    for name in ("AdaptiveConv", "ModulatedConv")
}
TWIN_BUILDERS = {
    name: functools.partial(getattr(dynconv_torch, name), *arguments)
    for name, arguments in {
        "DynamicConv2d": (3, 8, 3),
        "DynamicConvTranspose1d": (3, 8, 3),
        "CondConv3d": (3, 8, 3),
        "ODConv2d": (3, 8, 3),
        "DecomposedConv2d": (3, 8, 1),
        "DynamicConvBlock": (3, 8, 3),
        "DynamicNet": (),
        "Router": (3,),
        "SigmoidRouter": (3,),
        "KernelWarehouse": ([TwinGeometry.create(3, 8, 3, rank=2)],),
        "create_model": ("mobilenet_v2",),
    }.items()
}
TWIN_BUILDERS |= {
    name: functools.partial(getattr(dynconv_torch, name), 3, 8, 3, style_channels=5)
    for name in ("AdaptiveConv2d", "ModulatedConv2d")
}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(
    ("wrong", "shown"),
    [(0, "=0.*nnx.Rngs.0"), (None, "=None"), (jax.random.key(0), "a key.*Rngs.key")],
    ids=str,
)
def test_what_are_no_rngs_is_refused_at_once(name, wrong, shown):
    with pytest.raises(TypeError, match=f"^`rngs` .{shown}"):
        BUILDERS[name](rngs=wrong)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("wrong", ["float33", torch.float32, None], ids=str)
def test_what_is_no_dtype_is_refused_at_once(name, wrong):
    with pytest.raises(TypeError, match="^`param_dtype` .*must be a dtype"):
        BUILDERS[name](param_dtype=wrong, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("wrong", [int, "complex64", bool], ids=str)
def test_a_dtype_that_is_not_floating_is_refused_at_once(name, wrong):
    with pytest.raises(ValueError, match="^`param_dtype` .*must be floating"):
        BUILDERS[name](param_dtype=wrong, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", TWIN_BUILDERS)
@pytest.mark.parametrize("wrong", ["float32", np.float32, 32], ids=str)
def test_what_is_no_dtype_of_pytorch_is_refused_at_once(name, wrong):
    with pytest.raises(TypeError, match="^`dtype` .*must be a dtype of PyTorch"):
        TWIN_BUILDERS[name](dtype=wrong)


@pytest.mark.parametrize("name", TWIN_BUILDERS)
@pytest.mark.parametrize("wrong", [torch.int32, torch.complex64], ids=str)
def test_a_dtype_of_pytorch_that_is_not_floating_is_refused_at_once(name, wrong):
    with pytest.raises(ValueError, match="^`dtype` .*must be floating"):
        TWIN_BUILDERS[name](dtype=wrong)


@pytest.mark.parametrize("check", [checks.check_rate, twin_checks.check_rate])
@pytest.mark.parametrize("wrong", [1, -0.1, 1 - 1e-12, float("nan"), 2.0])
def test_a_rate_is_checked_as_float32_has_it(check, wrong):
    check("dropout", 0.999)
    with pytest.raises(ValueError, match=r"^`dropout` .* must be in \[0, 1\)"):
        check("dropout", wrong)
    with pytest.raises(TypeError, match="^`dropout` .='much'. must be a number"):
        check("dropout", "much")


def with_experts(builders) -> list[str]:
    """Returns the names of those that take a number of experts."""
    found = {name: option_names(each) or () for name, each in builders.items()}
    return [name for name, options in found.items() if "num_experts" in options]


def test_members_with_experts_are_found():
    assert {"DynamicConv", "CondConv", "ODConv", "Router"} < {*with_experts(BUILDERS)}
    assert {"CondConv3d", "SigmoidRouter"} < {*with_experts(TWIN_BUILDERS)}


@pytest.mark.parametrize("name", with_experts(BUILDERS))
def test_more_experts_than_any_network_has_are_refused_at_once(name):
    with pytest.raises(ValueError, match="^`num_experts` .=1000000000000. .* at most"):
        BUILDERS[name](num_experts=10**12, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", with_experts(TWIN_BUILDERS))
def test_more_experts_than_any_twin_has_are_refused_at_once(name):
    with pytest.raises(ValueError, match="^`num_experts` .=1000000000000. .* at most"):
        TWIN_BUILDERS[name](num_experts=10**12)


@pytest.mark.parametrize("check", [checks.check_positive, twin_checks.check_positive])
def test_a_width_is_a_positive_number_of_whatever_kind(check):
    for right in (2, 0.5, np.float32(0.25), np.int64(1)):
        check("width_mult", right)
    for wrong, kind in (("1", "str"), (True, "bool"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"^`width_mult` .=.*, a {kind}. must be a"):
            check("width_mult", wrong)
    for wrong in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="^`width_mult` .* positive and finite"):
            check("width_mult", wrong)
