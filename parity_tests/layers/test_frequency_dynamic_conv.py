"""FrequencyDynamicConv: parity, its equations once more, forms, weights, refusals."""

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import dynconv_jax
import dynconv_torch
from dynconv_jax import (
    FrequencyDynamicConv,
    init_from_static,
    load_torch_state_dict,
    set_temperature,
    to_torch_state_dict,
)
from parity_tests.parity import assert_parity, torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools.modules import jax_twin
from parity_tests.tools.slow import thinned


def torch_layer(channels, outputs, kernel_size, dtype=torch.float64, **options):
    """A layer of PyTorch whose biases and norm are not those of the beginning."""
    layer = dynconv_torch.FrequencyDynamicConv2d(
        channels, outputs, kernel_size, **options
    ).to(dtype)
    for name, parameter in layer.named_parameters():
        if "bias" in name or ".weight" in name and parameter.ndim == 1:
            torch.nn.init.normal_(parameter)
    return layer


def layers(channels, outputs, kernel_size, dtype="float64", **options):
    """The same layer in both frameworks, with the same parameters."""
    width = getattr(torch, dtype)
    theirs = torch_layer(channels, outputs, kernel_size, width, **options)
    arguments = (channels, outputs, kernel_size)
    return jax_twin(theirs, FrequencyDynamicConv, *arguments, dtype, **options), theirs


# name: (shape of the inputs, outputs, kernel, options)
CASES: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], dict[str, Any]]] = {
    "frequency": ((2, 9, 7, 5), 4, (3, 3), dict(padding=1, bias=True)),
    "time": ((3, 6, 7, 5), 4, (3, 3), dict(padding=1, axis="time", num_experts=3)),
    "strided, grouped": (
        (2, 8, 9, 6),
        4,
        (3, 5),
        dict(stride=(1, 2), padding=((0, 1), (2, 1)), groups=2, bias=True),
    ),
    "dilated in time": (
        (2, 9, 6, 3),
        4,
        (3, 2),
        dict(dilation=(2, 1), padding=1, axis="time", num_experts=2),
    ),
    "depthwise": ((2, 6, 7, 4), 8, (3, 3), dict(padding=1, groups=4, num_experts=2)),
    "pointwise": ((2, 5, 4, 5), 3, (1, 1), dict(padding=0, norm="layer")),
    "batch 1": ((1, 5, 6, 3), 4, (3, 3), dict(padding=1, norm="none")),
}


@pytest.mark.parametrize("name", thinned(CASES, "time", "strided, grouped"))
def test_layers_agree(name, rng):
    shape, outputs, kernel_size, options = CASES[name]
    pair = layers(shape[-1], outputs, kernel_size, temperature=0.6, **options)
    assert_parity(*pair, rng.normal(size=shape))


@pytest.mark.slow
@settings(max_examples=2, deadline=None, derandomize=True)
@given(data=st.data())
def test_layers_agree_with_options_crossed(data):
    draw = data.draw
    groups = draw(st.integers(1, 2))
    pair = layers(
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=draw(st.sampled_from([1, 2])),
        stride=draw(st.integers(1, 2)),
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        num_experts=draw(st.integers(1, 3)),
        axis=draw(st.sampled_from(["frequency", "time"])),
        norm=draw(st.sampled_from(["batch", "layer", "none"])),
        implementation=draw(st.sampled_from(["auto", "patches", "experts"])),
        temperature=draw(st.floats(0.5, 30)),
    )
    shape = (draw(st.integers(2, 3)), 6, 5, pair[0].in_features)
    assert_parity(*pair, np.random.default_rng(groups).normal(size=shape))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_agree_in_narrower_dtypes(dtype, rng):
    pair = layers(16, 8, (3, 3), dtype, padding=1)
    narrow = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    assert_parity(*pair, rng.normal(size=(2, 6, 7, 16)).astype(narrow))


# The equations once more


