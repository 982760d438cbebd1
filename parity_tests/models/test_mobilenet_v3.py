"""MobileNetV3: torchvision's names, its equations, and the same in both frameworks."""

import functools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

import dynconv_torch
from dynconv_jax import (
    DynamicConv,
    MobileNetV3,
    count_parameters,
    init_from_static,
    load_torch_state_dict,
    to_torch_state_dict,
)
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.weights.torch_layout import torch_shapes
from dynconv_torch import DynamicConv2d
from parity_tests.parity import as_torch, torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools import networks
from parity_tests.tools.networks import abstract, on_meta, shapes_of

BUILD = MobileNetV3, dynconv_torch.MobileNetV3
ROUTED = networks.RoutedConv, networks.RoutedConv2d
DYNAMIC = (
    functools.partial(DynamicConv, num_experts=2),
    functools.partial(DynamicConv2d, num_experts=2),
)
# One without the first convolution, with a shortcut; one that widens and strides.
TWO_BLOCKS = ((3, 16, 16, 1, False, True), (5, 40, 24, 2, True, True))
NARROW: dict[str, Any] = dict(blocks=TWO_BLOCKS, width_mult=0.5, dropout=0.0)


# Names, shapes and counts.

# Side, expanded channels, output channels, squeeze-and-excitation units or 0.
LARGE = [
    *((3, 16, 16, 0), (3, 64, 24, 0), (3, 72, 24, 0), (5, 72, 40, 24)),
    *((5, 120, 40, 32), (5, 120, 40, 32), (3, 240, 80, 0), (3, 200, 80, 0)),
    *((3, 184, 80, 0), (3, 184, 80, 0), (3, 480, 112, 120), (3, 672, 112, 168)),
    *((5, 672, 160, 168), (5, 960, 160, 240), (5, 960, 160, 240)),
]
SMALL = [
    *((3, 16, 16, 8), (3, 72, 24, 0), (3, 88, 24, 0), (5, 96, 40, 24)),
    *((5, 240, 40, 64), (5, 240, 40, 64), (5, 120, 48, 32), (5, 144, 48, 40)),
    *((5, 288, 96, 72), (5, 576, 96, 144), (5, 576, 96, 144)),
]


