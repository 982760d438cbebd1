"""KernelWarehouse's networks: names, shapes and counts are those published."""

import functools
import math
from typing import Any

import pytest
import torch

import dynconv_jax
import dynconv_torch
from dynconv_jax import count_parameters
from dynconv_jax.layers.warehouse_layout import (
    from_warehouse_layout,
    to_warehouse_layout,
)
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.models.kw_grouping import (
    mobilenet_stage,
    resnet_stage,
)
from dynconv_jax.weights.torch_layout import torch_shapes
from dynconv_torch.models import kw_grouping as torch_grouping
from parity_tests.tools import kw_checkpoints
from parity_tests.tools.networks import abstract, on_meta

resnet18 = functools.partial(kw_checkpoints.resnet, (2, 2, 2, 2), is_bottleneck=False)
resnet50 = functools.partial(kw_checkpoints.resnet, (3, 4, 6, 3), is_bottleneck=True)

# Name, options, what its checkpoint has, and the number of parameters: in all digits
# where those are known, else as the paper has it, in millions to two decimals.
PUBLISHED: dict[str, tuple[str, dict[str, Any], Any, float]] = {
    "resnet18, 1/4": ("kw_resnet18", dict(ratio=0.25), resnet18, 4_031_768),
    "resnet18, 1/2": ("kw_resnet18", dict(ratio=0.5), resnet18, 7.43),
    "resnet18, 1": ("kw_resnet18", dict(ratio=1), resnet18, 11.93),
    "resnet18, 2": ("kw_resnet18", dict(ratio=2), resnet18, 23.24),
    "resnet18, 4": ("kw_resnet18", dict(ratio=4), resnet18, 45.86),
    "resnet50, 1/2": ("kw_resnet50", dict(ratio=0.5), resnet50, 17.64),
    "resnet50, 1": ("kw_resnet50", dict(ratio=1), resnet50, 28.05),
    "resnet50, 4": ("kw_resnet50", dict(ratio=4), resnet50, 102.02),
    **{
        f"mobilenet_v2 {width}, {ratio}": (
            "kw_mobilenet_v2",
            dict(ratio=ratio, width_mult=width),
            kw_checkpoints.mobilenet_v2,
            millions,
        )
        for width, ratio, millions in (
            (1.0, 0.5, 2.65),
            (1.0, 1, 5.17),
            (1.0, 4, 11.38),
            (0.5, 0.5, 1.47),
            (0.5, 1, 2.85),
            (0.5, 4, 4.65),
        )
    },
    "convnext_tiny, 1": (
        "kw_convnext_tiny",
        dict(ratio=1),
        lambda ratio: kw_checkpoints.convnext_tiny(),
        39.37,
    ),
}
# What is built in JAX, too, without being slow: that with the most of its own.
QUICK = {"mobilenet_v2 0.5, 0.5"}

ALL = pytest.mark.parametrize("case", PUBLISHED)
EACH = pytest.mark.parametrize(
    "case",
    [
        case if case in QUICK else pytest.param(case, marks=pytest.mark.slow)
        for case in PUBLISHED
    ],
)


BUILDERS = pytest.mark.parametrize("build", [abstract, on_meta])


def assert_is_the_published_number(count: int, published: float) -> None:
    if isinstance(published, float):
        assert f"{count / 1e6:.2f}" == f"{published:.2f}"
    else:
        assert count == published


@ALL
def test_published_checkpoints_load_strictly_into_the_twin_and_come_back(case):
    name, options, checkpoint, published = PUBLISHED[case]
    expected = checkpoint(**options)
    net = on_meta(name, **options)
    assert_is_the_published_number(
        sum(parameter.numel() for parameter in net.parameters()), published
    )
    tensors = {k: torch.empty(shape, device="meta") for k, shape in expected.items()}
    left = net.load_state_dict(tensors, strict=False)
    assert not left.unexpected_keys  # and of τ alone there is no value to keep on meta
    assert all(key.endswith(".assignment") for key in left.missing_keys)
    returned = dynconv_torch.to_warehouse_layout(net.state_dict())
    assert {key: tuple(value.shape) for key, value in returned.items()} == expected


@EACH
def test_published_checkpoints_have_the_keys_and_shapes_of_the_network(case):
    name, options, checkpoint, published = PUBLISHED[case]
    expected = checkpoint(**options)
    net = abstract(name, **options)
    assert_is_the_published_number(count_parameters(net), published)
    known = torch_shapes(net)
    assert to_warehouse_layout(known) == expected
    scheduled = {key for key in known if key.endswith(".assignment")}
    assert from_warehouse_layout(expected, known).keys() == known.keys() - scheduled


def test_published_checkpoints_of_other_classes_and_images_are_the_same_otherwise():
    expected = kw_checkpoints.mobilenet_v2(0.5, 0.5, classes=10)
    net = on_meta("kw_mobilenet_v2", 10, ratio=0.5, width_mult=0.5)
    returned = dynconv_torch.to_warehouse_layout(net.state_dict())
    assert {key: tuple(value.shape) for key, value in returned.items()} == expected