def plain_frequency_dynamic_conv(x, state, training, temperature, axis, geometry):
    """The equations, a sample and a bin at a time; batch norm by hand."""
    stride, padding, groups = geometry
    position = ("time", "frequency").index(axis)
    pooled = x.mean(3 - position)
    own = pooled if isinstance(padding, int) else F.pad(pooled, padding[position])
    hidden = F.conv1d(
        own,
        state["attention.conv1d1.weight"],
        stride=stride[position],
        padding=padding if isinstance(padding, int) else 0,
    )
    mean, variance = hidden.mean((0, 2)), hidden.var((0, 2), correction=0)
    if not training:
        mean = state["attention.bn.running_mean"]
        variance = state["attention.bn.running_var"]
    normed = (hidden - mean[:, None]) / torch.sqrt(variance[:, None] + 1e-5)
    normed = normed * state["attention.bn.weight"][:, None]
    normed = (normed + state["attention.bn.bias"][:, None]).clamp(min=0)
    padded = x
    if not isinstance(padding, int):
        padded, padding = F.pad(x, (*padding[1], *padding[0])), 0
    rows = []
    for sample, features in zip(padded, normed, strict=True):
        columns = []
        for bin in range(features.shape[1]):
            logits = state["attention.conv1d2.weight"][..., 0] @ features[:, bin]
            logits = (logits + state["attention.conv1d2.bias"]) / temperature
            weights = torch.exp(logits) / torch.exp(logits).sum()
            kernel = torch.zeros_like(state["weight"][0])
            bias = torch.zeros(len(kernel)).to(x)
            for index, weight in enumerate(weights):
                kernel = kernel + weight * state["weight"][index]
                if "bias" in state:
                    bias = bias + weight * state["bias"][index]
            y = F.conv2d(sample[None], kernel, None, stride, padding, 1, groups)[0]
            y = y + bias.reshape(-1, 1, 1)
            columns.append(y.select(1 + position, bin))
        rows.append(torch.stack(columns, 1 + position))
    return torch.stack(rows)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("implementation", ["auto", "grouped"])
@pytest.mark.parametrize("name", ["frequency", "time", "strided, grouped"])
def test_layer_computes_the_equations(name, implementation, training):
    shape, outputs, kernel_size, options = CASES[name]
    options = {**options, "temperature": 1.7, "implementation": implementation}
    layer = torch_layer(shape[-1], outputs, kernel_size, **options)
    torch.nn.init.normal_(layer.get_buffer("attention.bn.running_mean"))
    layer.train(training)
    x = torch.randn(shape, dtype=torch.float64).movedim(-1, 1).requires_grad_()
    state = dict(layer.named_parameters())
    leaves = [x, *state.values()]
    geometry = layer.stride, options["padding"], layer.groups
    everything = {**layer.state_dict(), **state}
    expected = plain_frequency_dynamic_conv(
        x, everything, training, 1.7, layer.axis, geometry
    )
    actual = layer(x)
    cotangent = torch.randn_like(actual)

    def results(outputs):
        gradients = torch.autograd.grad(outputs, leaves, cotangent)
        named = zip(("input", *state), gradients, strict=True)
        found = {"output": outputs.detach()} | {f"of {n}": g for n, g in named}
        return {name: value.numpy() for name, value in found.items()}

    assert_close(results(actual), results(expected), dtype="float64", floor=1e-4)


@pytest.mark.parametrize(
    "name",
    thinned(["strided, grouped", "dilated in time", "depthwise"], "strided, grouped"),
)
@pytest.mark.parametrize("implementation", thinned(["experts", "rows"], "experts"))
def test_forms_agree(name, implementation, rng):
    shape, outputs, kernel_size, options = CASES[name]
    layer, _ = layers(shape[-1], outputs, kernel_size, temperature=0.6, **options)
    inputs = rng.normal(size=shape)
    expected = layer(inputs)
    layer.implementation = implementation
    assert_close({"": layer(inputs)}, {"": expected}, dtype="float64")


# Weights, attention, refusals


@pytest.mark.parametrize("axis", ["frequency", "time"])
def test_published_state_dicts_come_back_bit_for_bit(axis, rng):
    shapes: dict[str, tuple[int, ...]] = {
        "weight": (4, 6, 20, 3, 3),
        "attention.conv1d1.weight": (5, 20, 3),
        "attention.bn.weight": (5,),
        "attention.bn.bias": (5,),
        "attention.bn.running_mean": (5,),
        "attention.bn.running_var": (5,),
        "attention.conv1d2.weight": (4, 5, 1),
        "attention.conv1d2.bias": (4,),
    }
    state = {
        key: np.array(rng.random(shape), np.float32) for key, shape in shapes.items()
    }
    state["attention.bn.num_batches_tracked"] = np.array(7)
    ours, theirs = layers(20, 6, (3, 3), "float32", axis=axis)
    load_torch_state_dict(ours, state)
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    theirs.load_state_dict(tensors, strict=True)
    for returned in (to_torch_state_dict(ours), torch_state(theirs)):
        assert returned.keys() == {*state, "attention.temperature"}
        assert returned["attention.temperature"] == 31
        for key in shapes:
            assert returned[key].tobytes() == state[key].tobytes()


