"""ModulatedConv: parity, its equations once more, forms, weights, what it refuses."""

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

import dynconv_torch
from dynconv_jax import (
    ModulatedConv,
    load_torch_state_dict,
    to_torch_state_dict,
)
from parity_tests.parity import assert_parity, torch_state
from parity_tests.passes import as_numpy
from parity_tests.tolerances import assert_close
from parity_tests.tools.modules import jax_twin

STYLES = 5


def torch_layer(channels, outputs, kernel_size, dtype=torch.float64, **options):
    """A layer of PyTorch whose biases and magnitude are not those of the beginning."""
    cls = getattr(dynconv_torch, f"ModulatedConv{len(kernel_size)}d")
    options = {"style_channels": STYLES, "bias": True, **options}
    layer = cls(channels, outputs, kernel_size, **options).to(dtype)
    with torch.no_grad():
        for name, value in layer.state_dict().items():
            if "bias" in name:
                value.normal_()
            elif name == "magnitude_ema":
                value.fill_(2.5)
    return layer


def layers(channels, outputs, kernel_size, dtype="float64", **options):
    """The same layer in both frameworks, with the same parameters."""
    options = {"style_channels": STYLES, "bias": True, **options}
    width = getattr(torch, dtype)
    theirs = torch_layer(channels, outputs, kernel_size, width, **options)
    arguments = (channels, outputs, kernel_size)
    return jax_twin(theirs, ModulatedConv, *arguments, dtype, **options), theirs


