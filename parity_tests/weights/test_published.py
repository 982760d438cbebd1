"""Networks are recognised by keys and shapes, with their options, at full size."""

import re

import numpy as np
import pytest

import dynconv_jax
from dynconv_jax.weights.identify import identify, in_flax
from dynconv_jax.weights.loading import prepare
from dynconv_jax.weights.published import NETWORKS
from dynconv_jax.weights.recognize import candidates
from dynconv_jax.weights.trunks import Call
from dynconv_torch.layers import to_chen_layout
from dynconv_torch.weights.identify import identify as identify_torch
from parity_tests.tools import published_shapes, registered
from parity_tests.tools.checkout import ROOT
from parity_tests.tools.checkpoints import as_published, shapes_of, trained, zeros

NAMES = registered.NAMES
OF_JAX = [registered.marked(n) for n in dynconv_jax.list_models() if n[:3] != "tf_"]


@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_recognised_whatever_its_classes_and_images(name):
    state_dict = zeros(shapes_of(name, num_classes=7, in_channels=5))
    match = identify_torch(state_dict)
    assert match is not None and match.problems == []
    # What pads as TensorFlow does has the same arrays.
    assert match.call.name == name.removeprefix("tf_")
    expected = {"num_classes": 7, "in_channels": 5}
    assert expected.items() <= match.call.options.items()


@pytest.mark.parametrize("name", OF_JAX)
def test_every_network_is_recognised_by_jax_in_its_own_words(name):
    state_dict = zeros(shapes_of(name, num_classes=7, in_channels=5))
    match = identify(as_published(state_dict), prepare)
    assert match is not None and match.problems == []
    assert match.call.name == name
    assert in_flax(match.call.options)["in_features"] == 5


OF_RESNET = [
    dict(conv="static"),
    dict(conv="dynamic"),
    dict(conv="dynamic", conv_options={"num_experts": 3, "reduction": 16}),
    dict(conv="dynamic", conv_options={"router": "chen", "reduction": 8}),
    dict(conv="dynamic", conv_options={"router_hidden_channels": 5}),
    dict(conv="dynamic", conv_options={"router_hidden_bias": False}),
    dict(conv="odconv", dynamic="all", in_channels=2),
    dict(conv="odconv", conv_options={"num_experts": 1}, dynamic=2),
    dict(conv="odconv", conv_options={"reduction": 4, "norm": "layer"}),
    dict(conv="odconv", conv_options={"min_hidden": 6, "norm": "none"}, dynamic="all"),
    dict(conv="condconv"),
    dict(conv="condconv", conv_options={"num_experts": 8}, dynamic="all"),
    dict(conv="decomposed"),
    dict(conv="decomposed", conv_options={"reduction": 4, "pool": 3}, dynamic=3),
    dict(conv="decomposed", conv_options={"min_hidden": 1}, dynamic="all"),
    dict(conv="fdconv"),
    dict(conv="fdconv", conv_options={"num_experts": 8, "num_spectra": 2}),
    dict(conv="frequency_dynamic", conv_options={"num_experts": 3, "reduction": 8}),
    dict(conv="kernel_warehouse"),
    dict(conv="kernel_warehouse", conv_options={"ratio": 4.0, "norm": "layer"}),
    dict(conv="kernel_warehouse", conv_options={"ratio": 0.25, "reduction": 8}),
    dict(conv="kernel_warehouse", conv_options={"ratio": 0.5, "norm": "none"}),
]


def assert_reads(name, options, *, defaults=()):
    """Asserts that a network is recognised with just these options."""
    match = identify_torch(as_published(zeros(shapes_of(name, **options))))
    assert match is not None and match.problems == []
    assert match.call.doubts == ()
    found = {k: v for k, v in match.call.options.items() if k not in defaults}
    expected = {k: v for k, v in options.items() if (k, v) != ("conv", "static")}
    assert (match.call.name, found) == (name, expected)


@pytest.mark.parametrize("options", OF_RESNET, ids=str)
def test_convolutions_of_a_resnet_are_read_off_the_shapes(options):
    assert_reads("resnet18", options, defaults=("num_classes",))


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
        ("dymn10", dict(width_mult=0.7, conv="context")),
        ("dymn04", dict(in_channels=3, conv="context")),
        ("dymn04", dict(conv="context", conv_options={"num_experts": 2})),
        ("dymn04", dict(conv="dynamic", dynamic="pointwise")),
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
    ("name", "options", "call"),
    [
        ("efficientnet_cc_b0_8e", dict(dynamic=2), ("efficientnet_cc_b0_8e", {})),
        (
            "efficientnet_cc_b0_4e",
            dict(conv="condconv", conv_options={"num_experts": 2}),
            ("efficientnet_cc_b0_4e", {"conv": "condconv"}),
        ),
        (
            "efficientnet_cc_b1_8e",
            dict(conv="static", stem_channels=16, head_channels=640),
            ("efficientnet_cc_b1_8e", {"conv": "static"}),
        ),
    ],
)
def test_efficientnets_are_called_by_depth_and_experts(name, options, call):
    match = identify_torch(zeros(shapes_of(name, **options)))
    assert match is not None and match.problems == []
    expected, told = call
    assert match.call.name == expected
    assert told.items() <= match.call.options.items()
    own = {k: v for k, v in options.items() if k != "conv"}
    assert own.items() <= match.call.options.items()


def test_only_of_condconv_weights_are_taken_to_be_of_tensorflow():
    chosen = {}
    for conv in ("condconv", "static"):
        shapes = shapes_of("efficientnet_cc_b0_4e", conv=conv)
        call, *_ = candidates(shapes)
        chosen[conv] = call.options["tensorflow"]
        assert len(call.guessed({})) == 1 and call.guessed({"tensorflow": False}) == []
    assert chosen == {"condconv": True, "static": False}


