"""ContextConv: parity, its equations once more, state, what it refuses."""

from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax import (
    ContextConv,
    DynamicConvBlock,
    collapse,
    count_multiply_adds,
    init_from_static,
    load_torch_state_dict,
    set_temperature,
    to_torch_state_dict,
)
from parity_tests.parity import assert_parity, torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools.modules import jax_twin

CONTEXT = 5


def torch_layer(channels, outputs, kernel_size, dtype=torch.float64, **options):
    """A layer of PyTorch whose linear layer and biases are not those of the start."""
    cls = getattr(dynconv_torch, f"ContextConv{len(kernel_size)}d")
    layer = cls(channels, outputs, kernel_size, context_channels=CONTEXT, **options)
    for name, parameter in layer.named_parameters():
        if name != "weight":
            torch.nn.init.normal_(parameter)
    return layer.to(dtype)


def layers(channels, outputs, kernel_size, dtype="float64", **options):
    """The same layer in both frameworks, with the same parameters."""
    options = {"temperature": 0.6, **options}
    theirs = torch_layer(
        channels, outputs, kernel_size, getattr(torch, dtype), **options
    )
    options["context_channels"] = CONTEXT
    arguments = (channels, outputs, kernel_size)
    return jax_twin(theirs, ContextConv, *arguments, dtype, **options), theirs


