"""CoordinateAttention: parity, its equations once more, state, what it refuses."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dynconv_torch
from dynconv_jax import CoordinateAttention, diagnose, to_torch_state_dict
from dynconv_jax.functional.activations import hard_sigmoid, hard_swish
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.weights.torch_layout import torch_shapes
from dynconv_torch.functional.activations import (
    hard_sigmoid as torch_hard_sigmoid,
)
from parity_tests.parity import assert_parity, torch_state
from parity_tests.passes import copy_weights
from parity_tests.tolerances import assert_close


def layers(dtype="float64") -> tuple[Any, Any]:
    """The same layer of six channels in both frameworks, with lively parameters."""
    theirs = dynconv_torch.CoordinateAttention(6, dtype=getattr(torch, dtype))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    torch.nn.init.uniform_(theirs.get_buffer("bn1.running_var"), 0.5, 2)
    ours = abstract_module(
        lambda rngs: CoordinateAttention(6, param_dtype=dtype, rngs=rngs)
    )
    copy_weights(theirs, ours)
    return ours, theirs


@pytest.mark.parametrize("shape", [(2, 5, 4, 6), (1, 3, 7, 6)])
def test_layers_agree(shape, rng):
    assert_parity(*layers(), rng.normal(size=shape))


def test_layers_agree_in_float32(rng):
    assert_parity(*layers("float32"), rng.normal(size=(2, 5, 4, 6)).astype("float32"))


def test_layer_computes_the_equations():
    _, layer = layers()
    layer.eval()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    state = layer.state_dict()

    def gates(means, name):
        hidden = state["conv1.weight"][:, :, 0, 0] @ means + state["conv1.bias"]
        scale = state["bn1.weight"] / torch.sqrt(state["bn1.running_var"] + 1e-5)
        hidden = (hidden - state["bn1.running_mean"]) * scale + state["bn1.bias"]
        hidden = hidden * torch.clamp(hidden + 3, 0, 6) / 6
        logits = state[f"{name}.weight"][:, :, 0, 0] @ hidden + state[f"{name}.bias"]
        return 1 / (1 + torch.exp(-logits))

    expected = torch.empty_like(x)
    for sample in range(2):
        for row in range(5):
            of_row = gates(x[sample, :, row].mean(-1), "conv_h")
            for column in range(4):
                of_column = gates(x[sample, :, :, column].mean(-1), "conv_w")
                pixel = x[sample, :, row, column]
                expected[sample, :, row, column] = pixel * of_row * of_column
    actual = layer(x).detach().numpy()
    assert_close({"": actual}, {"": expected.numpy()}, dtype="float64")


def test_names_are_those_of_the_authors():
    ours, theirs = layers("float32")
    conv = {"weight", "bias"}
    norm = {*conv, "running_mean", "running_var", "num_batches_tracked"}
    expected = {f"{k}.{part}" for k in ("conv1", "conv_h", "conv_w") for part in conv}
    expected |= {f"bn1.{part}" for part in norm}
    shapes = torch_shapes(ours)
    assert shapes.keys() == expected
    assert shapes["conv1.weight"] == (8, 6, 1, 1)
    for key, value in torch_state(theirs).items():
        assert to_torch_state_dict(ours)[key].tobytes() == value.tobytes()


def test_gates_are_seen_by_diagnose(rng):
    found: Any = diagnose(layers()[0], rng.normal(size=(3, 5, 4, 6)))
    assert found["gate.rows"].mean.shape == (5, 1, 6)
    assert found["gate.columns"].mean.shape == (1, 4, 6)


@pytest.mark.parametrize("shape", [(2, 5, 4, 7), (2, 5, 6)])
def test_what_does_not_fit_is_refused(shape):
    ours, theirs = layers()
    with pytest.raises(ValueError, match="`inputs` .* with 6 features"):
        ours(np.ones(shape))
    with pytest.raises(ValueError, match="`x` .* with 6 channels"):
        theirs(torch.ones(shape).movedim(-1, 1).double())


@pytest.mark.parametrize(
    ("ours", "theirs"), [(hard_sigmoid, torch_hard_sigmoid), (hard_swish, F.hardswish)]
)
def test_hard_functions_and_their_gradients_are_those_of_torch(ours, theirs):
    x = np.array([-5.0, -3.0, -2.9, -1.0, 0.0, 1.5, 2.9, 3.0, 7.0])
    leaf = torch.tensor(x, requires_grad=True)
    expected = theirs(leaf)
    expected.sum().backward()
    assert leaf.grad is not None
    gradient = jax.grad(lambda x: ours(x).sum())(x)
    assert_close(
        {"value": ours(x), "gradient": gradient},
        {"value": expected.detach().numpy(), "gradient": leaf.grad.numpy()},
        dtype="float64",
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_integers_become_numbers_of_the_parameters_or_are_refused(dtype):
    ours, theirs = layers(dtype)
    images = np.arange(84, dtype=np.int32).reshape(1, 2, 7, 6)
    answer = ours(images)
    assert answer.dtype == dtype
    np.testing.assert_array_equal(answer, ours(images.astype(dtype)))
    pixels = torch.ones(1, 6, 2, 7, dtype=torch.int64)
    with pytest.raises(ValueError, match="`x` .torch.int64. must be floating; cast it"):
        theirs(pixels)
    with pytest.raises(ValueError, match="must be floating"):
        theirs.gate(pixels, pixels, pixels)
