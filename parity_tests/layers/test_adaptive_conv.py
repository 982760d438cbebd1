"""AdaptiveConv: parity, its equations once more, forms, state, what it refuses."""

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
    AdaptiveConv,
    ModulatedConv,
    load_torch_state_dict,
    set_temperature,
    to_torch_state_dict,
)
from parity_tests.parity import assert_parity, torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools.modules import jax_twin

STYLES = 5


def torch_layer(channels, outputs, kernel_size, dtype=torch.float64, **options):
    """A layer of PyTorch whose biases are not those of the beginning."""
    cls = getattr(dynconv_torch, f"AdaptiveConv{len(kernel_size)}d")
    options = {"style_channels": STYLES, "bias": True, **options}
    layer = cls(channels, outputs, kernel_size, **options).to(dtype)
    for name, parameter in layer.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter)
    return layer


def layers(channels, outputs, kernel_size, dtype="float64", **options):
    """The same layer in both frameworks, with the same parameters."""
    options = {"style_channels": STYLES, "bias": True, **options}
    width = getattr(torch, dtype)
    theirs = torch_layer(channels, outputs, kernel_size, width, **options)
    arguments = (channels, outputs, kernel_size)
    return jax_twin(theirs, AdaptiveConv, *arguments, dtype, **options), theirs