# name: (shape of the inputs, outputs, kernel, options)
CASES: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], dict[str, Any]]] = {
    "1d": ((3, 9, 4), 3, (3,), dict(padding=1, num_experts=3, bias=True)),
    "2d strided": ((2, 7, 6, 4), 5, (3, 2), dict(stride=2, padding=1)),
    "2d depthwise": ((2, 6, 7, 4), 4, (5, 5), dict(padding=2, groups=4)),
    "2d pointwise": ((1, 5, 4, 5), 3, (1, 1), dict(padding=0)),
    "3d": ((2, 3, 4, 3, 2), 3, (2, 1, 3), dict(padding=1, num_experts=2)),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_agree(name, rng):
    shape, outputs, kernel_size, options = CASES[name]
    pair = layers(shape[-1], outputs, kernel_size, **options)
    context = rng.normal(size=(shape[0], CONTEXT))
    assert_parity(*pair, rng.normal(size=shape), context=context)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_agree_in_narrower_dtypes(dtype, rng):
    pair = layers(8, 6, (3,), dtype, padding=1)
    narrow = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    inputs, context = rng.normal(size=(3, 7, 8)), rng.normal(size=(3, CONTEXT))
    assert_parity(*pair, inputs.astype(narrow), context=context.astype(narrow))


def plain_context_conv(x, context, state, shape, stride, padding, groups):
    """The equations, a sample at a time; `shape` is that of an expert."""
    kernels = state["weight"][0, 0].reshape(-1, *shape)
    rows = []
    for sample, given in zip(x, context, strict=True):
        linear = state["residuals.0.weight"], state["residuals.0.bias"]
        exponentials = torch.exp((linear[0] @ given + linear[1]) / 0.6)
        mixed = torch.zeros_like(kernels[0])
        for weight, kernel in zip(exponentials, kernels, strict=True):
            mixed = mixed + weight / exponentials.sum() * kernel
        rows.append(F.conv2d(sample[None], mixed, None, stride, padding, 1, groups))
    return torch.cat(rows)


@pytest.mark.parametrize("name", ["2d strided", "2d depthwise", "2d pointwise"])
def test_layer_computes_the_equations(name):
    shape, outputs, kernel_size, options = CASES[name]
    layer = torch_layer(shape[-1], outputs, kernel_size, temperature=0.6, **options)
    x = torch.randn(shape, dtype=torch.float64).movedim(-1, 1).requires_grad_()
    context = torch.randn(shape[0], CONTEXT, dtype=torch.float64, requires_grad=True)
    state = dict(layer.named_parameters())
    groups = options.get("groups", 1)
    expert = outputs, shape[-1] // groups, *kernel_size
    geometry = options.get("stride", 1), options["padding"], groups
    leaves = [x, context, *state.values()]
    expected = plain_context_conv(x, context, state, expert, *geometry)
    actual = layer(x, context)
    cotangent = torch.randn_like(actual)

    def results(outputs):
        gradients = torch.autograd.grad(outputs, leaves, cotangent)
        named = zip(("input", "context", *state), gradients, strict=True)
        found = {"output": outputs.detach()} | {f"of {n}": g for n, g in named}
        return {name: value.numpy() for name, value in found.items()}

    assert_close(results(actual), results(expected), dtype="float64", floor=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_state_dicts_come_back_bit_for_bit(rank, rng):
    taps = (3, 2, 1)[:rank]
    shapes = {
        "weight": (1, 1, 3, 6 * 4 * int(np.prod(taps))),
        "bias": (3, 6),
        "residuals.0.weight": (3, CONTEXT),
        "residuals.0.bias": (3,),
    }
    state = {key: rng.random(shape).astype("float32") for key, shape in shapes.items()}
    ours, theirs = layers(4, 6, taps, "float32", num_experts=3, bias=True)
    load_torch_state_dict(ours, state)
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    theirs.load_state_dict(tensors, strict=True)
    for returned in (to_torch_state_dict(ours), torch_state(theirs)):
        # Published state dicts have no temperature, and that of the layer stays.
        assert returned.pop("residuals.temperature") == 0.6
        assert returned.keys() == state.keys()
        for key, value in state.items():
            assert returned[key].tobytes() == value.tobytes()


def test_experts_are_drawn_by_their_own_fan_out():
    ours = ContextConv(8, 32, (3, 3), context_features=64, rngs=nnx.Rngs(0))
    theirs = dynconv_torch.ContextConv2d(8, 32, 3, context_channels=64)
    for state in (to_torch_state_dict(ours), torch_state(theirs)):
        assert abs(state["weight"].std() / (2 / (32 * 9)) ** 0.5 - 1) < 0.05
        assert 0.008 < state["residuals.0.weight"].std() < 0.012
        assert (state["residuals.0.bias"] == 0).all()


def test_both_capture_the_attention_that_the_context_gives(rng):
    layer, twin = layers(4, 6, (3,), padding=1, num_experts=3)
    inputs, context = rng.normal(size=(2, 7, 4)), rng.normal(size=(2, CONTEXT))
    for each, of_each in ((dynconv_jax, layer), (dynconv_torch, twin)):
        each.set_temperature(of_each, 0.3)
    _, ours = dynconv_jax.capture_routers(layer, inputs, context)
    _, theirs = dynconv_torch.capture_routers(
        twin, torch.from_numpy(inputs).movedim(-1, 1), torch.from_numpy(context)
    )
    found, expected = ours["attention"], theirs["residuals"]
    for name in ("attention", "logits"):
        value = getattr(expected, name).detach().numpy()
        assert_close({name: getattr(found, name)}, {name: value}, dtype="float64")
    routed = {"jax": layer.routing(context)}
    assert_close(routed, {"jax": found.attention}, dtype="float64")
    set_temperature(layer, 30.0)  # at which no expert has it all
    summary = dynconv_jax.diagnose(layer, inputs, context)["attention"]
    assert isinstance(summary, dynconv_jax.RouterSummary)
    assert summary.share.shape == (3,)


def test_layer_takes_any_batch(rng):
    layer, twin = layers(4, 6, (3, 3), padding=1)
    inputs, context = rng.normal(size=(2, 3, 5, 6, 4)), rng.normal(size=(2, 3, CONTEXT))
    outputs = layer(inputs, context)
    assert outputs.shape == (2, 3, 5, 6, 6)
    assert layer.routing(context).shape == (2, 3, 4)
    given = torch.from_numpy(context[1, 2])
    single = twin(torch.from_numpy(inputs[1, 2]).movedim(-1, 0), given)
    assert_close(
        {"": single.detach().movedim(0, -1).numpy()},
        {"": outputs[1, 2]},
        dtype="float64",
    )
    assert twin.routing(given).shape == (4,)


def test_static_layers_are_where_it_starts_and_what_it_collapses_to(rng):
    layer, _ = layers(4, 6, (3,), padding=1, num_experts=2)
    inputs, context = rng.normal(size=(2, 7, 4)), rng.normal(size=(2, CONTEXT))
    options: dict[str, Any] = dict(
        padding=1, use_bias=False, param_dtype="float64", rngs=nnx.Rngs(0)
    )
    static = nnx.Conv(4, 6, (3,), **options)
    weights = np.array([0.3, 0.7])
    collapse(layer, static, weights)
    kernel = weights[0] * layer.kernel[0] + weights[1] * layer.kernel[1]
    assert_close({"": static.kernel[...]}, {"": kernel}, dtype="float64")
    init_from_static(layer, static)
    assert_close({"": layer(inputs, context)}, {"": static(inputs)}, dtype="float64")


def test_mixing_is_counted_and_the_linear_layer_too():
    layer = ContextConv(4, 8, (3, 3), context_features=16, rngs=nnx.Rngs(0))
    shapes = [jax.ShapeDtypeStruct(s, "float32") for s in ((1, 9, 7, 4), (1, 16))]
    static = 9 * 7 * 9 * 4 * 8
    assert count_multiply_adds(layer, *shapes) == static + 4 * 9 * 4 * 8 + 4 * 16


def test_temperature_evens_the_attention_out(rng):
    layer, _ = layers(4, 6, (3,), num_experts=3)
    set_temperature(layer, 1e6)
    found = layer.routing(rng.normal(size=(2, CONTEXT)))
    assert abs(found - 1 / 3).max() < 1e-4


def test_contexts_that_do_not_fit_are_refused():
    layer, twin = layers(4, 6, (3,), padding=1)
    with pytest.raises(ValueError, match="`context` .*context_features. = .2, 5."):
        layer(np.ones((2, 7, 4)), np.ones((3, 5)))
    with pytest.raises(ValueError, match="`context` .*context_channels.*.2, 5."):
        twin(torch.ones(2, 4, 7).double(), torch.ones(3, 5))
    with pytest.raises(ValueError, match="`temperature` .=0.0. must be one positive"):
        ContextConv(4, 6, (3,), context_features=5, temperature=0.0, rngs=nnx.Rngs(0))


def test_a_network_without_contexts_refuses_it():
    with pytest.raises(TypeError, match="context_features"):
        DynamicConvBlock(3, 8, conv=ContextConv, rngs=nnx.Rngs(0))
    for build, conv in (
        (
            lambda conv: dynconv_jax.create_model(
                "dynamic_net", conv=conv, rngs=nnx.Rngs(0)
            ),
            ContextConv,
        ),
        (
            lambda conv: dynconv_torch.create_model("dynamic_net", conv=conv),
            dynconv_torch.ContextConv2d,
        ),
    ):
        with pytest.raises(ValueError, match="needs a network that steers its convolu"):
            build(conv)
