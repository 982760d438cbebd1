"""CondConv: parity, PyTorch's flattened layout, and "same" padding with any stride."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import export

import dynconv_torch
from dynconv_jax import (
    CondConv,
    SigmoidRouter,
    load_torch_state_dict,
    to_torch_state_dict,
)
from parity_tests.parity import as_torch, assert_parity, torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools.cases import CASES, Case


def jax_layer(case: Case, **options) -> CondConv:
    arguments: dict[str, Any] = {**case.jax_geometry, **options}
    return CondConv(
        case.channels,
        case.outputs,
        case.kernel_size,
        use_bias=case.bias,
        num_experts=case.num_experts,
        param_dtype="float64",
        rngs=nnx.Rngs(0),
        **arguments,
    )


def torch_layer(case: Case, **options):
    cls = getattr(dynconv_torch, f"CondConv{len(case.spatial)}d")
    return cls(
        case.channels,
        case.outputs,
        case.kernel_size,
        bias=case.bias,
        num_experts=case.num_experts,
        **{**case.torch_geometry, **options},
    ).double()


def attention_for(case: Case, rng) -> np.ndarray:
    """Weights as sigmoids answer them: they do not sum to 1."""
    return rng.uniform(size=(case.batch, case.num_experts))


@pytest.mark.parametrize(
    "name",
    [
        "1d dilated, strided",
        "2d uneven",
        "2d pointwise, strided",
        "2d grouped",
        "2d depthwise",
        "3d",
        "batch 1",
        "no bias",
    ],
)
def test_layers_agree(name, rng):
    case = CASES[name]
    assert_parity(
        jax_layer(case),
        torch_layer(case),
        case.inputs(rng),
        attention=attention_for(case, rng),
    )


@pytest.mark.parametrize("kernel_size, strides", [((3, 5), (2, 2)), ((2, 4), (3, 1))])
def test_layers_agree_with_same_padding_and_any_stride(kernel_size, strides, rng):
    case = Case((8, 7), kernel_size, strides, ((0, 0), (0, 0)), (1, 1))
    assert_parity(
        jax_layer(case, padding="SAME"),
        torch_layer(case, padding="same"),
        case.inputs(rng),
        attention=attention_for(case, rng),
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    size=st.integers(1, 12),
    extent=st.integers(1, 6),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 2),
    groups=st.integers(1, 2),
)
def test_same_padding_of_the_twin_is_that_of_its_definition(
    size, extent, stride, dilation, groups
):
    layer = dynconv_torch.CondConv1d(
        4, 6, extent, stride, "same", dilation, groups, num_experts=2
    ).double()
    x = torch.randn(2, 4, size, dtype=torch.float64)
    attention = torch.rand(2, 2, dtype=torch.float64)
    outputs = -(-size // stride)
    missing = max((outputs - 1) * stride + (extent - 1) * dilation + 1 - size, 0)
    padded = F.pad(x, (missing // 2, missing - missing // 2))
    kernels = (attention @ layer.weight).reshape(2, 6, 4 // groups, extent)
    expected = [
        F.conv1d(sample[None], kernel, None, stride, 0, dilation, groups)
        for sample, kernel in zip(padded, kernels, strict=True)
    ]
    actual = {"output": layer(x, attention).detach().numpy()}
    assert actual["output"].shape[-1] == outputs
    assert_close(actual, {"output": torch.cat(expected).detach()}, dtype="float64")


class JaxBlock(nnx.Module):
    """Depthwise and pointwise convolutions that share one router, as in a network."""

    def __init__(self):
        options: dict[str, Any] = dict(param_dtype="float64", rngs=nnx.Rngs(0))
        self.routing_fn = SigmoidRouter(6, 3, **options)
        self.conv_dw = CondConv(
            6, 6, (3, 3), 2, feature_group_count=6, num_experts=3, **options
        )
        self.conv_pw = CondConv(6, 4, (1, 1), num_experts=3, use_bias=True, **options)

    def __call__(self, x):
        attention = self.routing_fn(x)
        return self.conv_pw(self.conv_dw(x, attention), attention)


class TorchBlock(torch.nn.Module):
    """The same in PyTorch."""

    def __init__(self):
        super().__init__()
        options: dict[str, Any] = dict(num_experts=3)
        self.routing_fn = dynconv_torch.SigmoidRouter(6, 3)
        self.conv_dw = dynconv_torch.CondConv2d(
            6, 6, 3, 2, padding="same", groups=6, **options
        )
        self.conv_pw = dynconv_torch.CondConv2d(6, 4, 1, bias=True, **options)

    def forward(self, x):
        attention = self.routing_fn(x)
        return self.conv_pw(self.conv_dw(x, attention), attention)


def test_blocks_that_share_a_router_agree(rng):
    assert_parity(JaxBlock(), TorchBlock().double(), rng.normal(size=(3, 7, 6, 6)))


def published_state(rng) -> dict[str, np.ndarray]:
    """Made by hand, with the names and shapes of published checkpoints."""
    shapes = {
        "routing_fn.weight": (3, 6),
        "routing_fn.bias": (3,),
        "conv_dw.weight": (3, 6 * 1 * 3 * 3),
        "conv_pw.weight": (3, 4 * 6 * 1 * 1),
        "conv_pw.bias": (3, 4),
    }
    return {key: rng.normal(size=shape) for key, shape in shapes.items()}


def test_published_names_load_strictly_into_both_and_come_back_bit_for_bit(rng):
    expected = published_state(rng)
    ours, theirs = JaxBlock(), TorchBlock().double()
    load_torch_state_dict(ours, expected)
    theirs.load_state_dict({k: as_torch(v) for k, v in expected.items()}, strict=True)
    for actual in (to_torch_state_dict(ours), torch_state(theirs)):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert actual[key].dtype == value.dtype
            np.testing.assert_array_equal(actual[key], value, strict=True)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_row_of_the_weight_is_a_flattened_kernel_of_pytorch(groups, rng):
    weight = rng.normal(size=(2, 4 * (6 // groups) * 3 * 2))
    layer = CondConv(
        6,
        4,
        (3, 2),
        padding="VALID",
        feature_group_count=groups,
        num_experts=2,
        param_dtype="float64",
        rngs=nnx.Rngs(0),
    )
    load_torch_state_dict(layer, {"weight": weight})
    x = rng.normal(size=(1, 5, 4, 6))
    kernel = as_torch(weight[1]).reshape(4, 6 // groups, 3, 2)
    expected = F.conv2d(as_torch(x).movedim(-1, 1), kernel, groups=groups)
    actual = layer(jnp.asarray(x), jnp.array([[0.0, 1.0]]))
    assert_close(
        {"output": actual}, {"output": expected.movedim(1, -1)}, dtype="float64"
    )


def test_a_weight_of_the_wrong_size_is_refused_by_key_and_shape(rng):
    state = published_state(rng)
    state["conv_dw.weight"] = state["conv_dw.weight"][:, :-1]
    with pytest.raises(ValueError, match=r"conv_dw.weight has \(3, 53\).*\(3, 54\)"):
        load_torch_state_dict(JaxBlock(), state)


def test_an_abstract_layer_is_loaded(rng):
    expected = published_state(rng)
    block = nnx.eval_shape(JaxBlock)
    load_torch_state_dict(block, expected)
    actual = to_torch_state_dict(block)["conv_dw.weight"]
    np.testing.assert_array_equal(actual, expected["conv_dw.weight"])


def test_experts_and_biases_are_drawn_as_pytorch_draws_a_convolution():
    ours = CondConv(
        64,
        96,
        (3, 3),
        feature_group_count=2,
        use_bias=True,
        num_experts=8,
        rngs=nnx.Rngs(0),
    )
    theirs = dynconv_torch.CondConv2d(64, 96, 3, groups=2, bias=True, num_experts=8)
    bound = (32 * 9) ** -0.5
    for state in (to_torch_state_dict(ours), torch_state(theirs)):
        for expert in (*state["weight"], *state["bias"]):
            assert 0.9 * bound < np.abs(expert).max() <= bound
            assert abs(expert.std() / (bound / 3**0.5) - 1) < 0.2
        assert (state["weight"][0] != state["weight"][1]).any()


def test_an_initialiser_given_is_used():
    layer = CondConv(3, 4, (3,), kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
    assert (layer.kernel[...] == 1).all()


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_dimensions_is_accepted(batch, rng):
    layer = jax_layer(CASES["2d"])
    x = jnp.asarray(rng.normal(size=(*batch, 7, 6, 3)))
    attention = jnp.asarray(rng.uniform(size=(*batch, 3)))
    flat = layer(x.reshape(-1, 7, 6, 3), attention.reshape(-1, 3))
    expected = {"output": flat.reshape(*batch, 7, 6, 2)}
    assert_close({"output": layer(x, attention)}, expected, dtype="float64")


def test_unbatched_input_is_accepted_by_the_twin():
    layer = torch_layer(CASES["2d"])
    x, attention = torch.randn(3, 7, 6).double(), torch.rand(3).double()
    assert torch.equal(layer(x, attention), layer(x[None], attention[None])[0])


@pytest.mark.parametrize("shape", [(2, 5), (4,), (1, 4)])
def test_attention_of_the_wrong_shape_is_refused(shape):
    layer = CondConv(3, 4, (3, 3), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"attention.*\(2, 4\)"):
        layer(jnp.ones((2, 5, 6, 3)), jnp.ones(shape))
    twin = dynconv_torch.CondConv2d(3, 4, 3)
    with pytest.raises(ValueError, match=r"attention.*\(2, 4\)"):
        twin(torch.ones(2, 3, 5, 6), torch.ones(shape))


def test_a_bare_int_as_kernel_size_is_refused():
    with pytest.raises(TypeError, match=r"kernel_size` \(=3\).*tuple"):
        CondConv(3, 4, 3, rngs=nnx.Rngs(0))  # pyright: ignore[reportArgumentType]


def test_attention_is_asked_from_outside_in_both():
    assert CondConv.needs_attention
    assert dynconv_torch.CondConv2d.needs_attention


def test_block_exports_with_a_free_batch_and_no_convolution_over_it(rng):
    graphdef, state = nnx.split(JaxBlock())

    def gradient(x):
        def loss(x):
            return jnp.sin(nnx.merge(graphdef, state)(x)).sum()

        return jax.grad(loss)(x)

    x = jnp.asarray(rng.normal(size=(5, 7, 6, 6)))
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, 7, 6, 6"), x.dtype)
    artifact = export.export(jax.jit(gradient))(shape)
    assert_close(
        {"gradient": artifact.call(x[:3])},
        {"gradient": jax.jit(gradient)(x)[:3]},
        dtype="float64",
    )
    assert "stablehlo.convolution" not in artifact.mlir_module()


def test_twin_is_copied_compiled_and_laid_out_as_before():
    layer = torch_layer(CASES["2d grouped"], padding="same")
    x = torch.randn(2, 9, 6, 5, dtype=torch.float64)
    attention = torch.rand(2, 3, dtype=torch.float64)
    expected = layer(x, attention)
    assert torch.equal(copy.deepcopy(layer)(x, attention), expected)
    layer.to(memory_format=torch.channels_last)
    assert torch.equal(layer(x, attention), expected)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    actual = {"output": compiled(x, attention).detach()}
    assert_close(actual, {"output": expected.detach()}, dtype="float64")


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_call_without_attention_names_what_answers_it(rank):
    ours = CondConv(3, 4, (1,) * rank, num_experts=5, rngs=nnx.Rngs(0))
    theirs = getattr(dynconv_torch, f"CondConv{rank}d")(3, 4, 1, num_experts=5)
    message = r"`attention` \(=None\) must be given.*SigmoidRouter\(3, 5"
    with pytest.raises(TypeError, match=message):
        ours(jnp.ones((2, *(4, 3, 2)[:rank], 3)))
    with pytest.raises(TypeError, match=message):
        theirs(torch.ones(2, 3, *(4, 3, 2)[:rank]))
