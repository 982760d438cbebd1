"""Members of the family are known by the arrays that checkpoints have of them."""

import pytest

from dynconv_jax.weights.members import MEMBERS, Unread, ratio_of, reduction_of
from dynconv_jax.weights.recognize import recognize_layers

EXPERTS = (4, 8, 8, 3, 3)


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


@pytest.mark.parametrize("reduction", [1, 3, 4, 16, 40])
@pytest.mark.parametrize("floor", [1, 4, 16])
def test_a_reduction_is_found_that_gives_these_hidden_units(reduction, floor):
    channels = (8, 64, 96, 320, 1280)
    pairs = [(each, max(each // reduction, floor)) for each in channels]
    found = reduction_of(pairs, floor=floor, default=16)
    assert found is not None
    assert pairs == [(each, max(each // found, floor)) for each in channels]


@pytest.mark.parametrize(
    "pairs", [[(64, 16), (64, 17)], [(64, 16), (512, 16)], [(64, 3)], [(3, 10**30)]]
)
def test_hidden_units_that_no_reduction_gives_have_none(pairs):
    assert reduction_of(pairs, floor=4, default=4) is None


@pytest.mark.parametrize("ratio", [4, 2, 1, 1 / 2, 1 / 3, 1 / 4])
def test_a_ratio_of_warehouses_is_read_off_tiles_and_cells(ratio):
    tiles = (36, 9, 73, 2)
    counts = [(each, max(1, int(each * ratio + 1e-9))) for each in tiles]
    assert ratio_of(counts) == ratio


@pytest.mark.parametrize("counts", [[(36, 5), (9, 9)], [(36, 37)], [(2, 1), (36, 36)]])
def test_warehouses_of_several_ratios_have_none(counts):
    with pytest.raises(Unread):
        ratio_of(counts)