def test_the_port_of_chen_is_recognised_in_its_own_layout():
    options = dict(conv="dynamic", conv_options={"router": "chen"}, width_mult=0.1)
    state_dict = to_chen_layout(trained("mobilenet_v2", **options))
    for match in (identify_torch(state_dict), identify(state_dict, prepare)):
        assert match is not None and match.problems == []
        assert options.items() <= match.call.options.items()
        assert "public PyTorch port" in match.call.title


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"layer1.2.bn1.running_mean": (64,)}, "unexpected key"),
        ({"layer4.1.bn2.running_mean": (1024,)}, "wrong shape"),
        ({"fc.bias": None}, "missing key"),
        ({"conv1.weight": (64, 3, 5, 5)}, "wrong shape"),
    ],
)
def test_of_a_network_that_is_not_quite_known_it_is_told_what_differs(change, kind):
    shapes = shapes_of("resnet18") | change
    shapes = {key: shape for key, shape in shapes.items() if shape is not None}
    for match in (identify_torch(zeros(shapes)), identify(zeros(shapes), prepare)):
        assert match is not None
        assert match.call == Call("resnet18", {"num_classes": 1000}, "resnet18")
        assert [each for each, _ in match.problems] == [kind]
        assert match.problems[0][1].startswith(next(iter(change)))


def test_a_deeper_network_is_told_from_the_nearest():
    shapes = shapes_of("resnet34")
    shapes |= {k.replace("layer1.2", "layer1.3"): v for k, v in shapes.items()}
    match = identify_torch(zeros(shapes))
    assert match is not None and match.call.name == "resnet34"
    assert {kind for kind, _ in match.problems} == {"unexpected key"}
    assert all("layer1.3" in text for _, text in match.problems)


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


def test_nothing_is_found_where_no_network_is():
    assert candidates({}) == []
    assert candidates({"encoder.weight": (8, 3)}) == []
    assert identify_torch({"encoder.weight": np.ones((8, 3))}) is None


@pytest.mark.parametrize(
    "shape", [(), (0, 512), (10**15, 512), (10,), (10, 512, 1, 1), (10**400, 512)]
)
@pytest.mark.parametrize("key", ["fc.weight", "conv1.weight", "bn1.weight"])
def test_absurd_shapes_are_no_network_and_take_no_time(key, shape):
    shapes = shapes_of("resnet18") | {key: shape}
    candidates(shapes)  # an error would be one


@pytest.mark.parametrize("conv", dynconv_jax.list_convolutions())
@pytest.mark.parametrize("shape", [(), (3,), (1,) * 6])
def test_absurd_shapes_of_any_convolution_are_no_error(conv, shape):
    shapes = shapes_of("dynamic_net", width_mult=0.25, conv=conv)
    for key in shapes:
        candidates(shapes | {key: shape})


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("kw_resnet18", "warehouses.0.cells", ()),
        ("kw_resnet18", "fc.bias", ()),
        ("kw_resnet18", "conv1.weight", (64,)),
        ("kw_mobilenet_v2", "warehouses.0.cells", ()),
        ("kw_mobilenet_v2", "features.17.conv.3.weight", (320, 1)),
        ("kw_mobilenet_v2", "features.0.0.attention.fc1.weight", (16,)),
    ],
)
def test_absurd_shapes_of_a_network_with_warehouses_are_told(name, key, shape):
    shapes = shapes_of(name, ratio=1) | {key: shape}
    match = identify_torch(zeros(shapes))
    assert match is not None
    assert any(text.startswith(f"{key} has {shape}") for _, text in match.problems)


def test_a_network_with_warehouses_lacks_but_its_head():
    shapes = shapes_of("kw_resnet18", ratio=1)
    body = {k: v for k, v in shapes.items() if not k.startswith("fc.")}
    match = identify_torch(zeros(body))
    assert match is not None and match.call.name == "kw_resnet18"
    assert {kind for kind, _ in match.problems} == {"missing key"}


def test_the_two_packages_have_one_table():
    for name in ("members", "trunks", "published", "recognize", "refusals", "wrappers"):
        texts = {
            re.sub(r"dynconv_(jax|torch)", "package", path.read_text())
            for path in ROOT.glob(f"dynconv_*/weights/{name}.py")
        }
        assert len(texts) == 1, name


def test_families_have_titles_and_signs_of_their_own():
    assert len({network.title for network in NETWORKS}) == len(NETWORKS)
    assert len({network.signs for network in NETWORKS}) == len(NETWORKS)


@pytest.mark.parametrize(
    "name", ["dcd_resnet18", "dcd_resnet34", "dcd_resnet50", "dcd_mobilenet_v2"]
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


def test_without_its_head_a_network_of_odconv_is_still_one():
    shapes = published_shapes.published("od_resnet18")
    del shapes["fc.weight"], shapes["fc.bias"]
    call, *_ = candidates(shapes)
    assert (call.name, call.options, call.head) == ("od_resnet18", {}, "fc")


@pytest.mark.parametrize("name", ["dymn04", "mobilenet_v3_small"])
def test_a_head_of_several_layers_is_missing_as_one(name):
    shapes = shapes_of(name)
    body = {k: v for k, v in shapes.items() if not k.startswith("classifier.")}
    call, *_ = candidates(body)
    assert call.head == "classifier"
    call, *_ = candidates(shapes)
    assert call.head in ("classifier.5", "classifier.3")
