"""MobileNetV2: torchvision's names, and the same network in both frameworks."""

import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from dynconv_jax import DynamicConv, models
from dynconv_jax.functional.activations import relu6
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.models.mobilenet_v2 import make_divisible
from dynconv_jax.weights.torch_layout import torch_shapes
from dynconv_torch import DynamicConv2d
from dynconv_torch import models as torch_models
from dynconv_torch.models.mobilenet_v2 import make_divisible as torch_make_divisible
from parity_tests.tools import networks

BUILD = models.mobilenet_v2, torch_models.mobilenet_v2
ROUTED = networks.RoutedConv, networks.RoutedConv2d
DYNAMIC = (
    functools.partial(DynamicConv, num_experts=2),
    functools.partial(DynamicConv2d, num_experts=2),
)
# A first block without expansion, one that strides, one with a shortcut.
FEW_STAGES = ((1, 8, 1, 1), (3, 8, 2, 2))
TWO_BLOCKS = ((1, 8, 1, 1), (3, 8, 1, 1))  # fewer programs to compile


def torch_shapes_of(net):
    return {key: tuple(value.shape) for key, value in net.state_dict().items()}


def abstract(*arguments, **options):
    return abstract_module(lambda rngs: BUILD[0](*arguments, rngs=rngs, **options))


def on_meta(*arguments, **options):
    return BUILD[1](*arguments, device="meta", **options)


# Names and shapes.


