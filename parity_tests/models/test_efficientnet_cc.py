"""EfficientNet-CondConv: timm's names and counts, and the same network in both."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax import export

from dynconv_jax import (
    CondConv,
    DynamicConv,
    capture_attention,
    create_model,
    load_torch_state_dict,
    models,
    to_torch_state_dict,
)
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.models.efficientnet_cc import EfficientNet
from dynconv_jax.weights.torch_layout import torch_shapes
from dynconv_torch import CondConv2d, DynamicConv2d
from dynconv_torch import create_model as create_torch_model
from dynconv_torch import models as torch_models
from dynconv_torch.models import efficientnet_cc as twin
from parity_tests.parity import as_torch, torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools import networks

BUILD = EfficientNet, twin.EfficientNet
COND = (
    functools.partial(CondConv, num_experts=2),
    functools.partial(CondConv2d, num_experts=2),
)
# Both kinds of block, strided and not, with and without a shortcut, static and, in the
# last stage (`dynamic=1`), dynamic.
SEPARABLE_FIRST = ((3, 1, None, 8, 1), (5, 2, 2, 6, 1))
INVERTED_ONLY = ((5, 2, 2, 6, 1), (3, 1, 2, 6, 1))
SELF_ROUTED = (
    functools.partial(DynamicConv, num_experts=2, reduction=1),
    functools.partial(DynamicConv2d, num_experts=2, reduction=1),
)
NARROW: dict[str, Any] = dict(stem_features=8, head_features=10)


def narrow_twins(x, rng, conv, stages, **options):
    """Builds a small network twice; the twin has its own words for the widths."""

    def torch_net(*arguments, stem_features, head_features, **options):
        return BUILD[1](
            *arguments,
            stem_channels=stem_features,
            head_channels=head_features,
            **options,
        )

    options = {**NARROW, "stages": stages, **options}
    return networks.twins(BUILD[0], torch_net, x, rng, 5, conv=conv, **options)


# Names, shapes and counts.


def published_shapes(experts: int, depths=(1, 2, 2, 3, 3, 4, 1)):
    """The state dict of timm's network, written from the description of its keys."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(key, width, outputs, side, *, groups=1, experts=0, bias=False):
        shape = (outputs, width // groups, side, side)
        shapes[f"{key}.weight"] = (experts, int(np.prod(shape))) if experts else shape
        if bias:
            shapes[f"{key}.bias"] = (outputs,)

    def norm(key, channels):
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{key}.{part}"] = (channels,)
        shapes[f"{key}.num_batches_tracked"] = ()

    def gate(key, channels, hidden):
        conv(f"{key}.conv_reduce", channels, hidden, 1, bias=True)
        conv(f"{key}.conv_expand", hidden, channels, 1, bias=True)

    conv("conv_stem", 3, 32, 3)
    norm("bn1", 32)
    width = 32
    sides, outputs = (3, 3, 5, 3, 5, 5, 3), (16, 24, 40, 80, 112, 192, 320)
    for stage, (side, out, depth) in enumerate(
        zip(sides, outputs, depths, strict=True)
    ):
        for index in range(depth):
            block = f"blocks.{stage}.{index}"
            count = experts if stage >= 4 else 0
            if stage == 0:
                conv(f"{block}.conv_dw", width, width, side, groups=width)
                norm(f"{block}.bn1", width)
                gate(f"{block}.se", width, width // 4)
                conv(f"{block}.conv_pw", width, out, 1)
                norm(f"{block}.bn2", out)
            else:
                wide = 6 * width
                conv(f"{block}.conv_pw", width, wide, 1, experts=count)
                norm(f"{block}.bn1", wide)
                conv(f"{block}.conv_dw", wide, wide, side, groups=wide, experts=count)
                norm(f"{block}.bn2", wide)
                gate(f"{block}.se", wide, width // 4)
                conv(f"{block}.conv_pwl", wide, out, 1, experts=count)
                norm(f"{block}.bn3", out)
                if count:
                    shapes[f"{block}.routing_fn.weight"] = (count, width)
                    shapes[f"{block}.routing_fn.bias"] = (count,)
            width = out
    conv("conv_head", 320, 1280, 1)
    norm("bn2", 1280)
    shapes["classifier.weight"] = (1000, 1280)
    shapes["classifier.bias"] = (1000,)
    return shapes


DEEPER = (2, 3, 3, 4, 4, 5, 2)
PUBLISHED = {
    "efficientnet_cc_b0_4e": (published_shapes(4), 13_314_116),
    "efficientnet_cc_b0_8e": (published_shapes(8), 24_013_284),
    "efficientnet_cc_b1_8e": (published_shapes(8, DEEPER), 39_715_968),
}


def num_parameters(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("prefix", ["", "tf_"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_of_the_twin_have_the_keys_and_counts_published(name, prefix):
    shapes, count = PUBLISHED[name]
    net = getattr(torch_models, prefix + name)(device="meta")
    actual = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert actual == shapes
    assert num_parameters(net) == count


def test_counts_are_those_that_were_published():
    # As published, in millions to two digits.
    counts = [count for _, count in PUBLISHED.values()]
    assert [round(count / 1e6, 2) for count in counts] == [13.31, 24.01, 39.72]
    assert len(PUBLISHED["efficientnet_cc_b0_4e"][0]) == 376


@pytest.fixture(scope="module")
def smallest(numerics):
    return abstract_module(lambda rngs: models.efficientnet_cc_b0_4e(rngs=rngs))


def test_network_has_the_keys_and_the_count_published(smallest):
    shapes, count = PUBLISHED["efficientnet_cc_b0_4e"]
    assert torch_shapes(smallest) == shapes
    params = nnx.state(smallest, nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_published_weights_load_strictly_into_both_and_come_back_bit_for_bit(
    smallest, rng
):
    shapes, _ = PUBLISHED["efficientnet_cc_b0_4e"]
    expected = {
        key: np.array(7)
        if key.endswith("num_batches_tracked")
        else rng.standard_normal(shape, np.float32)
        for key, shape in shapes.items()
    }
    ours = nnx.clone(smallest)
    load_torch_state_dict(ours, expected)
    theirs = torch_models.efficientnet_cc_b0_4e()
    theirs.load_state_dict({k: as_torch(v) for k, v in expected.items()}, strict=True)
    for actual in (to_torch_state_dict(ours), torch_state(theirs)):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(actual[key], value, strict=True)


# The same function.


@pytest.mark.parametrize(
    ("stages", "tensorflow"),
    [
        pytest.param(SEPARABLE_FIRST, False, marks=pytest.mark.slow),
        (INVERTED_ONLY, True),
    ],
)
def test_networks_of_few_stages_agree(stages, tensorflow, rng):
    x = rng.normal(size=(2, 13, 10, 3))
    options = dict(dynamic=1, tensorflow=tensorflow)
    networks.assert_networks_agree(*narrow_twins(x, rng, COND, stages, **options), x)


@pytest.mark.slow
@pytest.mark.parametrize("conv", [COND, SELF_ROUTED], ids=["cond", "self-routed"])
def test_networks_that_are_all_dynamic_agree(conv, rng):
    x = rng.normal(size=(2, 17, 18, 3))
    options = dict(dynamic="all", tensorflow=True)
    networks.assert_networks_agree(
        *narrow_twins(x, rng, conv, SEPARABLE_FIRST, **options), x
    )


# What else a network must do.


@pytest.fixture
def small(rng):
    x = rng.normal(size=(3, 13, 10, 3))
    ours, theirs = narrow_twins(x, rng, COND, SEPARABLE_FIRST, dynamic=1)
    load_torch_state_dict(ours, torch_state(theirs))
    ours = nnx.view(ours, use_running_average=True, raise_if_not_found=False)
    return *nnx.split(ours), x


def test_network_exports_with_a_free_batch_and_no_group_for_a_sample(small):
    graphdef, state, x = small

    def apply(images):
        return nnx.merge(graphdef, state)(images)

    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, 13, 10, 3"), x.dtype)
    artifact = export.export(jax.jit(apply))(shape)
    whole = artifact.call(x)
    assert_close(
        {"logits": artifact.call(x[:2])}, {"logits": whole[:2]}, dtype="float64"
    )
    text = artifact.mlir_module()
    groups = set(map(int, re.findall(r"feature_group_count = (\d+)", text)))
    assert groups == {1, 8}  # the static layers: 1×1 and depthwise
    assert set(re.findall(r"batch_group_count = (\d+)", text)) == {"1"}


def test_routers_are_seen_under_their_names(small):
    graphdef, state, x = small

    def attention(state, x):
        return capture_attention(nnx.merge(graphdef, state), x)[1]

    shapes = {k: v.shape for k, v in jax.eval_shape(attention, state, x).items()}
    assert shapes == {
        "blocks.layers.1.layers.0.routing_fn": (3, 2),
    }


def test_parameters_are_drawn_as_published():
    options: dict[str, Any] = dict(stages=((5, 1, 6, 200, 1),), dynamic=1)

    @jax.jit
    def build():
        return nnx.split(BUILD[0](400, conv=CondConv, rngs=nnx.Rngs(0), **options))

    ours = nnx.merge(*build())
    theirs = BUILD[1](400, conv=CondConv2d, **options)
    # Its kernel's standard deviation, or the bound of the uniform distribution.
    normal = {
        "conv_stem": 2 / (9 * 32),
        "blocks.0.0.conv_pw": 2 / 192,
        "blocks.0.0.conv_dw": 2 / 25,
        "blocks.0.0.conv_pwl": 2 / 200,
        "blocks.0.0.se.conv_expand": 2 / 192,
        "conv_head": 2 / 1280,
    }
    uniform = {"blocks.0.0.routing_fn": 1 / (32 + 4), "classifier": 1 / 400}
    for state in (to_torch_state_dict(ours), torch_state(theirs)):
        for key, variance in normal.items():
            assert abs(state[f"{key}.weight"].std() / variance**0.5 - 1) < 0.08
        for key, square in uniform.items():
            largest = np.abs(state[f"{key}.weight"]).max()
            assert 0.95 * square**0.5 < largest <= square**0.5
        biases = [value for key, value in state.items() if key.endswith("bias")]
        assert biases and not any(value.any() for value in biases)
        assert all((state[f"blocks.0.0.bn{n}.weight"] == 1).all() for n in (1, 2, 3))


def test_drop_path_grows_over_the_blocks_and_is_left_out_by_default():
    stages = SEPARABLE_FIRST + INVERTED_ONLY
    options: dict[str, Any] = dict(stages=stages, drop_path_rate=0.4)
    net = abstract_module(lambda rngs: BUILD[0](rngs=rngs, **options))
    rates = [stage.layers[0].drop_path.rate for stage in net.blocks.layers]
    theirs: Any = BUILD[1](device="meta", **options)
    assert rates == [block[0].drop_path.p for block in theirs.blocks]
    np.testing.assert_allclose(rates, [0.0, 0.1, 0.2, 0.3])
    plain = abstract_module(lambda rngs: BUILD[0](stages=stages, rngs=rngs))
    assert not jax.tree.leaves(nnx.state(plain, nnx.RngState))


def test_dropout_is_before_the_classifier():
    options: dict[str, Any] = dict(stages=SEPARABLE_FIRST, dropout=0.5, dynamic="all")
    theirs = BUILD[1](device="meta", **options)
    ours = abstract_module(lambda rngs: BUILD[0](rngs=rngs, **options))
    assert ours.dropout.rate == theirs.dropout.p == 0.5


def test_a_network_may_be_static_and_then_has_no_router():
    options: dict[str, Any] = dict(conv="static", stages=INVERTED_ONLY, dynamic=1)
    name = "efficientnet_cc_b0_8e"
    ours = abstract_module(lambda rngs: create_model(name, rngs=rngs, **options))
    theirs = create_torch_model(name, device="meta", **options)
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert torch_shapes(ours) == shapes
    assert shapes["blocks.1.0.conv_pw.weight"] == (12, 6, 1, 1)
    assert not any("routing_fn" in key for key in shapes)


def test_another_convolution_may_be_chosen_by_name():
    net = create_torch_model(
        "efficientnet_cc_b0_4e",
        conv="dynamic",
        conv_options={"num_experts": 3},
        device="meta",
    )
    assert len(networks.dynamic_layers(net)) == 24
    assert not any("routing_fn" in key for key in net.state_dict())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(drop_path_rate=1.0), r"drop_path_rate` \(=1.0\)"),
        (dict(num_classes=0), r"num_classes` \(=0\)"),
        (dict(conv=CondConv, dynamic=5), r"dynamic` \(=5\).*from 1 to 2"),
    ],
)
def test_impossible_options_are_refused(changed, message):
    options: dict[str, Any] = {"stages": INVERTED_ONLY, "dynamic": 1, **changed}
    with pytest.raises(ValueError, match=message):
        BUILD[0](rngs=nnx.Rngs(0), **options)
    with pytest.raises(ValueError, match=message):
        BUILD[1](device="meta", **options)


@pytest.mark.parametrize("shape", [(16, 16, 3), (2, 16, 16, 4)])
def test_images_of_the_wrong_shape_are_refused(smallest, shape):
    with pytest.raises(ValueError, match=r"inputs.*height, width.*\(=3\)"):
        smallest(jnp.ones(shape))
