"""What networks of all families have in common is read off keys and shapes."""

import re

import pytest

from dynconv_jax.weights.recognize import candidates
from dynconv_torch.weights.identify import identify as identify_torch
from parity_tests.tools.checkpoints import assert_reads, shapes_of, zeros


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet50", dict(conv="dynamic", dynamic="pointwise")),
        ("resnet50", dict(conv="decomposed", dynamic=1)),
        ("mobilenet_v2", dict(width_mult=0.35)),
        ("mobilenet_v2", dict(width_mult=1.4, conv="odconv", dynamic=3)),
        ("mobilenet_v2", dict(width_mult=0.1, conv="condconv", dynamic="all")),
        ("mobilenet_v2", dict(width_mult=0.1, conv="dynamic", dynamic="pointwise")),
        ("mobilenet_v2", dict(width_mult=0.1, conv="decomposed")),
        ("mobilenet_v2", dict(width_mult=0.1, conv="kernel_warehouse")),
        ("mobilenet_v3_small", dict(width_mult=0.5, conv="dynamic", dynamic=4)),
        ("mobilenet_v3_large", dict(width_mult=0.25, conv="odconv")),
        # Of which the blocks' own widths alone are those of a rounder number, too.
        ("mobilenet_v3_small", dict(width_mult=0.35)),
        ("mobilenet_v3_large", dict(width_mult=0.375)),
        ("dymn10", dict(width_mult=0.375)),
        ("dymn10", dict(width_mult=0.7)),
        ("dymn04", dict(in_channels=3)),
        ("dymn04", dict(conv="context", conv_options={"num_experts": 2})),
        ("dymn04", dict(conv="dynamic", dynamic="pointwise")),
        ("fdy_cnn", dict(width_mult=0.5, conv="condconv", dynamic="all")),
        # Layers of few channels are plain ones.
        ("mobilenet_v2", dict(width_mult=0.5, conv="fdconv", dynamic="pointwise")),
        ("fdy_cnn", dict(width_mult=0.5, conv="fdconv")),
        *(
            ("resnet18", dict(conv=conv, dynamic=1, conv_options={"min_hidden": 200}))
            for conv in ("odconv", "fdconv", "frequency_dynamic")
        ),
        ("dynamic_net", dict(width_mult=0.29)),
        ("dynamic_net", dict(width_mult=0.5, conv="static")),
        ("dynamic_net", dict(width_mult=3.0, conv="odconv")),
    ],
    ids=str,
)
def test_widths_and_roles_are_read_off_the_shapes(name, options):
    if options.get("conv") == "static" and name == "dynamic_net":
        match = identify_torch(zeros(shapes_of(name, **options)))
        assert match is not None and match.call.options["conv"] == "static"
    else:
        assert_reads(name, options, defaults=("num_classes",))


@pytest.mark.parametrize(
    ("key", "shape", "doubt"),
    [
        ("layer1.0.conv1.weight", (3, 64, 64, 3, 3), r"number of experts: \[3, 4\]"),
        ("layer1.0.conv1.weight", (5000, 64, 64, 3, 3), r"experts: \[4, 5000\]"),
        ("layer1.0.conv1.attention.fc.weight", (2000, 64, 1, 1), "no `reduction`"),
        ("layer1.0.conv1.fc_phi.weight", (256, 4), "ODConv"),
    ],
)
def test_what_no_option_explains_is_told(key, shape, doubt):
    shapes = shapes_of("resnet18", conv="odconv") | {key: shape}
    shapes.pop("layer2.0.conv1.attention.channel_fc.weight")
    match = identify_torch(zeros(shapes))
    assert match is not None and match.problems
    if "fc_phi" not in key:
        assert re.search(doubt, "; ".join(match.call.doubts))


def test_layers_of_several_members_are_told():
    shapes = shapes_of("resnet18", conv="odconv", dynamic=1)
    shapes |= {
        key: shape
        for key, shape in shapes_of("resnet18", conv="dynamic").items()
        if key.startswith("layer1.")
    }
    match = identify_torch(zeros(shapes))
    assert match is not None and match.problems
    assert "layers of DynamicConv and of ODConv" in match.call.doubts[0]


def test_a_choice_of_layers_that_no_option_makes_is_told():
    shapes = shapes_of("resnet18", conv="odconv", dynamic=1)
    static = shapes_of("resnet18")
    inside = "layer4.0.conv1."
    shapes = {k: v for k, v in shapes.items() if not k.startswith(inside)}
    shapes |= {k: v for k, v in static.items() if k.startswith(inside)}
    match = identify_torch(zeros(shapes))
    assert match is not None and match.problems
    assert "3 of 20 convolutions are dynamic, such as layer4.0.conv2" in "".join(
        match.call.doubts
    )


@pytest.mark.parametrize("name", ["dymn04", "mobilenet_v3_small"])
def test_a_head_of_several_layers_is_missing_as_one(name):
    shapes = shapes_of(name)
    body = {k: v for k, v in shapes.items() if not k.startswith("classifier.")}
    call, *_ = candidates(body)
    assert call.head == "classifier"
    call, *_ = candidates(shapes)
    assert call.head in ("classifier.5", "classifier.3")
