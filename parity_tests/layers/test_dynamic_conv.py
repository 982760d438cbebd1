"""DynamicConv: parity, and the plain reference."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_torch
from dynconv_jax import DynamicConv, Router
from parity_tests.parity import assert_parity
from parity_tests.passes import run_jax
from parity_tests.tolerances import assert_close
from parity_tests.tools import reference
from parity_tests.tools.cases import CASES


@pytest.mark.parametrize("name", CASES)
def test_layers_agree(name, rng):
    case = CASES[name]
    assert_parity(case.jax_layer(), case.torch_layer(), case.inputs(rng))


@pytest.mark.parametrize("torch_form", ["loop", "experts"])
@pytest.mark.parametrize("jax_form", ["experts", "vmap"])
def test_layers_agree_in_every_implementation(jax_form, torch_form, rng):
    case = CASES["2d grouped"]
    assert_parity(
        case.jax_layer(implementation=jax_form),
        case.torch_layer(implementation=torch_form),
        case.inputs(rng),
    )


@pytest.mark.parametrize("temperature", [1e-2, 0.6, 30.0, 1e4])
def test_layers_agree_at_any_temperature(temperature, rng):
    case = CASES["2d"]
    assert_parity(
        case.jax_layer(temperature=temperature),
        case.torch_layer(temperature=temperature),
        case.inputs(rng),
    )


def test_layers_agree_on_inputs_of_large_magnitude(rng):
    case = CASES["2d strided"]
    assert_parity(case.jax_layer(), case.torch_layer(), 1e4 * case.inputs(rng))


def test_layers_agree_with_top_k(rng):
    case = CASES["2d"]
    assert_parity(case.jax_layer(top_k=2), case.torch_layer(top_k=2), case.inputs(rng))


def test_layers_agree_when_the_attention_is_given(rng):
    case = CASES["2d grouped"]
    assert_parity(
        case.jax_layer(),
        case.torch_layer(),
        case.inputs(rng),
        attention=rng.normal(size=(case.batch, case.num_experts)),
    )


def test_layers_agree_with_a_router_given(rng):
    case = CASES["2d"]
    options: dict[str, Any] = dict(
        in_features=case.channels, num_experts=case.num_experts, top_k=2
    )
    router = Router(param_dtype="float64", rngs=nnx.Rngs(0), **options)
    twin = dynconv_torch.Router(case.channels, case.num_experts, top_k=2)
    assert_parity(
        case.jax_layer(router=router), case.torch_layer(router=twin), case.inputs(rng)
    )


class JaxPair(nnx.Module):
    """Two layers that share one router."""

    def __init__(self, router: Router):
        options: dict[str, Any] = dict(padding=1, param_dtype="float64", router=router)
        self.first = DynamicConv(4, 4, (3, 3), rngs=nnx.Rngs(0), **options)
        self.second = DynamicConv(4, 6, (3, 3), rngs=nnx.Rngs(1), **options)

    def __call__(self, x):
        return self.second(self.first(x))


class TorchPair(torch.nn.Module):
    """The same in PyTorch."""

    def __init__(self, router: dynconv_torch.Router):
        super().__init__()
        self.first = dynconv_torch.DynamicConv2d(4, 4, 3, padding=1, router=router)
        self.second = dynconv_torch.DynamicConv2d(4, 6, 3, padding=1, router=router)

    def forward(self, x):
        return self.second(self.first(x))


def test_layers_agree_with_a_router_shared(rng):
    ours = JaxPair(Router(4, param_dtype="float64", rngs=nnx.Rngs(0)))
    theirs = TorchPair(dynconv_torch.Router(4)).double()
    assert_parity(ours, theirs, rng.normal(size=(2, 6, 5, 4)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_agree_in_narrower_dtypes(dtype, rng):
    options: dict[str, Any] = dict(num_experts=4, param_dtype=dtype, rngs=nnx.Rngs(0))
    ours = DynamicConv(16, 8, (3, 3), padding=1, use_bias=True, **options)
    theirs = dynconv_torch.DynamicConv2d(16, 8, 3, padding=1, bias=True)
    inputs = jnp.asarray(rng.normal(size=(2, 7, 6, 16)), dtype)
    assert_parity(ours, theirs.to(getattr(torch, dtype)), np.asarray(inputs))


def test_jitted_and_eager_agree(rng):
    case = CASES["2d strided"]
    layer, inputs = case.jax_layer(), case.inputs(rng)
    cotangent = rng.normal(size=np.asarray(layer(jnp.asarray(inputs))).shape)
    jitted, eager = (
        run_jax(layer, inputs, cotangent, training=True, jit=jit)
        for jit in (True, False)
    )
    assert_close({"output": jitted[0]}, {"output": eager[0]}, dtype="float64")
    assert_close(jitted[1], eager[1], dtype="float64")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("experts", [4, 5, 8])
def test_both_agree_with_the_plain_reference(experts, groups, bias, rng):
    plain = reference.PlainDynamicConv(
        6, 4, (3, 2), 2, 1, groups, bias, experts, temperature=0.6
    ).double()
    theirs = dynconv_torch.DynamicConv2d(
        6, 4, (3, 2), 2, 1, 1, groups, bias, experts, temperature=0.6
    ).double()
    theirs.load_state_dict(plain.state_dict(), strict=True)
    ours = DynamicConv(
        6,
        4,
        (3, 2),
        2,
        padding=1,
        feature_group_count=groups,
        use_bias=bias,
        num_experts=experts,
        temperature=0.6,
        param_dtype="float64",
        rngs=nnx.Rngs(0),
    )
    inputs = rng.normal(size=(3, 7, 9, 6))
    assert_parity(ours, theirs, inputs)
    x = torch.from_numpy(inputs).movedim(-1, 1)
    expected = {"output": plain(x), "routing": plain.routing(x)}
    actual = {"output": theirs(x), "routing": theirs.routing(x)}
    assert_close(
        {name: value.detach().numpy() for name, value in actual.items()},
        {name: value.detach().numpy() for name, value in expected.items()},
        dtype="float64",
    )


def test_same_padding_of_both_agrees_at_stride_one(rng):
    ours = DynamicConv(3, 4, (4, 3), param_dtype="float64", rngs=nnx.Rngs(0))
    theirs = dynconv_torch.DynamicConv2d(3, 4, (4, 3), padding="same").double()
    assert_parity(ours, theirs, rng.normal(size=(2, 7, 6, 3)))
