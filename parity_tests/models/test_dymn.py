"""DyMN: the authors' names and counts, and the same in both frameworks."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax import count_parameters, load_torch_state_dict, to_torch_state_dict
from dynconv_jax.weights.recognize import candidates
from dynconv_jax.weights.torch_layout import torch_shapes
from parity_tests.parity import as_torch, torch_state
from parity_tests.tools.narrow_dymn import (
    TWO_BLOCKS,
    twins,
)
from parity_tests.tools.networks import (
    abstract,
    assert_networks_agree,
    on_meta,
    shapes_of,
)

# Names, shapes and counts.


def to_eight(number):
    """The next multiple of eight, and never a tenth less than the number."""
    rounded = max(8, int(number + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * number else rounded


# Side, expanded channels, output channels of each block, at width 1.
TABLE = [
    *((3, 16, 16), (3, 64, 24), (3, 72, 24), (5, 72, 40), (5, 120, 40), (5, 120, 40)),
    *((3, 240, 80), (3, 200, 80), (3, 184, 80), (3, 184, 80), (3, 480, 112)),
    *((3, 672, 112), (5, 672, 160), (5, 960, 160), (5, 960, 160)),
]


# Which blocks are dynamic in the networks that the authors call `replace_se`.
STEERED = (3, 4, 5, 10, 11, 12, 13, 14)


def published_shapes(width_mult, num_classes=527, steered: Collection[int] = range(15)):
    """The state dict of the authors' network, written from the list of its keys."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(key, width, outputs):
        shapes[f"{key}.weight"], shapes[f"{key}.bias"] = (outputs, width), (outputs,)

    def norm(key, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{key}.{part}"] = (channels,)
        shapes[f"{key}.num_batches_tracked"] = ()

    width = to_eight(16 * width_mult)
    shapes["in_c.0.weight"] = (width, 1, 3, 3)
    norm("in_c.1", width)
    for number, (side, wide, out) in enumerate(TABLE):
        block = f"layers.{number}"
        wide, out = to_eight(wide * width_mult), to_eight(out * width_mult)
        if number not in steered:
            static = [(wide, width, 1)] * (wide != width)
            static += [(wide, 1, side), (out, wide, 1)]
            for place, (outputs, inputs, k) in enumerate(static):
                shapes[f"{block}.block.{place}.0.weight"] = (outputs, inputs, k, k)
                norm(f"{block}.block.{place}.1", outputs)
            width = out
            continue
        low, high = to_eight(32 * width_mult), to_eight(128 * width_mult)
        context = int(np.clip(to_eight(wide // 4), low, high))
        sizes = {"depth": wide * side**2, "proj": out * wide}
        if wide != width:
            sizes["exp"] = wide * width
        for name, size in sizes.items():
            shapes[f"{block}.{name}_conv.weight"] = (1, 1, 4, size)
            linear(f"{block}.{name}_conv.residuals.0", context, 4)
            norm(f"{block}.{name}_norm", out if name == "proj" else wide)
        shapes[f"{block}.depth_act.lambdas"] = (4,)
        shapes[f"{block}.depth_act.init_v"] = (4,)
        linear(f"{block}.depth_act.coef_net.0", context, 4 * wide)
        shapes[f"{block}.context_gen.joint_conv.weight"] = (context, width, 1, 1)
        norm(f"{block}.context_gen.joint_norm", context)
        for axis in "ft":
            shapes[f"{block}.context_gen.conv_{axis}.weight"] = (wide, context, 1, 1)
            shapes[f"{block}.context_gen.conv_{axis}.bias"] = (wide,)
        width = out
    shapes["out_c.0.weight"] = (6 * width, width, 1, 1)
    norm("out_c.1", 6 * width)
    hidden = to_eight(1280 * width_mult)
    linear("classifier.2", 6 * width, hidden)
    linear("classifier.5", hidden, num_classes)
    return shapes


SIZES = [
    ("dymn04", 0.4, 1_961_239),
    ("dymn10", 1.0, 10_548_479),
    ("dymn20", 2.0, 39_966_143),
]


def assert_published(shapes, width_mult):
    """Asserts that a state dict has the published keys, and temperatures beside."""
    expected = published_shapes(width_mult)
    assert len(expected) == 578
    added = {key for key in shapes if key not in expected}
    assert len(added) == 44
    assert all(key.endswith(".residuals.temperature") for key in added)
    assert {key: shapes[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "width_mult", "count"),
    [pytest.param(*size, marks=pytest.mark.slow) for size in SIZES[::2]] + [SIZES[1]],
)
def test_names_shapes_and_counts_are_those_published(name, width_mult, count):
    net = abstract(name)
    assert_published(torch_shapes(net), width_mult)
    assert count_parameters(net) == count


@pytest.mark.parametrize(("name", "width_mult", "count"), SIZES)
def test_those_of_the_twin_are_the_published_ones(name, width_mult, count):
    net = on_meta(name)
    assert_published(shapes_of(net), width_mult)
    assert sum(each.numel() for each in net.parameters()) == count


@pytest.mark.parametrize(
    ("name", "width_mult", "count"),
    [pytest.param("dymn04", 0.4, 1_829_287, marks=pytest.mark.slow)]
    + [("dymn10", 1.0, 9_833_935)],
)
def test_static_blocks_among_dynamic_ones_are_named_as_published(
    name, width_mult, count
):
    expected = published_shapes(width_mult, 9, STEERED)
    assert len(expected) == 440
    options = dict(num_classes=9, context_in="squeeze")
    shapes = torch_shapes(abstract(name, **options))
    assert shapes_of(on_meta(name, **options)) == shapes
    assert {key: shapes[key] for key in expected} == expected
    assert all(".temperature" in key for key in shapes.keys() - expected.keys())
    call, *_ = candidates(expected)
    assert (call.name, call.doubts) == (name, ())
    assert call.options == dict(num_classes=9, context_in="squeeze")
    parameters = on_meta(name, context_in="squeeze").parameters()
    assert sum(each.numel() for each in parameters) == count


@pytest.mark.slow
def test_a_checkpoint_of_imagenet_is_opened_at_its_temperature(rng):
    state = {
        key: torch.zeros(shape, dtype=torch.float32 if shape else torch.int64)
        for key, shape in published_shapes(0.4, 10).items()
    }
    for package, attention in (
        (dynconv_jax, "attention"),
        (dynconv_torch, "residuals"),
    ):
        net = package.create_model_from_checkpoint(state, temperature=30.0)
        router = getattr(net.layers[14].proj_conv, attention)
        assert float(router.temperature[...]) == 30


@pytest.mark.slow
def test_published_state_dicts_load_strictly_and_come_back(rng):
    state = {
        key: np.array(rng.random(shape), "float32" if shape else "int64")
        for key, shape in published_shapes(0.4, 10).items()
    }
    ours = dynconv_jax.create_model("dymn04", 10, rngs=nnx.Rngs(0))
    theirs = dynconv_torch.create_model("dymn04", 10)
    load_torch_state_dict(ours, state)
    theirs.load_state_dict({k: as_torch(v) for k, v in state.items()}, strict=True)
    for returned in (to_torch_state_dict(ours), torch_state(theirs)):
        for key, value in state.items():
            assert returned.pop(key).tobytes() == value.tobytes(), key
        assert all(value == 1 for value in returned.values())  # the temperatures


# The same function.


def test_net_of_two_blocks_agrees(rng):
    x = rng.normal(size=(2, 13, 10, 1))
    assert_networks_agree(*twins(x, rng), x)


@pytest.mark.slow
def test_net_with_a_static_block_agrees(rng):
    x = rng.normal(size=(2, 13, 10, 1))
    blocks = ((3, 64, 16, 1, False, True), (5, 64, 16, 1, True), (3, 16, 8, 2, True))
    ours, theirs = twins(x, rng, blocks=blocks, context_in="squeeze")
    layers: Any = getattr(ours, "layers")  # noqa: B009
    assert [type(each).__name__ for each in layers] == [
        "DynamicBlock",
        "InvertedResidual",
        "InvertedResidual",
    ]
    assert_networks_agree(ours, theirs, x)


@pytest.mark.slow
def test_net_trains_alike_on_one_sample(rng):
    x = rng.normal(size=(1, 18, 13, 1))
    blocks = (*TWO_BLOCKS, (3, 24, 8, 1, True))
    assert_networks_agree(*twins(x, rng, blocks=blocks), x)
