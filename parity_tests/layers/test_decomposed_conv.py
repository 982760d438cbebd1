"""DecomposedConv: parity, its equations once more, weights."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import dynconv_torch
from dynconv_jax import DecomposedConv, load_torch_state_dict, to_torch_state_dict
from parity_tests.parity import assert_parity, torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools.modules import jax_twin


def torch_layer(channels, outputs, kernel_size, dtype=torch.float64, **options):
    """A layer of PyTorch whose norms are not those of the beginning."""
    cls = getattr(dynconv_torch, f"DecomposedConv{len(kernel_size)}d")
    layer = cls(channels, outputs, kernel_size, **options).to(dtype)
    for norm in (layer.bn1, layer.bn2):
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            torch.nn.init.normal_(tensor)
    return layer


def layers(channels, outputs, kernel_size, dtype="float64", **options):
    """The same layer in both frameworks, with the same parameters."""
    width = getattr(torch, dtype)
    theirs = torch_layer(channels, outputs, kernel_size, width, **options)
    arguments = (channels, outputs, kernel_size)
    return jax_twin(theirs, DecomposedConv, *arguments, dtype, **options), theirs


# name: (shape of the inputs, outputs, kernel, options)
CASES: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], dict[str, Any]]] = {
    "1d dilated": ((3, 9, 5), 4, (3,), dict(padding=2, dilation=2)),
    "1d even": ((2, 8, 5), 3, (4,), dict(padding=((1, 2),), stride=2)),
    "2d": ((2, 7, 6, 5), 4, (3, 3), dict(padding=1, pool=2)),
    "2d strided, grouped": (
        (2, 6, 7, 6),
        4,
        (3, 5),
        dict(padding=(1, 2), stride=2, groups=2, pool=2),
    ),
    "2d pointwise": ((2, 5, 4, 9), 4, (1, 1), dict(stride=2)),
    "3d": ((2, 4, 3, 5, 3), 2, (3, 1, 3), dict(padding=(1, 0, 1))),
    "one pixel": ((3, 1, 1, 5), 4, (3, 3), dict(padding=1)),
    "batch 1": ((1, 5, 6, 3), 4, (3, 3), dict(padding=1)),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_agree(name, rng):
    shape, outputs, kernel_size, options = CASES[name]
    pair = layers(shape[-1], outputs, kernel_size, **options)
    assert_parity(*pair, rng.normal(size=shape))


@pytest.mark.slow
@settings(max_examples=3, deadline=None, derandomize=True)
@given(data=st.data())
def test_layers_agree_with_options_crossed(data):
    draw = data.draw
    rank, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kernel_size = tuple(draw(st.sampled_from([1, 3])) for _ in range(rank))
    dilation = draw(st.integers(1, 2))
    pair = layers(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        kernel_size,
        padding=tuple((size - 1) // 2 * dilation for size in kernel_size),
        stride=draw(st.integers(1, 2)),
        dilation=dilation,
        groups=groups,
        pool=draw(st.integers(1, 3)),
        reduction=draw(st.integers(1, 4)),
        min_hidden=draw(st.integers(2, 5)),
    )
    sizes = (draw(st.integers(1, 5)) for _ in range(rank))
    shape = (3, *sizes, pair[0].geometry.in_features)
    assert_parity(*pair, np.random.default_rng(rank).normal(size=shape))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_agree_in_narrower_dtypes(dtype, rng):
    # One latent channel: a wider one divides rounding by what little varies in it.
    pair = layers(6, 4, (3,), dtype, padding=1)
    inputs = rng.normal(size=(4, 9, 6))
    narrow = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    assert_parity(*pair, inputs.astype(narrow))


# The equations once more


def plain_decomposed_conv(x, state, training, stride, padding, pool, groups=1):
    """The equations, a sample at a time, over published keys; batch norm by hand."""

    def gate(logits):
        return (logits + 3).clamp(0, 6) / 3

    def norm(name, samples):
        """Over a list of (L, pixels), all of the same size."""
        together = torch.stack(samples)
        mean = state[f"{name}.running_mean"]
        variance = state[f"{name}.running_var"]
        if training:
            mean = together.mean((0, 2))
            variance = together.var((0, 2), correction=0)
        normed = (together - mean[:, None]) / torch.sqrt(variance + 1e-5)[:, None]
        return (
            normed * state[f"{name}.weight"][:, None] + state[f"{name}.bias"][:, None]
        )

    def pooled(sample):
        """The mean of each quarter, or of all, channel by channel."""
        height, width = sample.shape[1:]
        if pool == 1:
            return sample.mean((1, 2))
        halves = [
            (slice(0, -(-size // 2)), slice(size // 2, None))
            for size in (height, width)
        ]
        return torch.stack(
            [
                channel[rows, columns].mean()
                for channel in sample
                for rows in halves[0]
                for columns in halves[1]
            ]
        )

    matrices = {
        name: value.flatten(1)
        for name, value in state.items()
        if "weight" in name and value.ndim > 1
    }
    steps = slice(None, None, stride)
    latents = [
        matrices["q.weight"] @ sample[:, steps, steps].flatten(1) for sample in x
    ]
    latents = norm("bn1", latents)
    size = len(latents[0])
    scales, mixed = [], []
    for sample, latent in zip(x, latents, strict=True):
        squeezed = matrices["fc.0.weight"] @ pooled(sample)
        squeezed = squeezed * gate(matrices["fc.1.fc.0.weight"] @ squeezed)
        scales.append(gate(matrices["fc_scale.weight"] @ squeezed))
        phi = (matrices["fc_phi.weight"] @ squeezed).reshape(size, size)
        mixed.append(phi @ latent)
    rows = []
    for sample, scale, latent, other in zip(
        x, scales, latents, norm("bn2", mixed), strict=True
    ):
        static = F.conv2d(
            sample[None], state["conv.weight"], None, stride, padding, 1, groups
        )[0]
        dynamic = matrices["p.weight"] @ (other + latent)
        rows.append(scale[:, None, None] * static + dynamic.reshape(static.shape))
    return torch.stack(rows)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["2d", "2d strided, grouped", "2d pointwise"])
def test_layer_computes_the_equations(name, training):
    shape, outputs, kernel_size, options = CASES[name]
    layer = torch_layer(shape[-1], outputs, kernel_size, **options).train(training)
    x = torch.randn(shape, dtype=torch.float64).movedim(-1, 1).requires_grad_()
    state = dict(layer.named_parameters())
    leaves = [x, *state.values()]
    buffers = {key: value.clone() for key, value in layer.named_buffers()}
    options = {"padding": 0, "stride": 1, "pool": 1, **options}
    expected = plain_decomposed_conv(x, {**buffers, **state}, training, **options)
    actual = layer(x)
    cotangent = torch.randn_like(actual)

    def results(outputs):
        gradients = torch.autograd.grad(outputs, leaves, cotangent)
        named = zip(("input", *state), gradients, strict=True)
        found = {"output": outputs.detach()} | {f"of {n}": g for n, g in named}
        return {name: value.numpy() for name, value in found.items()}

    assert_close(results(actual), results(expected), dtype="float64", floor=1e-4)


# Weights


def shapes(channels, outputs, kernel_size, groups, pooled, latent, hidden):
    """The shapes of a published state dict by key."""
    ones = (1,) * len(kernel_size)
    norm = ("weight", "bias", "running_mean", "running_var")
    return {
        "conv.weight": (outputs, channels // groups, *kernel_size),
        "q.weight": (latent, channels, *ones),
        "p.weight": (outputs, latent, *ones),
        **{f"bn1.{name}": (latent,) for name in norm},
        "bn1.num_batches_tracked": (),
        **{f"bn2.{name}": (latent,) for name in norm},
        "bn2.num_batches_tracked": (),
        "fc.0.weight": (hidden, pooled),
        "fc.1.fc.0.weight": (hidden, hidden),
        "fc_phi.weight": (latent**2, hidden),
        "fc_scale.weight": (outputs, hidden),
    }


@pytest.mark.parametrize(
    "arguments, sizes",
    [
        (dict(channels=64, outputs=32, kernel_size=(1, 1)), (64, 8, 4)),
        (dict(channels=80, outputs=6, kernel_size=(1, 1), groups=2), (80, 8, 5)),
        (
            dict(channels=24, outputs=4, kernel_size=(3, 3), padding=1, pool=2),
            (96, 9, 6),
        ),
        (dict(channels=3, outputs=4, kernel_size=(3,), padding=1, pool=2), (6, 2, 4)),
        (dict(channels=24, outputs=4, kernel_size=(3, 3, 3), padding=1), (24, 4, 4)),
    ],
)
def test_published_state_dicts_come_back_bit_for_bit(arguments, sizes, rng):
    expected = shapes(
        arguments["channels"],
        arguments["outputs"],
        arguments["kernel_size"],
        arguments.get("groups", 1),
        *sizes,
    )
    state = {
        key: np.array(7) if not shape else rng.random(shape).astype(np.float32)
        for key, shape in expected.items()
    }
    ours, theirs = layers(dtype="float32", **arguments)
    load_torch_state_dict(ours, state)
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    theirs.load_state_dict(tensors, strict=True)
    for returned in (to_torch_state_dict(ours), torch_state(theirs)):
        assert returned.keys() == state.keys()
        for key, value in state.items():
            assert returned[key].shape == value.shape
            assert returned[key].tobytes() == value.tobytes()


def test_parameters_are_drawn_as_pytorch_draws_them():
    layer = DecomposedConv(16, 32, (3, 3), pool=2, rngs=nnx.Rngs(0))
    twin = dynconv_torch.DecomposedConv2d(16, 32, 3, padding=1, pool=2)
    for state in (to_torch_state_dict(layer), torch_state(twin)):
        for key, fan_in in (("conv.weight", 144), ("p.weight", 8), ("fc.0.weight", 64)):
            bound = fan_in**-0.5
            assert 0.9 * bound < abs(state[key]).max() <= bound * (1 + 1e-6), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_images_of_another_dtype_are_refused_as_by_other_layers(dtype):
    layer = torch_layer(4, 8, (3, 3), padding=1)
    with pytest.raises(
        ValueError, match=r"`x` \(torch.* and `weight` \(torch.float64\)"
    ):
        layer(torch.ones(2, 4, 9, 7).to(dtype))