def expected_shapes(num_classes, experts=None):
    """The state dict of torchvision's network; with the experts of dynamic layers."""
    shapes = {}

    def conv(key, fan_in, fan_out, side, groups=1, is_static=False):
        shape = (fan_out, fan_in // groups, side, side)
        if experts is None or is_static:
            shapes[f"{key}.weight"] = shape
            return
        hidden = fan_in // 4
        shapes[f"{key}.weight"] = (experts, *shape)
        shapes[f"{key}.fc1.weight"] = (hidden, fan_in)
        shapes[f"{key}.fc1.bias"] = (hidden,)
        shapes[f"{key}.fc2.weight"] = (experts, hidden)
        shapes[f"{key}.fc2.bias"] = (experts,)
        shapes[f"{key}.temperature"] = ()

    def norm(key, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{key}.{part}"] = (channels,)
        shapes[f"{key}.num_batches_tracked"] = ()

    conv("features.0.0", 3, 32, 3, is_static=True)
    norm("features.0.1", 32)
    outputs = [16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320]
    width = 32
    for number, out in enumerate(outputs, start=1):
        block = f"features.{number}.conv"
        wide = width if number == 1 else 6 * width
        last = 1 if number == 1 else 2
        if number > 1:
            conv(f"{block}.0.0", width, wide, 1)
            norm(f"{block}.0.1", wide)
        conv(f"{block}.{last - 1}.0", wide, wide, 3, groups=wide)
        norm(f"{block}.{last - 1}.1", wide)
        conv(f"{block}.{last}", wide, out, 1)
        norm(f"{block}.{last + 1}", out)
        width = out
    conv("features.18.0", 320, 1280, 1)
    norm("features.18.1", 1280)
    shapes["classifier.1.weight"] = (num_classes, 1280)
    shapes["classifier.1.bias"] = (num_classes,)
    return shapes


def test_static_net_has_the_names_and_shapes_of_torchvision():
    expected = expected_shapes(1000)
    assert torch_shapes(abstract()) == expected
    assert torch_shapes_of(on_meta()) == expected


def test_dynamic_net_adds_only_the_names_of_its_layers():
    expected = expected_shapes(7, experts=2)
    assert torch_shapes(abstract(7, conv=DYNAMIC[0])) == expected
    assert torch_shapes_of(on_meta(7, conv=DYNAMIC[1])) == expected


def test_static_net_has_as_many_parameters_as_published():
    params = nnx.state(abstract(), nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 3_504_872
    assert sum(p.numel() for p in on_meta().parameters()) == 3_504_872


@pytest.mark.parametrize(
    ("width_mult", "widths"),
    [(0.35, (16, 8, 8, 112, 1280)), (0.75, (24, 16, 24, 240, 1280))]
    + [(1.4, (48, 24, 32, 448, 1792))],
)
def test_width_mult_rounds_widths_to_multiples_of_eight(width_mult, widths):
    for shapes in (
        torch_shapes(abstract(width_mult=width_mult)),
        torch_shapes_of(on_meta(width_mult=width_mult)),
    ):
        keys = "0.1", "1.conv.2", "2.conv.3", "17.conv.3", "18.1"
        assert tuple(shapes[f"features.{key}.bias"][0] for key in keys) == widths


@pytest.mark.parametrize("value", [1, 8, 11.9, 12, 17.9, 18, 33.6, 240])
def test_widths_lose_a_tenth_at_the_most(value):
    width = make_divisible(value)
    assert width % 8 == 0 and width >= max(8, 0.9 * value)
    assert width == torch_make_divisible(value)


# The same function.


def test_dynamic_net_of_two_blocks_agrees(rng):
    x = rng.normal(size=(2, 17, 20, 3))
    options: Any = dict(dropout=0.0, stages=TWO_BLOCKS, width_mult=0.4)
    networks.assert_networks_agree(
        *networks.twins(*BUILD, x, rng, 5, conv=DYNAMIC, **options), x
    )


@pytest.mark.slow
def test_routed_net_of_two_blocks_agrees(routers, rng):
    x = rng.normal(size=(2, 17, 20, 3))
    options: Any = dict(dropout=0.0, stages=TWO_BLOCKS, width_mult=0.4, dynamic="all")
    networks.assert_networks_agree(
        *networks.twins(*BUILD, x, rng, 5, conv=ROUTED, **options), x
    )


def test_relu6_and_its_gradient_are_those_of_torch():
    x = np.array([-1.0, -0.0, 0.0, 1e-9, 3.0, 5.999, 6.0, 6.001, np.nan, np.inf])
    leaf = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.relu6(leaf)
    expected.sum().backward()
    assert leaf.grad is not None
    np.testing.assert_array_equal(relu6(jnp.asarray(x)), expected.detach().numpy())
    gradient = jax.grad(lambda x: relu6(x).sum())(jnp.asarray(x))
    is_number = ~np.isnan(x)
    np.testing.assert_array_equal(
        np.asarray(gradient)[is_number], leaf.grad.numpy()[is_number]
    )


# Which layers are dynamic.


BODY = [
    *("features.1.conv.0.0", "features.1.conv.1"),
    *(f"features.{block}.conv.{part}" for block in (2, 3) for part in ("0.0", "1.0")),
    *("features.2.conv.2", "features.3.conv.2"),
]
DEPTHWISE = ["features.1.conv.0.0", "features.2.conv.1.0", "features.3.conv.1.0"]


@pytest.mark.parametrize(
    ("dynamic", "expected"),
    [
        ("paper", [*BODY, "features.4.0"]),
        ("all", ["features.0.0", *BODY, "features.4.0"]),
        ("pointwise", sorted(set(BODY) - set(DEPTHWISE))),
        (1, BODY[2:]),
        (2, BODY),
    ],
)
def test_dynamic_says_which_layers_are_dynamic(dynamic, expected):
    options = dict(dynamic=dynamic, stages=FEW_STAGES)
    for net in (
        abstract(conv=DynamicConv, **options),
        on_meta(conv=DynamicConv2d, **options),
    ):
        assert networks.dynamic_layers(net) == sorted(expected)


def test_stem_and_head_have_routers_of_their_own(routers):
    options = dict(dynamic="all", stages=FEW_STAGES)
    net = on_meta(conv=ROUTED[1], **options)
    routed = [key for key in net.state_dict() if "routing_fn.weight" in key]
    assert sorted(routed) == [
        *(f"features.{n}.routing_fn.weight" for n in (1, 2, 3)),
        *("head_routing_fn.weight", "stem_routing_fn.weight"),
    ]
    assert torch_shapes(abstract(conv=ROUTED[0], **options)) == torch_shapes_of(net)


@pytest.mark.parametrize("build", [abstract, on_meta])
@pytest.mark.parametrize("dynamic", ["stem", 0, 8])
def test_an_unknown_choice_of_layers_is_refused(build, dynamic):
    with pytest.raises(ValueError, match=r"`dynamic` \(=.*int from 1 to 7"):
        build(dynamic=dynamic)


# Initial values, options, refusals.


def test_head_begins_as_that_of_torchvision():
    ours = BUILD[0](50, stages=(), rngs=nnx.Rngs(0)).classifier.layers[1]
    theirs: Any = BUILD[1](50, stages=()).classifier[1]
    for weight, bias in (
        (np.asarray(ours.kernel[...]), np.asarray(ours.bias[...])),
        (theirs.weight.detach().numpy(), theirs.bias.detach().numpy()),
    ):
        assert abs(weight.std() / 0.01 - 1) < 0.05
        assert (bias == 0).all()


def test_dropout_acts_in_training_only(rng):
    x = rng.normal(size=(2, 1280)).astype("float32")
    head = BUILD[0](7, stages=(), dropout=0.5, rngs=nnx.Rngs(0)).classifier
    for answer, is_random in (
        (head, True),
        (nnx.view(head, deterministic=True), False),
    ):
        once, again = (np.asarray(answer(jnp.asarray(x))) for _ in range(2))
        assert (once != again).any() == is_random

    head = BUILD[1](7, stages=(), dropout=0.5).classifier
    for is_random in (True, False):
        once, again = (head.train(is_random)(torch.from_numpy(x)) for _ in range(2))
        assert torch.equal(once, again) != is_random


@pytest.mark.parametrize("build", [abstract, on_meta])
@pytest.mark.parametrize("width_mult", [0, -1.0, float("nan")])
def test_impossible_widths_are_refused(build, width_mult):
    with pytest.raises(ValueError, match="`width_mult` .*must be positive"):
        build(width_mult=width_mult)


@pytest.mark.parametrize("shape", [(16, 16, 3), (2, 16, 16, 4)])
def test_images_of_the_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"inputs.*height, width.*\(=3\)"):
        abstract(stages=())(jnp.ones(shape))
    with pytest.raises(ValueError, match=r"`x`.*in_channels.*\(=3\)"):
        on_meta(stages=())(torch.ones(shape).movedim(-1, -3))


def test_net_can_be_pickled():
    net = abstract(7, conv=DynamicConv, stages=FEW_STAGES)
    assert torch_shapes(pickle.loads(pickle.dumps(net))) == torch_shapes(net)