def published_shapes(table, hidden, num_classes=1000):
    """The state dict of torchvision's network, written from the list of its keys."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(key, width, outputs, side):
        shapes[f"{key}.0.weight"] = (outputs, width, side, side)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{key}.1.{part}"] = (outputs,)
        shapes[f"{key}.1.num_batches_tracked"] = ()

    def biased(key, width, outputs, *ones):
        shapes[f"{key}.weight"] = (outputs, width, *ones)
        shapes[f"{key}.bias"] = (outputs,)

    conv("features.0", 3, 16, 3)
    width = 16
    for number, (side, wide, out, units) in enumerate(table, start=1):
        block, index = f"features.{number}.block", 0
        if wide != width:
            conv(f"{block}.0", width, wide, 1)
            index += 1
        conv(f"{block}.{index}", 1, wide, side)
        if units:
            index += 1
            biased(f"{block}.{index}.fc1", wide, units, 1, 1)
            biased(f"{block}.{index}.fc2", units, wide, 1, 1)
        conv(f"{block}.{index + 1}", wide, out, 1)
        width = out
    conv(f"features.{len(table) + 1}", width, 6 * width, 1)
    biased("classifier.0", 6 * width, hidden)
    biased("classifier.3", hidden, num_classes)
    return shapes


SIZES = [
    ("mobilenet_v3_small", (SMALL, 1024), 2_542_856),
    ("mobilenet_v3_large", (LARGE, 1280), 5_483_032),
]


@pytest.mark.parametrize(("name", "sizes", "count"), SIZES)
def test_static_net_has_the_names_shapes_and_counts_of_torchvision(name, sizes, count):
    ours, theirs = abstract(name), on_meta(name)
    expected = published_shapes(*sizes)
    assert torch_shapes(ours) == shapes_of(theirs) == expected
    assert count_parameters(ours) == count
    assert sum(each.numel() for each in theirs.parameters()) == count


@pytest.mark.slow
def test_published_state_dicts_load_strictly_and_come_back(rng):
    state = {
        key: np.array(rng.random(shape), "float32" if shape else "int64")
        for key, shape in published_shapes(SMALL, 1024, 10).items()
    }
    ours = abstract("mobilenet_v3_small", 10)
    theirs = dynconv_torch.create_model("mobilenet_v3_small", 10)
    load_torch_state_dict(ours, state)
    theirs.load_state_dict({k: as_torch(v) for k, v in state.items()}, strict=True)
    for returned in (to_torch_state_dict(ours), torch_state(theirs)):
        assert returned.keys() == state.keys()
        for key, value in state.items():
            assert returned[key].tobytes() == value.tobytes(), key


# The same function.


def twins(x, rng, conv=(None, None), **options):
    return networks.twins(*BUILD, x, rng, 5, conv=conv, **{**NARROW, **options})


def test_static_net_of_two_blocks_agrees(rng):
    x = rng.normal(size=(2, 17, 20, 3))
    networks.assert_networks_agree(*twins(x, rng), x)


@pytest.mark.slow
@pytest.mark.parametrize("conv", [DYNAMIC, ROUTED])
def test_dynamic_net_of_two_blocks_agrees(conv, routers, rng):
    x = rng.normal(size=(2, 17, 20, 3))
    networks.assert_networks_agree(*twins(x, rng, conv, dynamic="all"), x)


def plain_net(x, state, blocks):
    """The network from its equations, of a state dict, in evaluation."""

    def conv(x, key, stride=1, groups=1):
        weight = state[f"{key}.0.weight"]
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
        weight, bias, mean, var = (
            state[f"{key}.1.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / torch.sqrt(var + 1e-3) * weight + bias

    def swish(x):
        return x * torch.clamp(x + 3, 0, 6) / 6

    x = swish(conv(x, "features.0", 2))
    for number, (_, _, _, stride, is_hard_swish, _) in enumerate(blocks, start=1):
        key, y, index = f"features.{number}.block", x, 0
        activation = swish if is_hard_swish else F.relu
        if f"{key}.3.0.weight" in state:
            y, index = activation(conv(y, f"{key}.0")), 1
        wide = state[f"{key}.{index}.0.weight"].shape[0]
        y = activation(conv(y, f"{key}.{index}", stride, wide))
        gates = y.mean((2, 3), keepdim=True)
        for name, after in (("fc1", F.relu), ("fc2", lambda z: z)):
            layer = f"{key}.{index + 1}.{name}"
            gates = after(
                F.conv2d(gates, state[f"{layer}.weight"], state[f"{layer}.bias"])
            )
        y = y * torch.clamp(gates + 3, 0, 6) / 6
        y = conv(y, f"{key}.{index + 2}")
        x = x + y if stride == 1 and x.shape[1] == y.shape[1] else y
    x = swish(conv(x, f"features.{len(blocks) + 1}")).mean((2, 3))
    x = swish(F.linear(x, state["classifier.0.weight"], state["classifier.0.bias"]))
    return F.linear(x, state["classifier.3.weight"], state["classifier.3.bias"])


def test_net_computes_the_equations(rng):
    images = rng.normal(size=(2, 27, 20, 3))
    net = BUILD[1](5, **NARROW, dtype=torch.float64)
    networks.enliven(net, images, rng)
    for name, value in net.named_parameters():
        if "fc" in name or "classifier" in name:
            torch.nn.init.normal_(value)
    x = as_torch(np.moveaxis(images, -1, 1))
    actual, expected = net.eval()(x), plain_net(x, net.state_dict(), TWO_BLOCKS)
    assert_close({"": actual.detach().numpy()}, {"": expected.numpy()}, dtype="float64")


# In use.


@pytest.mark.parametrize(
    ("dynamic", "expected"),
    [
        ("paper", ["1.block.0.0", "1.block.2.0", *"0 1 3".split(), "3.0"]),
        ("all", ["0.0", "1.block.0.0", "1.block.2.0", *"0 1 3".split(), "3.0"]),
        ("pointwise", ["1.block.2.0", *"0 3".split()]),
        (1, [*"0 1 3".split()]),
    ],
)
def test_dynamic_says_which_layers_are_dynamic(dynamic, expected):
    names = sorted(
        f"features.{name}" if "." in name else f"features.2.block.{name}.0"
        for name in expected
    )
    options = dict(dynamic=dynamic, **NARROW)
    net = abstract_module(lambda rngs: BUILD[0](conv=DynamicConv, rngs=rngs, **options))
    twin = BUILD[1](conv=DynamicConv2d, device="meta", **options)
    for each in (net, twin):
        assert networks.dynamic_layers(each) == names
    assert torch_shapes(net) == shapes_of(twin)


@pytest.mark.slow
def test_a_dynamic_net_starts_where_a_static_one_ended(rng):
    static, dynamic = (
        abstract_module(
            lambda rngs, conv=conv: BUILD[0](5, conv=conv, rngs=rngs, **NARROW)
        )
        for conv in (None, DYNAMIC[0])
    )
    load_torch_state_dict(static, torch_state(BUILD[1](5, **NARROW)))
    load_torch_state_dict(dynamic, torch_state(BUILD[1](5, conv=DYNAMIC[1], **NARROW)))
    init_from_static(dynamic, static)
    started, trained = to_torch_state_dict(dynamic), to_torch_state_dict(static)
    for key, value in trained.items():
        if started[key].ndim == value.ndim + 1:
            assert (started[key] == value).all(), key
        else:
            assert started[key].tobytes() == value.tobytes(), key


@pytest.mark.parametrize("build", [abstract, on_meta])
def test_options_that_make_no_sense_are_refused(build):
    for options, message in (
        (dict(blocks=()), "`blocks` .* must have one block at least"),
        (dict(blocks=3), r"`blocks` \(=3\) must be `BlockSpec`s, or tuples"),
        (dict(blocks=[(3, 16)]), "`blocks` .* tuples of .*'kernel_size'"),
        (dict(width_mult=-1.0), "`width_mult` .* must be positive"),
        (dict(dynamic=1), "^`dynamic` .* but there is no `conv`"),
        (dict(conv="dynamic", dynamic=12), "`dynamic` .*int from 1 to 11"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            build("mobilenet_v3_small", **options)


@pytest.mark.slow
def test_head_begins_as_that_of_torchvision():
    theirs = BUILD[1](50, blocks=TWO_BLOCKS)
    ours = BUILD[0](50, blocks=TWO_BLOCKS, rngs=nnx.Rngs(0))
    for state in (torch_state(theirs), to_torch_state_dict(ours)):
        for key in ("classifier.0", "classifier.3"):
            assert abs(state[f"{key}.weight"].std() / 0.01 - 1) < 0.1
            assert (state[f"{key}.bias"] == 0).all()


def test_net_can_be_pickled():
    net = abstract_module(lambda rngs: BUILD[0](5, rngs=rngs, **NARROW))
    assert torch_shapes(pickle.loads(pickle.dumps(net))) == torch_shapes(net)
