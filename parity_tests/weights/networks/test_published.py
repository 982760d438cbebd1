"""Networks as published are recognised by the names that they have."""

import pytest

import dynconv_jax
import dynconv_torch
from dynconv_jax.models.published import PUBLISHED
from dynconv_jax.weights.recognize import candidates, without_redundant
from parity_tests.tools import published_shapes
from parity_tests.tools.checkpoints import as_published, refusal, shapes_of, zeros

BOTH = pytest.mark.parametrize(
    "package", [pytest.param(dynconv_jax, marks=pytest.mark.slow), dynconv_torch]
)


@pytest.mark.parametrize(
    "name", [each for each in PUBLISHED if each.startswith("dcd_")]
)
def test_checkpoints_of_decomposition_are_read_by_their_names_alone(name):
    call, *_ = candidates(published_shapes.published(name, 7))
    assert (call.name, call.options, call.doubts) == (name, {"num_classes": 7}, ())


def test_what_is_not_as_published_of_decomposition_is_read_as_an_option():
    options = dict(
        num_classes=7,
        in_channels=1,
        width_mult=0.5,
        dropout=0.0,
        dynamic=("pointwise", 3),
        conv_options={"reduction": 8},
    )
    call, *_ = candidates(shapes_of("dcd_mobilenet_v2", **options))
    assert (call.name, call.options, call.doubts) == ("dcd_mobilenet_v2", options, ())


def test_networks_of_odconv_are_read_by_their_names():
    for name in ("od_resnet101", "od_mobilenet_v2"):
        call, *_ = candidates(published_shapes.published(name, 7))
        assert (call.name, call.options) == (name, {"num_classes": 7})
    call, *_ = candidates(published_shapes.published("od_resnet50", 7, experts=4))
    expected = dict(num_classes=7, conv_options={"num_experts": 4})
    assert (call.name, call.options) == ("od_resnet50", expected)


def test_networks_of_odconv_with_a_reduction_of_their_own_keep_their_names():
    shapes = shapes_of("od_resnet18", conv_options={"reduction": 8})
    call, *_ = candidates(shapes)
    expected = dict(num_classes=1000, conv_options={"reduction": 8})
    assert (call.name, call.options) == ("od_resnet18", expected)


def test_without_its_head_a_network_of_odconv_is_still_one():
    shapes = published_shapes.published("od_resnet18")
    del shapes["fc.weight"], shapes["fc.bias"]
    call, *_ = candidates(shapes)
    assert (call.name, call.options, call.head) == ("od_resnet18", {}, "fc")


@BOTH
def test_without_its_classifier_a_mobilenet_of_decomposition_is_named(package):
    shapes = shapes_of("dcd_mobilenet_v2")
    body = {k: v for k, v in shapes.items() if not k.startswith("classifier.")}
    message = refusal(package, zeros(body))
    assert "`create_model('dcd_mobilenet_v2')` builds: 16 missing keys" in message
    way = "ignore=('classifier',)" if package is dynconv_jax else "'classifier' alone"
    assert way in message


@BOTH
@pytest.mark.parametrize(
    ("name", "conv"),
    [("od_resnet18", "odconv"), ("dcd_resnet18", "decomposed")],
)
def test_a_convolution_that_the_network_has_anyway_may_be_said(package, name, conv):
    shapes = shapes_of(name, num_classes=7)
    read = {"num_classes": 7}
    assert without_redundant({"conv": conv}, read, shapes) == {}
    assert without_redundant({"conv": "dynamic"}, read, shapes) == {"conv": "dynamic"}
    other = {"conv": conv, "conv_options": {}}
    assert without_redundant(other, other, shapes) == other
    message = refusal(package, zeros(shapes), conv="dynamic")
    assert "with `conv` (='dynamic') it does not fit" in message


@pytest.mark.parametrize("name", ["od_resnet18", "kw_resnet18"])
def test_a_network_with_its_own_convolution_said_is_made(name):
    shapes = shapes_of(name, num_classes=7)
    conv = {"od": "odconv", "kw": "kernel_warehouse"}[name[:2]]
    net = dynconv_torch.create_model_from_checkpoint(
        as_published(zeros(shapes)), conv=conv
    )
    assert {k: tuple(v.shape) for k, v in net.state_dict().items()} == shapes
