"""ResNets are recognised with their convolutions, or the nearest is told."""

import pytest

from dynconv_jax.weights.identify import identify
from dynconv_jax.weights.loading import prepare
from dynconv_jax.weights.trunks import Call
from dynconv_torch.weights.identify import identify as identify_torch
from parity_tests.tools.checkpoints import assert_reads, shapes_of, zeros

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


@pytest.mark.parametrize("options", OF_RESNET, ids=str)
def test_convolutions_of_a_resnet_are_read_off_the_shapes(options):
    assert_reads("resnet18", options, defaults=("num_classes",))


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