def test_published_checkpoints_load_strictly_into_the_twin_in_memory():
    shapes = kw_checkpoints.mobilenet_v2(0.5, 0.5, classes=3)
    net = dynconv_torch.create_model("kw_mobilenet_v2", 3, ratio=0.5, width_mult=0.5)
    ones = {key: torch.ones(shape) for key, shape in shapes.items()}
    net.load_state_dict(ones, strict=True)
    assert all(bool((parameter == 1).all()) for parameter in net.parameters())


# Which layers share.


@pytest.mark.parametrize(
    ("path", "of_18", "of_50"),
    [
        ("conv1", None, None),
        ("layer1.0.conv1", 1, None),
        ("layer1.0.downsample.0", 1, None),
        ("layer1.0.conv2", 1, 1),
        ("layer2.0.conv1", 1, 1),
        ("layer2.0.downsample.0", 1, 1),
        ("layer2.0.conv2", 2, 2),
        ("layer2.1.conv1", 2, 2),
    ],
)
def test_layers_that_lead_to_a_stage_belong_to_the_one_before(path, of_18, of_50):
    geometry: Any = None  # whatever the kernel size
    for function in resnet_stage, torch_grouping.resnet_stage:
        assert function(0, geometry, path) == of_18
        assert function(0, geometry, path, first=None) == of_50


def test_paths_are_the_same_in_both_frameworks():
    def paths(package, **options):
        seen = []

        def group_by(index, geometry, path):
            seen.append((index, path, mobilenet_stage(index, geometry, path)))
            return "all" if "conv.2" in path else None

        few = dict(stages=((1, 8, 1, 1), (6, 8, 1, 1)), width_mult=0.1, dynamic="all")
        build = functools.partial(package.MobileNetV2, 3, **few)
        package.with_warehouses(build, group_by=group_by, **options)
        return seen

    theirs = paths(dynconv_torch)
    abstract_module(lambda rngs: paths(dynconv_jax, rngs=rngs) == theirs or 1 / 0)
    assert theirs[3] == (3, "features.2.conv.0.0", (1, "pointwise"))


# Options.


@BUILDERS
@pytest.mark.parametrize(
    ("name", "ratio"),
    [("kw_resnet18", 3), ("kw_resnet50", 0.25), ("kw_convnext_tiny", 4)],
)
def test_budgets_that_were_not_published_are_refused(build, name, ratio):
    with pytest.raises(ValueError, match=rf"^`ratio` \(={ratio}\) of {name} must be"):
        build(name, ratio=ratio)


@BUILDERS
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (dict(asignment=1.0), "did you mean 'assignment'"),
        (dict(width_mult=0.5), "'width_mult'; it takes .*'ratio'.*'dropout'"),
    ],
)
def test_options_of_other_networks_are_refused(build, option, message):
    with pytest.raises(TypeError, match=f"kw_resnet18.*{message}"):
        build("kw_resnet18", **option)


@BUILDERS
@pytest.mark.parametrize("name", ["kw_resnet18", "kw_mobilenet_v2"])
@pytest.mark.parametrize(
    "option", [dict(conv="dynamic"), dict(conv="kernel_warehouse"), dict(dynamic=1)]
)
def test_what_is_dynamic_is_as_published(build, name, option):
    with pytest.raises(ValueError, match="^`(conv|dynamic)` .* must be left out"):
        build(name, ratio=0.5, **option)


@pytest.mark.parametrize(
    ("build", "name"),
    [(abstract, "resnet18"), (on_meta, "resnet18"), (on_meta, "mobilenet_v2")],
)
def test_the_static_network_has_the_names_of_the_dynamic_one(build, name):
    def shapes(net):
        if isinstance(net, torch.nn.Module):
            return {key: tuple(value.shape) for key, value in net.state_dict().items()}
        return torch_shapes(net)

    static = build(f"kw_{name}", 3, conv="static", ratio=0.5)
    assert shapes(static) == shapes(build(name, 3))


def test_options_reach_the_warehouses():
    options: dict[str, Any] = dict(assignment=0.5, init="published", norm="none")
    net: Any = dynconv_torch.create_model("kw_resnet18", 3, ratio=0.25, **options)
    assert [float(each.assignment) for each in net.warehouses] == [0.5] * 4
    assert not any("norm1" in key for key in net.state_dict())
    first = net.warehouses[0].cells.std().item()
    assert math.isclose(first, (2 / (9 * 32)) ** 0.5, rel_tol=0.1)  # most have 9 cells


def test_networks_train_with_rates_of_their_own():
    net = on_meta("kw_resnet18", 3, ratio=0.25, dropout=0.1, drop_path_rate=0.2)
    assert net.dropout.p == 0.1 and net.layer4[1].drop_path.p == 0.2
    assert on_meta("kw_mobilenet_v2", 3, width_mult=0.1).classifier[0].p == 0.0