def test_layer_is_drawn_as_published():
    layer = FrequencyDynamicConv(32, 24, (3, 3), rngs=nnx.Rngs(0))
    twin = dynconv_torch.FrequencyDynamicConv2d(32, 24, 3)
    expected = {
        "weight": (2 / (32 * 9)) ** 0.5,
        "attention.conv1d1.weight": (2 / (8 * 3)) ** 0.5,
        "attention.conv1d2.weight": (2 / 4) ** 0.5,
    }
    for state in (to_torch_state_dict(layer), torch_state(twin)):
        for key, deviation in expected.items():
            assert 0.6 < state[key].std() / deviation < 1.4
        assert (state["attention.conv1d2.bias"] == 0).all()


def test_static_convolution_is_kept_whole_in_a_layer(rng):
    layer, _ = layers(4, 6, (3, 3), padding=1, bias=True)
    static = nnx.Conv(4, 6, (3, 3), padding=1, param_dtype="float64", rngs=nnx.Rngs(0))
    init_from_static(layer, static)
    inputs = rng.normal(size=(2, 5, 6, 4))
    assert_close({"": layer(inputs)}, {"": static(inputs)}, dtype="float64")


def test_both_capture_the_attention_of_each_bin(rng):
    layer, twin = layers(4, 6, (3, 3), stride=2, padding=1, num_experts=3)
    inputs = rng.normal(size=(2, 5, 7, 4))
    for each, of_each in ((dynconv_jax, layer), (dynconv_torch, twin)):
        each.set_temperature(of_each, 0.3)
    _, ours = dynconv_jax.capture_routers(layer, inputs)
    _, theirs = dynconv_torch.capture_routers(
        twin, torch.from_numpy(inputs).movedim(-1, 1)
    )
    assert ours.keys() == theirs.keys() == {"attention"}
    found, expected = ours["attention"], theirs["attention"]
    assert found.attention.shape == (2 * 4, 3)
    for name in ("attention", "logits"):
        value = getattr(expected, name).detach().numpy()
        assert_close({name: getattr(found, name)}, {name: value}, dtype="float64")


def test_layer_takes_any_batch(rng):
    layer, twin = layers(4, 6, (3, 3), padding=1, norm="none")
    inputs = rng.normal(size=(2, 3, 5, 6, 4))
    outputs = layer(inputs)
    assert outputs.shape == (2, 3, 5, 6, 6)
    assert layer.routing(inputs).shape == (2, 3, 6, 4)
    single = torch.from_numpy(inputs[1, 2]).movedim(-1, 0)
    found = twin(single).detach().movedim(0, -1).numpy()
    assert_close({"": found}, {"": outputs[1, 2]}, dtype="float64")
    assert twin.routing(single).shape == (4, 6)


def test_temperature_evens_the_attention_out(rng):
    layer, _ = layers(4, 6, (3, 3), num_experts=3)
    inputs = rng.normal(size=(2, 5, 6, 4))
    set_temperature(layer, 1e6)
    assert jnp.abs(layer.routing(inputs) - 1 / 3).max() < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(axis="channel"), "`axis` .='channel'. must be one of 'time'"),
        (dict(implementation="fast"), "`implementation` .='fast'. must be one of"),
        (dict(temperature=0.0), "`temperature` .=0.0. must be one positive"),
        (dict(min_hidden=0), "`min_hidden` .=0. must be"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FrequencyDynamicConv(4, 6, (3, 3), **options, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        dynconv_torch.FrequencyDynamicConv2d(4, 6, 3, **options)


def test_kernels_that_are_not_of_two_axes_are_refused():
    with pytest.raises(ValueError, match="must be a tuple of 2 ints"):
        FrequencyDynamicConv(4, 6, (3,), rngs=nnx.Rngs(0))


def test_attention_of_other_bins_is_refused():
    experts = jnp.ones((3, 3, 3, 4, 8))
    with pytest.raises(ValueError, match=r"`attention` .* = .2, 4, 3., with the bins"):
        dynconv_jax.frequency_dynamic_conv(
            jnp.ones((2, 9, 7, 4)), jnp.ones((2, 7, 3)), experts, strides=2
        )
    with pytest.raises(ValueError, match=r"`attention` .* = .2, 3, 4., with the bins"):
        dynconv_torch.frequency_dynamic_conv(
            torch.ones(2, 4, 9, 7),
            torch.ones(2, 3, 7),
            torch.ones(3, 8, 4, 3, 3),
            stride=2,
            padding=1,
        )


def test_a_batch_of_none_is_answered_with_none():
    layer = FrequencyDynamicConv(4, 6, (3, 3), rngs=nnx.Rngs(0))
    layer.eval()
    assert layer(jnp.ones((0, 9, 7, 4), "float32")).shape == (0, 9, 7, 6)
    twin = dynconv_torch.FrequencyDynamicConv2d(4, 6, 3, padding=1).eval()
    assert twin(torch.ones(0, 4, 9, 7)).shape == (0, 6, 9, 7)
