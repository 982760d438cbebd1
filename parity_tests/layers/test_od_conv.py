"""ODConv: parity, its equations once more, absent heads, weights, temperature."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dynconv_torch
from dynconv_jax import (
    ODConv,
    load_torch_state_dict,
    set_temperature,
    to_torch_state_dict,
)
from parity_tests.parity import assert_parity, torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools.modules import jax_twin


def torch_layer(channels, outputs, kernel_size, dtype=torch.float64, **options):
    """A layer of PyTorch whose biases and norm are not those of the beginning."""
    cls = getattr(dynconv_torch, f"ODConv{len(kernel_size)}d")
    layer = cls(channels, outputs, kernel_size, **options).to(dtype)
    for name, parameter in layer.attention.named_parameters():
        if "bias" in name or ".weight" in name and parameter.ndim == 1:
            torch.nn.init.normal_(parameter)
    return layer


def layers(channels, outputs, kernel_size, dtype="float64", **options):
    """The same layer in both frameworks, with the same parameters."""
    width = getattr(torch, dtype)
    theirs = torch_layer(channels, outputs, kernel_size, width, **options)
    arguments = (channels, outputs, kernel_size)
    return jax_twin(theirs, ODConv, *arguments, dtype, **options), theirs


# name: (shape of the inputs, outputs, kernel, options)
CASES: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], dict[str, Any]]] = {
    "1d": ((3, 9, 5), 4, (3,), dict(padding=1, num_experts=3)),
    "2d strided, grouped": (
        (3, 7, 6, 6),
        4,
        (3, 2),
        dict(stride=2, padding=((1, 1), (0, 1)), groups=2, num_experts=3),
    ),
    "2d depthwise": ((2, 6, 7, 4), 4, (3, 3), dict(padding=1, groups=4, num_experts=2)),
    "2d pointwise": ((3, 5, 4, 5), 4, (1, 1), dict(padding=0, num_experts=2)),
    "one expert": ((3, 5, 6, 3), 4, (3, 3), dict(padding=1, num_experts=1)),
    "one kernel": ((3, 5, 6, 3), 4, (1, 1), dict(padding=0, stride=2, num_experts=1)),
    "3d": ((2, 4, 5, 3, 3), 2, (2, 1, 3), dict(padding=((0, 1), 0, 1), num_experts=2)),
    "batch 1, layer norm": ((1, 5, 6, 3), 4, (3, 3), dict(padding=1, norm="layer")),
    "batch 1, no norm": ((1, 5, 6, 3), 4, (3, 3), dict(padding=1, norm="none")),
}
HEADS = {
    "2d strided, grouped": {"channel", "filter", "spatial", "kernel"},
    "2d depthwise": {"channel", "spatial", "kernel"},
    "2d pointwise": {"channel", "filter", "kernel"},
    "one expert": {"channel", "filter", "spatial"},
    "one kernel": {"channel", "filter"},
}


@pytest.mark.parametrize("name", CASES)
def test_layers_agree(name, rng):
    shape, outputs, kernel_size, options = CASES[name]
    pair = layers(shape[-1], outputs, kernel_size, temperature=0.6, **options)
    assert_parity(*pair, rng.normal(size=shape))


@pytest.mark.slow
@settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_layers_agree_with_options_crossed(data):
    draw = data.draw
    rank, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kernel_size = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    padding = draw(st.sampled_from([1, 2]))
    pair = layers(
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel_size,
        padding=padding,
        stride=draw(st.integers(1, 2)),
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        num_experts=draw(st.integers(1, 3)),
        norm=draw(st.sampled_from(["batch", "layer", "none"])),
        min_hidden=draw(st.integers(3, 5)),
        temperature=draw(st.floats(0.5, 30)),
    )
    shape = (draw(st.integers(2, 3)), *(5, 4, 3)[:rank], pair[0].in_features)
    assert_parity(*pair, np.random.default_rng(rank).normal(size=shape))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_agree_in_narrower_dtypes(dtype, rng):
    pair = layers(16, 8, (3,), dtype, padding=1, num_experts=4)
    inputs = rng.normal(size=(4, 7, 16))
    narrow = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    assert_parity(*pair, inputs.astype(narrow))


# The equations once more


def plain_od_conv(x, state, temperature, training, stride, padding, groups=1):
    """The equations, a sample at a time, over published keys; batch norm by hand."""

    def linear(name, features):
        weight = state[f"attention.{name}.weight"].flatten(1)
        return weight @ features + state.get(f"attention.{name}.bias", 0)

    trunk = torch.stack([linear("fc", sample.flatten(1).mean(1)) for sample in x])
    mean, variance = trunk.mean(0), trunk.var(0, correction=0)
    if not training:
        mean = state["attention.bn.running_mean"]
        variance = state["attention.bn.running_var"]
    normed = (trunk - mean) / torch.sqrt(variance + 1e-5)
    normed = normed * state["attention.bn.weight"] + state["attention.bn.bias"]

    rows = []
    for sample, hidden in zip(x, normed.clamp(min=0), strict=True):

        def head(name, squash=torch.sigmoid, hidden=hidden):
            if f"attention.{name}_fc.weight" not in state:
                return torch.ones(1).to(x)
            return squash(linear(f"{name}_fc", hidden) / temperature)

        ones = (1,) * (x.ndim - 2)
        experts = state["weight"]
        taps = head("spatial").reshape(experts.shape[3:])
        weights = head("kernel", lambda logits: torch.softmax(logits, 0))
        kernel = 0
        for weight, expert in zip(weights, experts, strict=True):
            kernel = kernel + weight * taps * expert
        weighed = head("channel").reshape(-1, *ones) * sample
        convolve = getattr(F, f"conv{x.ndim - 2}d")
        y = convolve(weighed[None], kernel, None, stride, padding, 1, groups)[0]
        rows.append(head("filter").reshape(-1, *ones) * y)
    return torch.stack(rows)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["1d", *HEADS])
def test_layer_computes_the_equations(name, training):
    shape, outputs, kernel_size, options = CASES[name]
    options = {"padding": 0, "stride": 1, "groups": 1, "num_experts": 2, **options}
    if not isinstance(options["padding"], int):
        options["padding"] = 1
    layer = torch_layer(shape[-1], outputs, kernel_size, **options, temperature=1.7)
    torch.nn.init.normal_(layer.attention.bn.running_mean)
    layer.train(training)
    x = torch.randn(shape, dtype=torch.float64).movedim(-1, 1).requires_grad_()
    state = dict(layer.named_parameters())
    leaves = [x, *state.values()]
    del options["num_experts"]
    expected = plain_od_conv(
        x, {**layer.state_dict(), **state}, 1.7, training, **options
    )
    actual = layer(x)
    cotangent = torch.randn_like(actual)

    def results(outputs):
        gradients = torch.autograd.grad(outputs, leaves, cotangent)
        named = zip(("input", *state), gradients, strict=True)
        found = {"output": outputs.detach()} | {f"of {n}": g for n, g in named}
        return {name: value.numpy() for name, value in found.items()}

    # The gradient of the bias before batch norm, or of a softmax's, may be 0 exactly.
    assert_close(results(actual), results(expected), dtype="float64", floor=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_absent_heads_have_no_parameters(name):
    shape, outputs, kernel_size, options = CASES[name]
    ours, theirs = layers(shape[-1], outputs, kernel_size, **options)
    for state in (to_torch_state_dict(ours), torch_state(theirs)):
        heads = {key.split(".")[1] for key in state if "_fc." in key}
        assert heads == {f"{head}_fc" for head in HEADS[name]}
    attentions = ours.attentions(jnp.ones((2, *shape[1:])))
    twins = theirs.attentions(torch.ones(2, shape[-1], *shape[1:-1]).double())
    for found in (attentions, twins):
        present = {head for head, value in found._asdict().items() if value is not None}
        assert present == HEADS[name]


# Weights


def published(channels, outputs, kernel_size, groups, experts, hidden=16):
    """A state dict under the names and shapes of published checkpoints."""
    draw = np.random.default_rng(0)
    ones = (1,) * len(kernel_size)
    sizes = {"channel": channels}
    if not groups == channels == outputs:
        sizes["filter"] = outputs
    if (taps := int(np.prod(kernel_size))) > 1:
        sizes["spatial"] = taps
    if experts > 1:
        sizes["kernel"] = experts
    shapes = {
        "weight": (experts, outputs, channels // groups, *kernel_size),
        "attention.fc.weight": (hidden, channels, *ones),
        "attention.bn.weight": (hidden,),
        "attention.bn.bias": (hidden,),
        "attention.bn.running_mean": (hidden,),
        "attention.bn.running_var": (hidden,),
    }
    for name, size in sizes.items():
        shapes[f"attention.{name}_fc.weight"] = (size, hidden, *ones)
        shapes[f"attention.{name}_fc.bias"] = (size,)
    state = {
        key: draw.uniform(0.1, 1, shape).astype(np.float32)
        for key, shape in shapes.items()
    }
    return {**state, "attention.bn.num_batches_tracked": np.array(7)}


@pytest.mark.parametrize(
    "channels, outputs, kernel_size, groups, experts",
    [
        (6, 4, (3, 3), 2, 4),
        (6, 4, (3,), 1, 2),
        (3, 4, (1, 3, 2), 1, 1),
        (4, 4, (3, 3), 4, 2),
        (4, 4, (1, 1), 4, 1),
    ],
)
def test_published_state_dicts_come_back_bit_for_bit(
    channels, outputs, kernel_size, groups, experts
):
    state = published(channels, outputs, kernel_size, groups, experts)
    options = dict(groups=groups, num_experts=experts, temperature=3.0)
    ours, theirs = layers(channels, outputs, kernel_size, "float32", **options)
    load_torch_state_dict(ours, state)
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    theirs.load_state_dict(tensors, strict=True)
    for returned in (to_torch_state_dict(ours), torch_state(theirs)):
        assert float(returned.pop("attention.temperature")) == 3.0
        assert returned.keys() == state.keys()
        for key, value in state.items():
            assert returned[key].shape == value.shape
            assert returned[key].tobytes() == value.tobytes()


def test_layer_norm_has_keys_of_its_own_and_none_has_none():
    for norm, names in (("layer", {"ln"}), ("none", set())):
        for layer in layers(3, 4, (3,), norm=norm):
            state = (
                to_torch_state_dict(layer)
                if isinstance(layer, ODConv)
                else torch_state(layer)
            )
            found = {key.split(".")[1] for key in state if ".ln." in key}
            found |= {key.split(".")[1] for key in state if ".bn." in key}
            assert found == names


def test_parameters_are_drawn_as_published():
    ours = ODConv(
        64, 32, (3, 3), feature_group_count=2, num_experts=2, rngs=nnx.Rngs(0)
    )
    theirs = dynconv_torch.ODConv2d(64, 32, 3, num_experts=2)
    for state in (to_torch_state_dict(ours), torch_state(theirs)):
        for key, fan_out in (
            ("weight", 32 * 9),
            ("attention.channel_fc.weight", 64),
            ("attention.filter_fc.weight", 32),
            ("attention.fc.weight", 16),
        ):
            assert abs(state[key].std() / (2 / fan_out) ** 0.5 - 1) < 0.12, key
        assert not any(state[key].any() for key in state if key.endswith("fc.bias"))


def test_a_bias_starts_as_zero():
    layer = dynconv_torch.ODConv1d(3, 4, 3, bias=True)
    assert layer.bias is not None
    torch.nn.init.ones_(layer.bias)  # whatever the memory held before
    layer.reset_parameters()
    assert not layer.bias.any()


def test_trunk_has_the_width_asked_for():
    for channels, reduction, min_hidden, width in (
        (512, 16, 16, 32),
        (64, 16, 16, 16),
        (64, 2, 16, 32),
        (64, 16, 3, 4),
    ):
        ours, theirs = layers(
            channels, 4, (1,), reduction=reduction, min_hidden=min_hidden
        )
        assert ours.attention.fc.kernel.shape == (channels, width)
        assert theirs.attention.fc.weight.shape == (width, channels, 1)
    ours, theirs = layers(512, 4, (1,))
    assert ours.attention.fc.kernel.shape == (512, 32)
    assert theirs.attention.fc.weight.shape == (32, 512, 1)


# Temperature


def test_temperature_evens_every_attention_out(rng):
    ours, theirs = layers(5, 4, (3,), num_experts=2, padding=1)
    x = rng.normal(size=(3, 7, 5))
    inputs, twins = jnp.asarray(x), torch.from_numpy(x).movedim(-1, 1)
    before = ours(inputs), theirs(twins)
    set_temperature(ours, 1e14)
    dynconv_torch.set_temperature(theirs, 1e14)
    after = ours(inputs), theirs(twins)
    for old, new in zip(before, after, strict=True):
        difference = np.array(new.tolist()) - np.array(old.tolist())
        assert abs(difference).max() > 1e-3
    for each in (ours.attentions(inputs), theirs.attentions(twins)):
        even = {name: np.array(v.tolist()) for name, v in each._asdict().items()}
        halves = {name: np.full_like(value, 0.5) for name, value in even.items()}
        assert_close(even, halves, dtype="float64")


def test_casts_keep_the_temperature_in_float64():
    ours, theirs = layers(3, 4, (3,), "bfloat16", temperature=0.1)
    assert ours.attention.temperature[...].dtype == jnp.float64
    for layer in (theirs, theirs.half()):
        assert layer.attention.temperature.dtype == torch.float64
        assert float(layer.attention.temperature) == 0.1
    assert theirs.weight.dtype == torch.float16


def test_attention_is_computed_in_float32_at_least():
    layer, twin = layers(3, 4, (3,), "bfloat16", norm="layer")
    x = jax.ShapeDtypeStruct((2, 5, 3), "bfloat16")
    found = jax.eval_shape(layer.attentions, x)
    assert {each.dtype for each in found} == {jnp.dtype("float32")}
    assert jax.eval_shape(layer, x).dtype == jnp.bfloat16
    tensor = torch.randn(2, 3, 5).bfloat16()
    assert {each.dtype for each in twin.attentions(tensor)} == {torch.float32}
    assert twin(tensor).dtype == torch.bfloat16
    wide = dynconv_torch.ODConv1d(3, 4, 3).eval()
    expected = wide.attentions(tensor.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert wide(tensor.float()).dtype == torch.bfloat16
        for actual, other in zip(
            wide.attentions(tensor.float()), expected, strict=True
        ):
            assert actual is not None and other is not None
            assert torch.equal(actual, other)
