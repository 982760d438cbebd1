"""Which parameters are of routers, experts and the head, and how far from the head."""

from typing import Any

import pytest
from flax import nnx

from dynconv_jax import create_model, list_convolutions
from dynconv_jax.models.abstract import abstract_module
from train.learning.parameters import (
    TRAINABLE,
    depths_of,
    keys_of,
    parameters_by_key,
)


def net(conv: str = "dynamic", name: str = "dynamic_net", **options) -> nnx.Module:
    return abstract_module(
        lambda rngs: create_model(name, 7, conv=conv, rngs=rngs, **options)
    )


# What of a block is of its experts, and of its routers.
PARTS: dict[str, tuple[set[str], set[str]]] = {
    "static": (set(), set()),
    "dynamic": ({"dyn.weight"}, {"dyn.fc1", "dyn.fc2"}),
    "condconv": ({"dyn.weight"}, {"routing_fn"}),
    "odconv": ({"dyn.weight"}, {"dyn.attention"}),
    "decomposed": (
        {"dyn.conv", "dyn.bn1", "dyn.q", "dyn.bn2", "dyn.p"},
        {"dyn.fc", "dyn.fc_phi", "dyn.fc_scale"},
    ),
    "kernel_warehouse": (set(), {"dyn.attention"}),
    "fdconv": ({"dyn.dft_weight", "dyn.FBM"}, {"dyn.KSM_Global", "dyn.KSM_Local"}),
    "frequency_dynamic": ({"dyn.weight"}, {"dyn.attention"}),
}


@pytest.mark.parametrize("conv", list_convolutions())
def test_experts_and_routers_of_a_block(conv):
    experts, routers = PARTS[conv]
    model = net(conv)
    block = {key for key in parameters_by_key(model) if key.startswith("stage2.")}
    for group, names in (("experts", experts), ("routers", routers)):
        expected = {
            key
            for key in block
            for name in names
            if f"{key}.".startswith(f"stage2.{name}.")
        }
        assert keys_of(group, model) & block == expected
        assert len(expected) >= len(names)


def test_cells_of_warehouses_are_experts():
    cells = {f"warehouses.{number}.cells" for number in range(3)}
    assert keys_of("experts", net("kernel_warehouse")) == cells


@pytest.mark.parametrize("conv", list_convolutions())
def test_backbone_is_all_but_routers_and_head(conv):
    model = net(conv)
    parts = [keys_of(group, model) for group in ("backbone", "routers", "head")]
    assert set().union(*parts) == parameters_by_key(model).keys()
    assert sum(map(len, parts)) == len(parameters_by_key(model))
    assert keys_of("head", model) == {"fc.weight", "fc.bias"}
    assert keys_of("experts", model) <= keys_of("backbone", model)


def test_depth_counts_from_the_head():
    depths = depths_of(net("odconv", "resnet18"))
    for key, depth in {
        "fc.weight": 0,
        "layer4.1.conv2.weight": 1,
        "layer4.1.conv2.attention.fc.weight": 1,
        "layer4.0.bn1.bias": 2,
        "layer1.0.conv1.weight": 8,
        "conv1.weight": 9,
    }.items():
        assert depths[key] == depth
    assert set(depths.values()) == {*range(10)}


def test_warehouse_is_as_near_as_its_nearest_layer():
    model = net("kernel_warehouse", "resnet18")
    depths = depths_of(model)
    assert depths.keys() == parameters_by_key(model).keys()
    nearest = {depths[key] for key in depths if key.startswith("warehouses.")}
    # A warehouse has the two blocks of a stage, or the first alone.
    assert nearest == {1, 3, 5, 7}


def test_what_is_marked_is_not_trainable():
    model: Any = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    model.bias.set_metadata("is_frozen", True)
    assert [path for path, _ in nnx.to_flat_state(nnx.state(model, TRAINABLE))] == [
        ("kernel",)
    ]