# name: (shape of the inputs, outputs, kernel, options)
CASES: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], dict[str, Any]]] = {
    "1d": ((3, 9, 4), 3, (3,), dict(padding=2, dilation=2, num_experts=3)),
    "2d strided, grouped": (
        (2, 7, 6, 6),
        4,
        (3, 2),
        dict(stride=2, padding=((1, 1), (0, 1)), groups=2, num_experts=3),
    ),
    "2d depthwise": ((2, 6, 7, 4), 8, (3, 3), dict(padding=1, groups=4, num_experts=2)),
    "2d pointwise": ((2, 5, 4, 5), 3, (1, 1), dict(padding=0, bias=False)),
    "3d": ((2, 4, 5, 3, 3), 2, (2, 1, 3), dict(padding=((0, 1), 0, 1), num_experts=2)),
    "batch 1": ((1, 5, 6, 3), 4, (3, 3), dict(padding=1)),
    "one expert": ((2, 5, 6, 3), 4, (3, 3), dict(padding=1, num_experts=1)),
    "not demodulated": ((2, 5, 4, 6), 3, (3, 1), dict(padding=1, demodulate=False)),
    "gain": ((2, 5, 4, 3), 2, (3, 3), dict(padding=1, gain=0.7, num_experts=2)),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_agree(name, rng):
    shape, outputs, kernel_size, options = CASES[name]
    pair = layers(shape[-1], outputs, kernel_size, temperature=0.6, **options)
    latents = rng.normal(size=(shape[0], STYLES))
    assert_parity(*pair, rng.normal(size=shape), latents=latents)


@settings(max_examples=3, deadline=None, derandomize=True)
@given(data=st.data())
def test_layers_agree_with_options_crossed(data):
    draw = data.draw
    rank, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    pair = layers(
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        tuple(draw(st.integers(1, 3)) for _ in range(rank)),
        padding=draw(st.sampled_from([1, 2])),
        stride=draw(st.integers(1, 2)),
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        num_experts=draw(st.integers(1, 3)),
        demodulate=draw(st.booleans()),
        temperature=draw(st.floats(0.5, 30)),
        implementation=draw(st.sampled_from(["auto", "fused"])),
    )
    shape = (draw(st.integers(1, 3)), *(5, 4, 3)[:rank], pair[0].in_features)
    rng = np.random.default_rng(rank)
    latents = rng.normal(size=(shape[0], STYLES))
    assert_parity(*pair, rng.normal(size=shape), latents=latents)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_agree_in_narrower_dtypes(dtype, rng):
    pair = layers(16, 8, (3,), dtype, padding=1)
    narrow = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    inputs, latents = rng.normal(size=(4, 7, 16)), rng.normal(size=(4, STYLES))
    assert_parity(*pair, inputs.astype(narrow), latents=latents.astype(narrow))


# The equations once more


def plain_adaptive_conv(x, latents, state, stride, padding, groups, options):
    """The equations, a sample and an output channel at a time."""
    experts = state["weight"]
    num_experts, outputs, width, *taps = experts.shape
    rows = []
    for sample, latent in zip(x, latents, strict=True):

        def linear(name, latent=latent):
            weight = state[f"{name}.weight"] / len(latent) ** 0.5
            return weight @ latent + state[f"{name}.bias"]

        attention = torch.ones(1).to(x)
        if num_experts > 1:
            exponentials = torch.exp(linear("attention.fc") / 0.6)
            attention = exponentials / exponentials.sum()
        style = linear("affine")
        mixed, bias = torch.zeros_like(experts[0]), torch.zeros(outputs).to(x)
        for index, weight in enumerate(attention):
            mixed = mixed + weight * experts[index]
            if "bias" in state:
                bias = bias + weight * state["bias"][index]
        kernels = []
        for index, own in enumerate(mixed):
            group = index // (outputs // groups)
            of_group = style[group * width : (group + 1) * width]
            own = own * of_group.reshape(-1, *(1,) * len(taps))
            if options.get("demodulate", True):
                own = own / torch.sqrt((own**2).sum() + 1e-8)
            elif "gain" not in options:
                own = own / (width * np.prod(taps)) ** 0.5
            kernels.append(own * options.get("gain", 1))
        convolve = getattr(F, f"conv{len(taps)}d")
        kernel = torch.stack(kernels)
        rows.append(convolve(sample[None], kernel, bias, stride, padding, 1, groups)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("name", [name for name in CASES if name != "1d"])
@pytest.mark.parametrize("implementation", ["auto", "fused"])
def test_layer_computes_the_equations(name, implementation):
    shape, outputs, kernel_size, options = CASES[name]
    options = {"temperature": 0.6, "implementation": implementation, **options}
    if not isinstance(options["padding"], int):
        options["padding"] = 1
    layer = torch_layer(shape[-1], outputs, kernel_size, **options)
    x = torch.randn(shape, dtype=torch.float64).movedim(-1, 1).requires_grad_()
    latents = torch.randn(shape[0], STYLES, dtype=torch.float64, requires_grad=True)
    state = dict(layer.named_parameters())
    leaves = [x, latents, *state.values()]
    geometry = options.get("stride", 1), options["padding"], options.get("groups", 1)
    expected = plain_adaptive_conv(x, latents, state, *geometry, options)
    actual = layer(x, latents)
    cotangent = torch.randn_like(actual)

    def results(outputs):
        gradients = torch.autograd.grad(outputs, leaves, cotangent)
        named = zip(("input", "latents", *state), gradients, strict=True)
        found = {"output": outputs.detach()} | {f"of {n}": g for n, g in named}
        return {name: value.numpy() for name, value in found.items()}

    assert_close(results(actual), results(expected), dtype="float64", floor=1e-4)


def test_one_expert_is_a_modulated_convolution(rng):
    layer, twin = layers(4, 6, (3,), padding=1, num_experts=1)
    options: dict[str, Any] = dict(padding=1, use_bias=True, param_dtype="float64")
    modulated = ModulatedConv(
        4, 6, (3,), style_features=STYLES, **options, rngs=nnx.Rngs(0)
    )
    state = to_torch_state_dict(layer)
    single = {key: value[0] for key, value in state.items() if "affine" not in key}
    load_torch_state_dict(modulated, state | single)
    inputs, latents = rng.normal(size=(2, 7, 4)), rng.normal(size=(2, STYLES))
    assert_close(
        {"": layer(inputs, latents)}, {"": modulated(inputs, latents)}, dtype="float64"
    )
    for routed in (layer.routing(latents), twin.routing(torch.from_numpy(latents))):
        assert routed.tolist() == [[1.0], [1.0]]


# State


def test_layer_is_drawn_as_a_modulated_convolution_is():
    layer = AdaptiveConv(16, 12, (3, 3), style_features=64, rngs=nnx.Rngs(0))
    twin = dynconv_torch.AdaptiveConv2d(16, 12, 3, style_channels=64)
    for state in (to_torch_state_dict(layer), torch_state(twin)):
        for key in ("weight", "affine.weight", "attention.fc.weight"):
            assert 0.85 < state[key].std() < 1.15 and abs(state[key].mean()) < 0.2
        assert (state["affine.bias"] == 1).all()
        assert (state["attention.fc.bias"] == 0).all()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_state_dicts_come_back_bit_for_bit(rank, rng):
    shapes = {
        "weight": (3, 6, 4, *(3, 2, 1)[:rank]),
        "bias": (3, 6),
        "affine.weight": (4, 5),
        "affine.bias": (4,),
        "attention.fc.weight": (3, 5),
        "attention.fc.bias": (3,),
    }
    state = {
        key: np.array(rng.random(shape), np.float32) for key, shape in shapes.items()
    }
    state["attention.temperature"] = np.array(0.7)
    ours, theirs = layers(4, 6, (3, 2, 1)[:rank], "float32", num_experts=3)
    load_torch_state_dict(ours, state)
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    theirs.load_state_dict(tensors, strict=True)
    for returned in (to_torch_state_dict(ours), torch_state(theirs)):
        assert returned.keys() == state.keys()
        for key, value in state.items():
            assert returned[key].shape == value.shape
            assert returned[key].tobytes() == value.tobytes()


def test_both_capture_the_attention_that_latents_give(rng):
    layer, twin = layers(4, 6, (3,), padding=1, num_experts=3)
    inputs, latents = rng.normal(size=(2, 7, 4)), rng.normal(size=(2, STYLES))
    for each, of_each in ((dynconv_jax, layer), (dynconv_torch, twin)):
        each.set_temperature(of_each, 0.3)
    _, ours = dynconv_jax.capture_routers(layer, inputs, latents)
    _, theirs = dynconv_torch.capture_routers(
        twin, torch.from_numpy(inputs).movedim(-1, 1), torch.from_numpy(latents)
    )
    assert ours.keys() == theirs.keys() == {"attention"}
    found, expected = ours["attention"], theirs["attention"]
    assert found.probabilities is expected.probabilities is None
    for name in ("attention", "logits"):
        value = getattr(expected, name).detach().numpy()
        assert_close({name: getattr(found, name)}, {name: value}, dtype="float64")
    routed = layer.routing(latents)
    assert_close({"": routed}, {"": found.attention}, dtype="float64")


def test_layer_takes_any_batch(rng):
    layer, twin = layers(4, 6, (3, 3), padding=1)
    inputs, latents = rng.normal(size=(2, 3, 5, 6, 4)), rng.normal(size=(2, 3, STYLES))
    outputs = layer(inputs, latents)
    assert outputs.shape == (2, 3, 5, 6, 6)
    assert layer.routing(latents).shape == (2, 3, 4)
    assert layer.styles(latents).shape == (2, 3, 4)
    single = twin(
        torch.from_numpy(inputs[1, 2]).movedim(-1, 0), torch.from_numpy(latents[1, 2])
    )
    assert_close(
        {"": single.detach().movedim(0, -1).numpy()},
        {"": outputs[1, 2]},
        dtype="float64",
    )
    assert twin.routing(torch.from_numpy(latents[1, 2])).shape == (4,)


def test_temperature_evens_the_attention_out(rng):
    layer, _ = layers(4, 6, (3,), num_experts=3)
    latents = rng.normal(size=(2, STYLES))
    set_temperature(layer, 1e6)
    found = layer.routing(latents)
    assert jnp.abs(found - 1 / 3).max() < 1e-4


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(implementation="fast"), "`implementation` .='fast'. must be one of"),
        (dict(gain=float("inf")), "`gain` .=inf. must be a finite number"),
        (dict(temperature=0.0), "`temperature` .=0.0. must be one positive"),
        (dict(style_features=0), "`style_(features|channels)` .=0. must be"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    given: dict[str, Any] = {"style_features": 5, **options}
    with pytest.raises(ValueError, match=message):
        AdaptiveConv(4, 6, (3,), **given, rngs=nnx.Rngs(0))
    given["style_channels"] = given.pop("style_features")
    with pytest.raises(ValueError, match=message):
        dynconv_torch.AdaptiveConv1d(4, 6, 3, **given)


def test_latents_that_do_not_fit_are_refused():
    layer, twin = layers(4, 6, (3,), padding=1)
    with pytest.raises(ValueError, match="`latents` .*style_features. = .2, 5."):
        layer(np.ones((2, 7, 4)), np.ones((3, 5)))
    with pytest.raises(ValueError, match="`latents` .*style_channels.*.2, 5."):
        twin(torch.ones(2, 4, 7).double(), torch.ones(3, 5))
