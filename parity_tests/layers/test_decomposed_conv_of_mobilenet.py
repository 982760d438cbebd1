"""The variant of DecomposedConv for MobileNetV2: its sizes, names and equations."""

from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_torch
from dynconv_jax import DecomposedConv, load_torch_state_dict, to_torch_state_dict
from dynconv_jax.layers.decomposed_conv import Sizes, decomposed_sizes
from dynconv_torch.layers.decomposed_conv import decomposed_sizes as torch_sizes
from parity_tests.layers.test_decomposed_conv import (
    layers,
    plain_decomposed_conv,
    torch_layer,
)
from parity_tests.parity import assert_parity, torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools.published_shapes import mobile_decomposed

VARIANT: dict[str, Any] = dict(variant="mobilenet_v2")


@pytest.mark.parametrize(
    ("channels", "outputs", "options", "expected"),
    [
        # Of the first and the last block that expand, and of one between, by hand.
        (16, 96, {}, Sizes(2, 64, 8, 4)),
        (32, 192, {}, Sizes(2, 128, 16, 16)),
        (320, 1280, {}, Sizes(2, 1280, 40, 100)),  # 160² > 2·1280, 80² too
        (960, 320, {}, Sizes(1, 960, 40, 100)),
        (96, 24, {}, Sizes(1, 96, 12, 9)),
        (32, 192, {"reduction": 8}, Sizes(2, 128, 16, 32)),
        (2, 3, {}, Sizes(2, 8, 4, 4)),  # both floors
        (8, 8, {"min_hidden": 1}, Sizes(1, 8, 4, 1)),
        (8, 8, {"pool": 3}, Sizes(3, 72, 4, 4)),
    ],
)
def test_sizes_are_those_of_the_rule(channels, outputs, options, expected):
    for sizes in (decomposed_sizes, torch_sizes):
        assert sizes("mobilenet_v2", channels, outputs, **options) == expected


@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (2, 5, 4, 9)], ids=["wider", "not"])
def test_layers_agree(shape, rng):
    assert_parity(*layers(shape[-1], 8, (1, 1), **VARIANT), rng.normal(size=shape))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("channels", "pool"), [(3, 2), (9, 1)])
def test_layer_computes_the_equations(channels, pool, training):
    layer = torch_layer(channels, 8, (1, 1), **VARIANT).train(training)
    x = torch.randn(2, channels, 6, 5, dtype=torch.float64)
    state = {
        key.removeprefix("conv_"): value.detach().clone()
        for key, value in layer.state_dict().items()
    }
    expected = plain_decomposed_conv(x, state, training, 1, 0, pool)
    actual = layer(x).detach().numpy()
    assert_close({"": actual}, {"": expected.numpy()}, dtype="float64")


def test_published_state_dict_comes_back_bit_for_bit(rng):
    channels, outputs = 16, 96
    shapes = {
        key.removeprefix("layer."): shape
        for key, shape in mobile_decomposed("layer", channels, outputs).items()
    }
    state = {
        key: np.array(7) if not shape else rng.random(shape).astype(np.float32)
        for key, shape in shapes.items()
    }
    ours = DecomposedConv(channels, outputs, (1, 1), **VARIANT, rngs=nnx.Rngs(0))
    theirs = dynconv_torch.DecomposedConv2d(channels, outputs, 1, **VARIANT)
    load_torch_state_dict(ours, state)
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    theirs.load_state_dict(tensors, strict=True)
    for returned in (to_torch_state_dict(ours), torch_state(theirs)):
        assert returned.keys() == state.keys()
        for key, value in state.items():
            assert returned[key].tobytes() == value.tobytes()


def test_a_variant_that_there_is_not_is_refused():
    message = r"^`variant` \(='mobilenet'\) must be one of 'resnet', 'mobilenet_v2'"
    with pytest.raises(ValueError, match=message):
        DecomposedConv(3, 4, (1, 1), variant="mobilenet", rngs=nnx.Rngs(0))  # pyright: ignore
    with pytest.raises(ValueError, match=message):
        dynconv_torch.DecomposedConv2d(3, 4, 1, variant="mobilenet")  # pyright: ignore
