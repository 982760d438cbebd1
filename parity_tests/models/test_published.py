"""Networks as published: their names, shapes and settings."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_torch
from dynconv_jax import DecomposedConv, load_torch_state_dict, models
from dynconv_jax import to_torch_state_dict as state_of
from dynconv_jax.models import resnet
from dynconv_jax.models.published import PUBLISHED
from dynconv_torch import DecomposedConv2d
from dynconv_torch import models as torch_models
from dynconv_torch.models import resnet as torch_resnet
from dynconv_torch.models.published import PUBLISHED as OF_THE_TWIN
from parity_tests.parity import torch_state
from parity_tests.tools import networks, published_shapes, registered, whole
from parity_tests.tools.networks import abstract, on_meta


def shapes_of(net):
    """The shapes of a network by key, without what no published state dict has."""
    shapes = networks.shapes_of(net)
    return {k: shape for k, shape in shapes.items() if not k.endswith("temperature")}


# Names, shapes, counts


@pytest.mark.parametrize("name", [registered.marked(name) for name in PUBLISHED])
def test_networks_of_jax_have_the_published_names_and_shapes(name):
    assert shapes_of(abstract(name)) == published_shapes.published(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_of_the_twin_load_published_state_dicts_strictly(name):
    net = on_meta(name)
    shapes = published_shapes.published(name)
    assert shapes_of(net) == shapes
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    # On no device there are no values that could stay.
    kept = {k: v for k, v in net.state_dict().items() if k.endswith("temperature")}
    net.load_state_dict(state | kept, strict=True)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("dcd_resnet18", 14_703_332),
        ("dcd_resnet34", 27_649_068),
        ("dcd_resnet50", 29_835_056),
        ("dcd_resnet101", 53_227_056),
        ("dcd_mobilenet_v2", 5_720_028),
        ("od_resnet18", 11_943_944),
        ("od_resnet50", 28_635_112),
        ("od_resnet101", 50_818_769),
        ("od_mobilenet_v2", 4_940_185),
    ],
)
def test_networks_have_as_many_parameters_as_published(name, count):
    # Of which the tests above find the networks to be.
    assert published_shapes.count(published_shapes.published(name)) == count


def test_a_dynamic_head_adds_what_it_adds_as_published():
    of_resnet18 = [
        sum(each.numel() for each in on_meta("dcd_resnet18", head=head).parameters())
        for head in ("dynamic", "linear")
    ]
    assert of_resnet18[0] - of_resnet18[1] == 130_688
    head = published_shapes.classifier("head", 2048, 1000)
    linear = published_shapes.linear("fc", 2048, 1000)
    assert published_shapes.count(head) - published_shapes.count(linear) == 228_992


# One of each block: the others are deeper.
OF_EACH_BLOCK = (
    *("dcd_resnet18", "dcd_resnet50", "dcd_mobilenet_v2"),
    *("od_resnet18", "od_resnet50", "od_mobilenet_v2"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_EACH_BLOCK)
def test_published_state_dicts_come_back_bit_for_bit(name, rng):
    shapes = published_shapes.published(name, 7)
    state: dict[str, Any] = {
        key: rng.random(shape, np.float32) if shape else np.array(3)
        for key, shape in shapes.items()
    }
    theirs = dynconv_torch.create_model(name, 7)
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    theirs.load_state_dict(tensors, strict=True)
    kept = {k: v for k, v in torch_state(theirs).items() if k.endswith("temperature")}
    ours = abstract(name, 7)  # which has no temperature that could stay
    load_torch_state_dict(ours, state | kept)
    for returned in (state_of(ours), torch_state(theirs)):
        assert returned.keys() == state.keys() | kept.keys()
        for key, value in state.items():
            assert returned[key].tobytes() == value.tobytes()


BUILDERS = pytest.mark.parametrize("build", [abstract, on_meta])


def test_the_classifier_is_0_without_dropout():
    shapes = shapes_of(on_meta("dcd_resnet18", 7, dropout=0.0))
    places = {key.split(".")[1] for key in shapes if key.startswith("classifier")}
    assert places == {"0"}


# Settings


def test_dropout_is_that_of_the_authors():
    for name, row in PUBLISHED.items():
        usual = None if name == "od_mobilenet_v2" else 0.1  # which has 0.2 anyway
        assert row.keywords.get("dropout") == usual


@BUILDERS
def test_options_of_the_convolution_are_those_of_the_network_s_own(build):
    shapes = shapes_of(build("od_resnet18", 7, conv_options={"num_experts": 4}))
    assert shapes == published_shapes.published("od_resnet18", 7, experts=4)


@BUILDERS
def test_other_convolutions_take_the_place_of_a_network_s_own(build):
    shapes = shapes_of(build("od_resnet18", 7, conv="static"))
    assert shapes == shapes_of(build("resnet18", 7))


@BUILDERS
def test_an_unknown_option_is_answered_with_the_name_of_the_builder(build):
    with pytest.raises(
        TypeError, match=r"^resnet18\(\) got an unexpected .*'drop_out'"
    ):
        build("od_resnet18", drop_out=0.5)
    with pytest.raises(
        TypeError, match=r"^ODConv(2d)?\(\) got an unexpected .*'ratio'"
    ):
        build("od_resnet18", conv_options={"ratio": 0.5})


def drawn(build):
    """What of a network of JAX `build` answers, without drawing the rest."""
    return jax.tree.map(np.asarray, jax.jit(build)())


def test_a_linear_head_is_drawn_as_the_authors_of_odconv_do():
    options: dict[str, Any] = dict(head_std=0.01)

    def head():
        block = resnet.BasicBlock
        net = models.ResNet(block, (1, 1, 1, 1), 40, **options, rngs=nnx.Rngs(0))
        assert net.fc.bias is not None
        return {"weight": net.fc.kernel[...], "bias": net.fc.bias[...]}

    block = torch_resnet.BasicBlock
    theirs = torch_models.ResNet(block, (1, 1, 1, 1), 40, **options)
    for state in (drawn(head), torch_state(theirs.fc)):
        assert abs(state["weight"].std() / 0.01 - 1) < 0.05
        assert not state["bias"].any()


def test_a_dynamic_head_of_mobilenet_v2_is_drawn_as_its_authors_do():
    options: dict[str, Any] = dict(
        stages=((1, 8, 1, 1),), width_mult=0.25, head="dynamic"
    )

    def head():
        net = models.MobileNetV2(40, **options, rngs=nnx.Rngs(0))
        part = net.classifier.layers[1]
        return {
            "cls.weight": part.cls.kernel[...],
            "cls.bias": part.cls.bias[...],
            "cls_q.weight": part.cls_q.kernel[...],
            "fc.0.weight": part.fc.layers[0].kernel[...],
        }

    theirs = torch_models.MobileNetV2(40, **options)
    for state in (drawn(head), torch_state(theirs.classifier[1])):
        for name in ("cls", "cls_q", "fc.0"):
            assert abs(state[f"{name}.weight"].std() / 0.01 - 1) < 0.05
        assert not state["cls.bias"].any()


@pytest.mark.parametrize("value", [0, -1.0, "0.01"])
def test_a_deviation_that_is_none_is_refused(value):
    for build in (abstract, on_meta):
        with pytest.raises((TypeError, ValueError), match="`head_std`"):
            build("resnet18", head_std=value)


@BUILDERS
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_head_that_there_is_not_is_refused(build, name):
    with pytest.raises(ValueError, match="^`head` .='dyn'. must be one of 'linear', "):
        build(name, head="dyn")


@BUILDERS
@pytest.mark.parametrize(
    ("dynamic", "expected"),
    [
        (("pointwise", 1), {2}),
        ("pointwise", {1, 2}),
    ],
)
def test_the_last_pointwise_convolutions_may_be_dynamic_alone(build, dynamic, expected):
    stages = ((1, 8, 1, 1), (3, 8, 1, 1))
    net = build("mobilenet_v2", conv="dynamic", stages=stages, dynamic=dynamic)
    dynamic_keys = [key for key in shapes_of(net) if key.endswith("fc1.weight")]
    assert {int(key.split(".")[1]) for key in dynamic_keys} == expected
    assert not any(shapes_of(net)[f"{key[:-10]}weight"][-1] > 1 for key in dynamic_keys)


@pytest.mark.parametrize("dynamic", [("all", 1), ("pointwise", 8), ("pointwise", True)])
def test_other_pairs_are_refused(dynamic):
    for build in (abstract, on_meta):
        with pytest.raises(ValueError, match=r"`dynamic` .* as \('pointwise', 1\)"):
            build("mobilenet_v2", conv="dynamic", dynamic=dynamic)


# The same function


@pytest.mark.slow
def test_a_flat_network_with_a_dynamic_head_agrees(rng):
    x = rng.normal(size=(3, 12, 10, 3))
    options: dict[str, Any] = dict(
        stages=((1, 8, 1, 1), (3, 8, 1, 1)),
        width_mult=0.25,
        dynamic=("pointwise", 1),
        head="dynamic",
        layout="flat",
        dropout=0.0,
    )
    conv = (
        functools.partial(DecomposedConv, variant="mobilenet_v2"),
        functools.partial(DecomposedConv2d, variant="mobilenet_v2"),
    )
    build = models.mobilenet_v2, torch_models.mobilenet_v2
    networks.assert_networks_agree(
        *networks.twins(*build, x, rng, 7, conv=conv, **options), x
    )


@pytest.mark.slow
def test_a_whole_network_agrees(rng):
    whole.assert_whole_parity("dcd_resnet18", rng)


def test_names_and_settings_are_those_of_the_twin():
    for name, row in PUBLISHED.items():
        twin = OF_THE_TWIN[name]
        assert row.func.__name__ == twin.func.__name__
        settings = {k: v for k, v in row.keywords.items() if k != "conv"}
        assert settings == {k: v for k, v in twin.keywords.items() if k != "conv"}
        assert row.keywords["conv"].keywords == twin.keywords["conv"].keywords
