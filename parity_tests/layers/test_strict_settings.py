"""Layers where JAX promotes no dtype and no rank by itself, and NumPy's dtypes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dynconv_jax
from dynconv_jax import BatchNorm, DynamicNet, Router, SigmoidRouter
from parity_tests.tools.family import LAYERS, images, layer
from parity_tests.tools.jax_modules import build

# Precision and promotion as a user has them, without float64.
DEFAULT_NUMERICS = True

DTYPES = [
    ("bfloat16", "float32"),
    (None, "bfloat16"),
    # In which a layer does nothing that it does not in those.
    (None, "float32"),
    ("float16", "float32"),
    ("float64", "float64"),
]
IN_ALL = "DynamicConv", "ODConv", "WarehouseConv"


@pytest.fixture
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def trace_training(module, inputs):
    """Traces outputs, gradients and buffers; returns the dtype of the outputs."""
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def loss(params, rest, inputs):
        module = nnx.merge(graphdef, params, rest, copy=True)
        outputs = module(inputs)
        return jnp.square(outputs).sum(), (outputs, nnx.state(module, nnx.BatchStat))

    gradients, (outputs, _) = jax.eval_shape(
        jax.grad(loss, (0, 2), has_aux=True), params, rest, inputs
    )
    kinds = {leaf.dtype for leaf in jax.tree.leaves(gradients[0])}
    assert kinds == {leaf.dtype for leaf in jax.tree.leaves(params)}
    return outputs.dtype


@pytest.mark.parametrize(
    ("name", "dtype", "param_dtype"),
    [
        (name, *dtypes)
        for name in LAYERS
        for dtypes in (DTYPES if name in IN_ALL else DTYPES[:2])
    ],
)
def test_layer_trains_where_nothing_is_promoted_unasked(
    name, dtype, param_dtype, strict
):
    with jax.enable_x64("float64" in (dtype, param_dtype)):
        module = layer(name, dtype=dtype, param_dtype=param_dtype, use_bias=True)
        inputs = jnp.asarray(images(2, 5, 4, 4, dtype=dtype or param_dtype))
        assert trace_training(module, inputs) == (dtype or param_dtype)


@pytest.mark.parametrize("form", ["patches", "rows", "scan", "experts", "vmap", "taps"])
@pytest.mark.parametrize("name", ["DynamicConv", "ODConv", "DynamicConvTranspose"])
def test_form_trains_where_nothing_is_promoted_unasked(name, form, strict):
    options: dict[str, Any] = dict(implementation=form, dtype="bfloat16")
    if form == "taps":
        options["feature_group_count"] = 4
    module = layer(name, 4, 8, (3, 3), **options)
    inputs = jnp.asarray(images(2, 5, 4, 4, dtype="bfloat16"))
    assert trace_training(module, inputs) == "bfloat16"


@pytest.mark.parametrize(
    "conv", ["dynamic", "odconv", "decomposed", "kernel_warehouse"]
)
def test_network_trains_where_nothing_is_promoted_unasked(conv, strict):
    make = functools.partial(
        dynconv_jax.create_model,
        "dynamic_net",
        conv=conv,
        width_mult=0.1,
        dtype="bfloat16",
    )
    net = build(lambda: make(rngs=nnx.Rngs(0)))
    inputs = jnp.asarray(images(2, 9, 8, 3, dtype="bfloat16"))
    assert trace_training(net, inputs) == "bfloat16"


def traced(build: Callable[[], Any], inputs: Any) -> jax.ShapeDtypeStruct:
    """Returns what a module answers to an array of NumPy, which it is given as it is.

    It computes nothing: shapes and dtypes are all that is asked.
    """
    return jax.eval_shape(lambda: build()(inputs))


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint8", "bool"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_takes_numpy_arrays_as_flax_does(name, dtype):
    inputs: Any = (images(2, 5, 4, 4) * 3).astype(dtype)
    expected = traced(lambda: nnx.Conv(4, 6, (1, 1), rngs=nnx.Rngs(0)), inputs)
    outputs = traced(lambda: layer(name), inputs)
    assert outputs.shape == expected.shape
    assert outputs.dtype == expected.dtype


def test_routers_norm_and_network_take_float64_of_numpy():
    inputs: Any = images(2, 9, 8, 3, dtype="float64")
    for part in (Router, SigmoidRouter, BatchNorm):
        found = traced(lambda part=part: part(3, rngs=nnx.Rngs(0)), inputs)
        assert found.dtype == jnp.float32
    net = traced(lambda: DynamicNet(width_mult=0.1, rngs=nnx.Rngs(0)), inputs)
    assert net.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "stack", "weights"),
    [
        ("dynamic_conv", 3, (2, 3)),
        ("dynamic_conv_transpose", 3, (2, 3)),
        ("per_sample_conv", 2, None),
        ("per_sample_conv_transpose", 2, None),
    ],
)
def test_functions_take_float64_of_numpy(name, stack, weights):
    operands = [
        np.ones((2, 5, 4, 4)),
        np.ones((stack, 3, 3, 4, 6)),
        np.ones((stack, 6)),
    ]
    if weights:
        operands.insert(1, np.ones(weights))
    assert getattr(dynconv_jax, name)(*operands).dtype == jnp.float32


def test_mixtures_take_float64_of_numpy():
    attention: Any = np.ones((2, 3))
    kernel: Any = np.ones((3, 4))
    mixed = dynconv_jax.mix_kernels(attention, kernel)
    assert mixed.dtype == jnp.float32