# name: (shape of the inputs, outputs, kernel, options)
CASES: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], dict[str, Any]]] = {
    "1d": ((3, 9, 4), 3, (3,), dict(padding=2, dilation=2)),
    "2d strided, grouped": (
        (2, 7, 6, 6),
        4,
        (3, 2),
        dict(stride=2, padding=((1, 1), (0, 1)), groups=2),
    ),
    "2d depthwise": ((2, 6, 7, 4), 8, (3, 3), dict(padding=1, groups=4)),
    "3d": ((2, 4, 5, 3, 3), 2, (2, 1, 3), dict(padding=((0, 1), 0, 1))),
    "batch 1, no bias": ((1, 5, 6, 3), 4, (3, 3), dict(padding=1, bias=False)),
    "to an image": ((2, 5, 4, 6), 3, (1, 1), dict(demodulate=False)),
    "gain": ((2, 5, 4, 3), 2, (3, 3), dict(padding=1, gain=0.7)),
    "normalised": (
        (2, 5, 6, 4),
        2,
        (3, 3),
        dict(padding=1, pre_normalize=True, groups=2),
    ),
    "magnitude": ((2, 5, 4, 3), 2, (3, 3), dict(padding=1, magnitude_momentum=0.9)),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_agree(name, rng):
    shape, outputs, kernel_size, options = CASES[name]
    pair = layers(shape[-1], outputs, kernel_size, **options)
    latents = rng.normal(size=(shape[0], STYLES))
    assert_parity(*pair, rng.normal(size=shape), latents=latents)


@pytest.mark.slow
@settings(max_examples=3, deadline=None, derandomize=True)
@given(data=st.data())
def test_layers_agree_with_options_crossed(data):
    draw = data.draw
    rank, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    demodulate = draw(st.booleans())
    pair = layers(
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        tuple(draw(st.integers(1, 3)) for _ in range(rank)),
        padding=draw(st.sampled_from([1, 2])),
        stride=draw(st.integers(1, 2)),
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        demodulate=demodulate,
        pre_normalize=demodulate and draw(st.booleans()),
        magnitude_momentum=draw(st.sampled_from([None, 0.5])),
        implementation=draw(st.sampled_from(["scaled", "fused"])),
    )
    shape = (draw(st.integers(1, 3)), *(5, 4, 3)[:rank], pair[0].in_features)
    rng = np.random.default_rng(rank)
    latents = rng.normal(size=(shape[0], STYLES))
    assert_parity(*pair, rng.normal(size=shape), latents=latents)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_agree_in_narrower_dtypes(dtype, rng):
    pair = layers(16, 8, (3,), dtype, padding=1, magnitude_momentum=0.5)
    narrow = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    inputs, latents = rng.normal(size=(4, 7, 16)), rng.normal(size=(4, STYLES))
    assert_parity(*pair, inputs.astype(narrow), latents=latents.astype(narrow))


# The equations once more


def plain_modulated_conv(x, latents, state, stride, padding, groups, options):
    """The equations, a sample and an output channel at a time."""
    weight = state["weight"]
    outputs, width, *taps = weight.shape
    magnitude = state.get("magnitude_ema", 1)
    if "magnitude_momentum" in options:
        share = options["magnitude_momentum"]
        magnitude = share * magnitude + (1 - share) * (x.detach() ** 2).mean()
    rows = []
    for sample, latent in zip(x, latents, strict=True):
        scaled = state["affine.weight"] / latents.shape[1] ** 0.5
        style = scaled @ latent + state["affine.bias"]
        if options.get("pre_normalize"):
            style = style / torch.sqrt((style**2).mean() + 1e-8)
        kernels = []
        for index, own in enumerate(weight):
            if options.get("pre_normalize"):
                own = own / torch.sqrt((own**2).mean() + 1e-8)
            group = index // (outputs // groups)
            of_group = style[group * width : (group + 1) * width]
            own = own * of_group.reshape(-1, *(1,) * len(taps))
            if options.get("demodulate", True):
                own = own / torch.sqrt((own**2).sum() + 1e-8)
            elif "gain" not in options:
                own = own / (width * np.prod(taps)) ** 0.5
            kernels.append(own * options.get("gain", 1) / magnitude**0.5)
        convolve = getattr(F, f"conv{len(taps)}d")
        kernel, bias = torch.stack(kernels), state.get("bias")
        rows.append(convolve(sample[None], kernel, bias, stride, padding, 1, groups)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("name", [name for name in CASES if name != "1d"])
@pytest.mark.parametrize("implementation", ["scaled", "fused"])
def test_layer_computes_the_equations(name, implementation):
    shape, outputs, kernel_size, options = CASES[name]
    options = {**options, "padding": options.get("padding", 0)}
    if not isinstance(options["padding"], int):
        options["padding"] = 1
    layer = torch_layer(
        shape[-1], outputs, kernel_size, implementation=implementation, **options
    )
    x = torch.randn(shape, dtype=torch.float64).movedim(-1, 1).requires_grad_()
    latents = torch.randn(shape[0], STYLES, dtype=torch.float64, requires_grad=True)
    state = dict(layer.named_parameters())
    leaves = [x, latents, *state.values()]
    buffers = {key: value.clone() for key, value in layer.named_buffers()}
    expected = plain_modulated_conv(
        x,
        latents,
        {**buffers, **state},
        options.get("stride", 1),
        options["padding"],
        options.get("groups", 1),
        options,
    )
    actual = layer(x, latents)
    cotangent = torch.randn_like(actual)

    def results(outputs):
        gradients = torch.autograd.grad(outputs, leaves, cotangent)
        named = zip(("input", "latents", *state), gradients, strict=True)
        found = {"output": outputs.detach()} | {f"of {n}": g for n, g in named}
        return {name: value.numpy() for name, value in found.items()}

    assert_close(results(actual), results(expected), dtype="float64", floor=1e-4)


def test_fused_form_of_jax_computes_the_same(rng):
    shape, outputs, kernel_size, options = CASES["normalised"]
    layer, _ = layers(shape[-1], outputs, kernel_size, **options)
    inputs = jnp.asarray(rng.normal(size=shape))
    latents = jnp.asarray(rng.normal(size=(shape[0], STYLES)))
    expected = layer(inputs, latents)
    layer.implementation = "fused"
    assert_close({"": layer(inputs, latents)}, {"": expected}, dtype="float64")


# State


def test_layer_is_drawn_as_published():
    layer = ModulatedConv(32, 16, (3, 3), style_features=64, rngs=nnx.Rngs(0))
    twin = dynconv_torch.ModulatedConv2d(32, 16, 3, style_channels=64)
    for state in (to_torch_state_dict(layer), torch_state(twin)):
        assert state.keys() == {"weight", "affine.weight", "affine.bias"}
        for key in ("weight", "affine.weight"):
            assert 0.9 < state[key].std() < 1.1 and abs(state[key].mean()) < 0.1
        assert (state["affine.bias"] == 1).all()
    rgb: dict[str, Any] = dict(style_features=8, demodulate=False)
    assert ModulatedConv(32, 3, (1, 1), **rgb, rngs=nnx.Rngs(0)).gain == 32**-0.5


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_published_state_dicts_come_back_bit_for_bit(rank, rng):
    shapes = {
        "weight": (6, 4, *(3, 2, 1)[:rank]),
        "bias": (6,),
        "affine.weight": (4, 5),
        "affine.bias": (4,),
        "magnitude_ema": (),
    }
    state = {
        key: np.array(rng.random(shape), np.float32) for key, shape in shapes.items()
    }
    arguments = (4, 6, (3, 2, 1)[:rank], "float32")
    ours, theirs = layers(*arguments, magnitude_momentum=0.999)
    load_torch_state_dict(ours, state)
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    theirs.load_state_dict(tensors, strict=True)
    for returned in (to_torch_state_dict(ours), torch_state(theirs)):
        assert returned.keys() == state.keys()
        for key, value in state.items():
            assert returned[key].shape == value.shape
            assert returned[key].tobytes() == value.tobytes()


def test_magnitude_moves_in_training_alone(rng):
    options: dict[str, Any] = dict(style_features=5, magnitude_momentum=0.9)
    layer = ModulatedConv(4, 6, (3,), **options, rngs=nnx.Rngs(0))
    inputs = jnp.asarray(rng.normal(size=(3, 7, 4)), jnp.float32)
    latents = jnp.ones((3, 5))
    layer.eval()
    layer(inputs, latents)
    layer(inputs[:0], latents[:0])
    assert layer.magnitude_ema[...] == 1
    layer.train()
    layer(inputs, latents)
    expected = 0.9 + 0.1 * np.square(inputs).mean()
    assert_close({"": layer.magnitude_ema[...]}, {"": expected}, dtype="float32")


def test_layer_takes_any_batch(rng):
    layer, twin = layers(4, 6, (3, 3), padding=1)
    inputs, latents = rng.normal(size=(2, 3, 5, 6, 4)), rng.normal(size=(2, 3, STYLES))
    outputs = layer(inputs, latents)
    assert outputs.shape == (2, 3, 5, 6, 6)
    single = twin(
        torch.from_numpy(inputs[1, 2]).movedim(-1, 0), torch.from_numpy(latents[1, 2])
    )
    for found in (layer(inputs[1, 2], latents[1, 2]), as_numpy(single.movedim(0, -1))):
        assert_close({"": found}, {"": outputs[1, 2]}, dtype="float64")
    assert layer.styles(latents).shape == (2, 3, 4)
    assert twin.styles(torch.from_numpy(latents[1, 2])).shape == (4,)


def test_styles_are_wide_in_narrow_layers():
    layer = ModulatedConv(
        4, 6, (3,), style_features=5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    inputs, latents = jnp.ones((2, 7, 4), jnp.bfloat16), jnp.ones((2, 5), jnp.bfloat16)
    assert layer.styles(latents).dtype == jnp.float32
    assert layer(inputs, latents).dtype == jnp.bfloat16


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(implementation="vmap"),
            "`implementation` .='vmap'. must be one of 'auto",
        ),
        (
            dict(demodulate=False, pre_normalize=True),
            "`pre_normalize`.*demodulate=True",
        ),
        (dict(gain=float("nan")), "`gain` .=nan. must be a finite number"),
        (
            dict(magnitude_momentum=1.0),
            r"`magnitude_momentum` .=1.0. must be in \[0, 1",
        ),
        (dict(style_features=0), "`style_(features|channels)` .=0. must be"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    given: dict[str, Any] = {"style_features": 5, **options}
    with pytest.raises(ValueError, match=message):
        ModulatedConv(4, 6, (3,), **given, rngs=nnx.Rngs(0))
    given["style_channels"] = given.pop("style_features")
    with pytest.raises(ValueError, match=message):
        dynconv_torch.ModulatedConv1d(4, 6, 3, **given)


def test_latents_that_do_not_fit_are_refused():
    layer, twin = layers(4, 6, (3,), padding=1)
    with pytest.raises(ValueError, match="`latents` .*style_features. = .2, 5."):
        layer(np.ones((2, 7, 4)), np.ones((3, 5)))
    with pytest.raises(ValueError, match="`latents` .*style_channels.*.2, 5."):
        twin(torch.ones(2, 4, 7).double(), torch.ones(3, 5))
    with pytest.raises(TypeError, match="`latents` .=None. must be an array"):
        layer(np.ones((2, 7, 4)), None)
