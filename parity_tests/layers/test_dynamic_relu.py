"""DynamicReLU: parity, its equations once more, state, what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_torch
from dynconv_jax import DynamicReLU, GateSummary, diagnose, to_torch_state_dict
from dynconv_jax.models.abstract import abstract_module
from parity_tests.parity import assert_parity, torch_state
from parity_tests.passes import copy_weights
from parity_tests.tolerances import assert_close

CONTEXT = 5


def layers(dtype="float64", **options) -> tuple[Any, Any]:
    """The same layer of six channels in both frameworks, with lively parameters."""
    theirs = dynconv_torch.DynamicReLU(6, **options, dtype=getattr(torch, dtype))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    named: Any = {k.replace("channels", "features"): v for k, v in options.items()}
    ours = abstract_module(
        lambda rngs: DynamicReLU(6, **named, param_dtype=dtype, rngs=rngs)
    )
    copy_weights(theirs, ours)
    return ours, theirs


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 5, 4, 6), dict(context_channels=CONTEXT)),
        ((1, 7, 6), dict(context_channels=CONTEXT, num_pieces=3)),
        ((3, 4, 5, 6), dict(reduction=2)),
        ((2, 7, 6), dict(num_pieces=1)),
    ],
)
def test_layers_agree(shape, options, rng):
    given = {}
    if "context_channels" in options:
        given = {"context": rng.normal(size=(shape[0], CONTEXT))}
    assert_parity(*layers(**options), rng.normal(size=shape), **given)


def test_layers_agree_in_float32(rng):
    inputs = rng.normal(size=(2, 5, 4, 6)).astype("float32")
    context = rng.normal(size=(2, CONTEXT)).astype("float32")
    assert_parity(*layers("float32", context_channels=CONTEXT), inputs, context=context)


@pytest.mark.parametrize("count", [2, 3])
def test_layer_computes_the_equations(count):
    _, layer = layers(context_channels=CONTEXT, num_pieces=count)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    context = torch.randn(2, CONTEXT, dtype=torch.float64)
    weight, bias = layer.coef_net[0].weight, layer.coef_net[0].bias
    expected = torch.empty_like(x)
    scales = [1.0] * count + [0.5] * count
    starts = [1.0] + [0.0] * (2 * count - 1)
    for sample in range(2):
        for channel in range(6):
            rows = slice(2 * count * channel, 2 * count * (channel + 1))
            logits = weight[rows] @ context[sample] + bias[rows]
            theta = 2 / (1 + torch.exp(-logits)) - 1
            numbers = [t * s + v for t, s, v in zip(theta, scales, starts, strict=True)]
            lines = [
                numbers[piece] * x[sample, channel] + numbers[count + piece]
                for piece in range(count)
            ]
            expected[sample, channel] = torch.stack(lines).amax(0)
    actual, named = layer(x, context), {"": expected.detach().numpy()}
    assert_close({"": actual.detach().numpy()}, named, dtype="float64")


def test_without_coefficients_of_its_own_it_is_a_relu(rng):
    layer: Any = DynamicReLU(6, context_features=CONTEXT, rngs=nnx.Rngs(0))
    x = rng.normal(size=(2, 5, 4, 6)).astype("float32")
    np.testing.assert_array_equal(layer(x, np.zeros((2, CONTEXT))), np.maximum(x, 0))


def test_names_are_those_of_checkpoints():
    given = {"coef_net.0.weight": (24, CONTEXT), "coef_net.0.bias": (24,)}
    own = {"fc1.weight": (3, 6), "fc1.bias": (3,)}
    own |= {"fc2.weight": (24, 3), "fc2.bias": (24,)}
    for options, expected in (
        (dict(context_channels=CONTEXT), given),
        (dict(reduction=2), own),
    ):
        ours, theirs = layers("float32", **options)
        for state in (to_torch_state_dict(ours), torch_state(theirs)):
            assert state.pop("lambdas").tolist() == [1, 1, 0.5, 0.5]
            assert state.pop("init_v").tolist() == [1, 0, 0, 0]
            assert {key: value.shape for key, value in state.items()} == expected


def test_constants_are_no_parameters():
    layer = DynamicReLU(6, rngs=nnx.Rngs(0))
    found = {path[0] for path, _ in nnx.to_flat_state(nnx.state(layer, nnx.Param))}
    assert found == {"fc1", "fc2"}


def test_coefficients_are_gates_to_diagnose(rng):
    layer, _ = layers(reduction=2)
    found = diagnose(layer, rng.normal(size=(4, 5, 6)))["coefficients"]
    assert isinstance(found, GateSummary)
    assert found.mean.shape == (6, 4) and found.variation > 0


@pytest.mark.parametrize("options", [{}, dict(context_channels=CONTEXT)])
def test_a_context_is_given_where_there_is_room_for_one(options, rng):
    ours, theirs = layers(**options)
    given = () if options else (np.ones((2, CONTEXT)),)
    with pytest.raises(TypeError, match="`context` must be given if, and only if"):
        ours(np.ones((2, 5, 6)), *given)
    tensors = [torch.from_numpy(each) for each in given]
    with pytest.raises(TypeError, match="`context` must be given if, and only if"):
        theirs(torch.ones(2, 6, 5).double(), *tensors)


def test_what_does_not_fit_is_refused():
    ours, theirs = layers(context_channels=CONTEXT)
    with pytest.raises(ValueError, match=r"`inputs` .*`features` \(=6\)"):
        ours(np.ones((2, 5, 7)), np.ones((2, CONTEXT)))
    with pytest.raises(ValueError, match=r"`x` .*`channels` \(=6\)"):
        theirs(torch.ones(2, 7, 5).double(), torch.ones(2, CONTEXT))
    with pytest.raises(ValueError, match="`context` .*= .2, 5."):
        ours(np.ones((2, 5, 6)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="`context` .*: .2, 5."):
        theirs(torch.ones(2, 6, 5).double(), torch.ones(2, 4))
    with pytest.raises(ValueError, match="`num_pieces` .=0."):
        DynamicReLU(6, num_pieces=0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_integers_become_numbers_of_the_parameters_or_are_refused(dtype):
    ours, theirs = layers(dtype)
    images = np.arange(84, dtype=np.int32).reshape(1, 2, 7, 6)
    answer = ours(images)
    assert answer.dtype == dtype
    np.testing.assert_array_equal(answer, ours(images.astype(dtype)))
    with pytest.raises(ValueError, match="`x` .torch.int64. must be floating; cast it"):
        theirs(torch.ones(1, 6, 2, 7, dtype=torch.int64))
