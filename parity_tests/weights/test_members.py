"""Members of the family are known by the arrays that checkpoints have of them."""

import pytest

from dynconv_jax.weights.identify import identify
from dynconv_jax.weights.loading import prepare
from dynconv_jax.weights.members import MEMBERS
from dynconv_jax.weights.recognize import members_in
from dynconv_torch.layers import to_chen_layout
from dynconv_torch.weights.identify import identify as identify_torch
from parity_tests.tools.checkpoints import trained

EXPERTS = (4, 8, 8, 3, 3)


def recognize_layers(shapes):
    """Returns the titles of the members in a state dict."""
    return [member.title for member in members_in(shapes)]


@pytest.mark.parametrize(
    ("arrays", "member"),
    [
        ({"attention.channel_fc.weight": (8, 16, 1, 1)}, "ODConv"),
        ({"attention.spatial_fc.weight": (9, 16, 1, 1)}, "ODConv"),
        ({"attention.norm1.running_mean": (16,)}, "KernelWarehouse"),
        ({"attention.fc1.weight": (3, 8, 1, 1)}, "Chen et al"),
        ({"attention.fc1.weight": (3, 8, 1)}, "Chen et al"),
        ({"fc_phi.weight": (16, 4)}, "Decomposition"),
        ({"routing_fn.weight": (4, 8)}, "CondConv"),
        ({"KSM_Global.fc.weight": (16, 64, 1, 1)}, "FDConv"),
        ({"attention.conv1d1.weight": (4, 8, 3)}, "FrequencyDynamicConv"),
        ({"residuals.0.weight": (4, 8)}, "ContextConv"),
        ({"fc2.weight": (4, 8)}, "DynamicConv"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "layer2.0.conv1."])
def test_a_member_of_the_family_is_known_by_its_keys(arrays, member, prefix):
    arrays = {"weight": EXPERTS, **arrays}
    found = recognize_layers({f"{prefix}{key}": arrays[key] for key in arrays})
    assert len(found) == 1 and member in found[0]


def test_a_tiled_layer_is_known_whatever_normalises_its_attention():
    arrays = {"attention.fc1.weight": (16, 64), "attention.fc2.weight": (90, 16)}
    assert recognize_layers(arrays) == ["KernelWarehouse"]


def test_keys_that_only_resemble_are_not_recognised():
    shapes = {
        "attention.fc1.weight": (8, 4),  # two axes: a linear layer
        "self_routing_fn.weight": (4, 8),
        "mlp.fc1.weight": (8, 4),
        "mlp.fc2.weight": (4, 8),
        "mlp.weight": (4, 8),
    }
    assert recognize_layers(shapes) == []


def test_a_key_of_very_many_parts_takes_no_time():
    assert recognize_layers({"a." * 100_000 + "weight": EXPERTS}) == []


def test_members_have_names_of_their_own():
    titles = [member.title for member in MEMBERS]
    assert len(set(titles)) == len(titles)


def test_the_port_of_chen_is_recognised_in_its_own_layout():
    options = dict(conv="dynamic", conv_options={"router": "chen"}, width_mult=0.1)
    state_dict = to_chen_layout(trained("mobilenet_v2", **options))
    for match in (identify_torch(state_dict), identify(state_dict, prepare)):
        assert match is not None and match.problems == []
        assert options.items() <= match.call.options.items()
        assert "public PyTorch port" in match.call.title
