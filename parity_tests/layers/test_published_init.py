"""Initial values as the authors drew them: measured deviations, in both packages."""

from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax import to_torch_state_dict
from parity_tests.parity import torch_state

INITS = "default", "published"
NORMAL, UNIFORM = "normal", "uniform"


def both(name, *arguments, **options):
    """The initial state of a layer of either package, by PyTorch key."""
    torch.manual_seed(0)
    channels, outputs, side = arguments
    padding = {} if name == "ModulatedConv" else {"padding": side // 2}
    ours = getattr(dynconv_jax, name)(
        channels, outputs, (side, side), **padding, **options, rngs=nnx.Rngs(0)
    )
    renamed = {"style_features": "style_channels"}
    theirs = getattr(dynconv_torch, f"{name}2d")(
        channels,
        outputs,
        side,
        **padding,
        **{renamed.get(key, key): value for key, value in options.items()},
    )
    return to_torch_state_dict(ours), torch_state(theirs)


def assert_drawn(value, deviation, shape):
    """Checks mean and deviation of what was drawn, and whether it is bounded."""
    many = 5 / value.size**0.5
    assert abs(value.mean()) < many * deviation
    assert abs(value.std() / deviation - 1) < many + 0.01
    largest = abs(value).max() / deviation
    bound = 3**0.5  # of a uniform distribution, over its deviation
    assert (largest < 1.01 * bound) == (shape == UNIFORM)


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        # 3×3, 256 to 256 channels, in a basic block, where L is 32.
        ("default", {"conv": 0.0120, "q": 0.0361, "p": 0.102}),
        ("published", {"conv": 0.0295, "q": 0.250, "p": 0.0884}),
    ],
)
def test_decomposed_convolutions(init, expected):
    shape = NORMAL if init == "published" else UNIFORM
    for state in both("DecomposedConv", 256, 256, 3, pool=2, init=init):
        for name, deviation in expected.items():
            assert_drawn(state[f"{name}.weight"], deviation, shape)
        # The authors leave linear layers as PyTorch draws them.
        assert_drawn(state["fc.0.weight"], (3 * 1024) ** -0.5, UNIFORM)
        assert_drawn(state["fc_phi.weight"], (3 * 64) ** -0.5, UNIFORM)


def test_linear_layers_of_mobilenet_v2_are_drawn_as_its_authors_do():
    options: dict[str, Any] = dict(variant="mobilenet_v2", init="published")
    for state in both("DecomposedConv", 96, 576, 1, **options):
        for name in ("fc.0", "fc.1.fc.0", "fc_phi", "fc_scale"):
            assert_drawn(state[f"{name}.weight"], 0.01, NORMAL)
        assert_drawn(state["conv.weight"], (2 / 576) ** 0.5, NORMAL)


@pytest.mark.parametrize(
    ("init", "weight", "fc1", "fc2"),
    [("default", 0.0200, 0.0722, 0.140), ("published", 0.0589, 0.343, 0.707)],
)
def test_experts_and_routers_of_chen(init, weight, fc1, fc2):
    # 3×3, 64 to 64 channels, with the port's 17 hidden units.
    options = dynconv_jax.chen_options(64)
    theirs = dynconv_torch.chen_options(64)
    torch.manual_seed(0)
    states = (
        to_torch_state_dict(
            dynconv_jax.DynamicConv(
                64, 64, (3, 3), init=init, **options, rngs=nnx.Rngs(0)
            )
        ),
        torch_state(dynconv_torch.DynamicConv2d(64, 64, 3, init=init, **theirs)),
    )
    for state in states:
        shape = UNIFORM if init == "published" else NORMAL
        for expert in state["weight"]:  # each by its own fan
            assert_drawn(expert, weight, shape)
        shape = NORMAL if init == "published" else UNIFORM
        assert_drawn(state["fc1.weight"], fc1, shape)
        assert abs(state["fc2.weight"].std() / fc2 - 1) < 0.4  # of 68 values
        assert (abs(state["fc2.bias"]).max() == 0) == (init == "published")


@pytest.mark.parametrize("groups", [1, 4])
def test_fans_are_those_of_one_group_in_and_of_all_out(groups):
    torch.manual_seed(0)
    options: dict[str, Any] = dict(init="published")
    arguments = 32, 64
    ours = [
        layer(
            *arguments, (3, 3), feature_group_count=groups, **options, rngs=nnx.Rngs(0)
        )
        for layer in (dynconv_jax.DynamicConv, dynconv_jax.DecomposedConv)
    ]
    theirs = [
        layer(*arguments, 3, padding=1, groups=groups, **options)
        for layer in (dynconv_torch.DynamicConv2d, dynconv_torch.DecomposedConv2d)
    ]
    for states in (map(to_torch_state_dict, ours), map(torch_state, theirs)):
        experts, decomposed = states
        fan_in = 9 * 32 // groups
        assert_drawn(experts["weight"], (2 / fan_in) ** 0.5, UNIFORM)
        assert_drawn(decomposed["conv.weight"], (2 / (9 * 64)) ** 0.5, NORMAL)


@pytest.mark.parametrize(
    ("name", "options"),
    [("CondConv", {}), ("ODConv", {}), ("ModulatedConv", {"style_features": 5})],
)
def test_members_that_are_drawn_as_published_take_the_word(name, options):
    drawn = [both(name, 4, 6, 3, init=init, **options) for init in INITS]
    for default, published in zip(*drawn, strict=True):
        for key, value in default.items():
            np.testing.assert_array_equal(value, published[key])


@pytest.mark.parametrize(
    "name", ["CondConv", "DecomposedConv", "DynamicConv", "ModulatedConv", "ODConv"]
)
def test_another_word_is_refused(name):
    message = r"^`init` \(='paper'\) must be one of 'default', 'published'"
    options: dict[str, Any] = {"style_features": 5} if name == "ModulatedConv" else {}
    with pytest.raises(ValueError, match=message):
        both(name, 4, 6, 3, init="paper", **options)
    twin = getattr(dynconv_torch, f"{name}2d")
    options: dict[str, Any] = {"style_channels": 5} if name == "ModulatedConv" else {}
    with pytest.raises(ValueError, match=message):
        twin(4, 6, 3, padding=1, init="paper", **options)


def test_an_initialiser_of_ones_own_wins():
    ones = nnx.initializers.ones_init()
    options: dict[str, Any] = dict(init="published", kernel_init=ones, rngs=nnx.Rngs(0))
    assert (dynconv_jax.DynamicConv(4, 6, (1, 1), **options).kernel[...] == 1).all()
    layer = dynconv_jax.DecomposedConv(4, 6, (1, 1), **options)
    assert (layer.conv.kernel[...] == 1).all() and (layer.q.kernel[...] == 1).all()
