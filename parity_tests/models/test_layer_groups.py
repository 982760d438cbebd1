"""The parts of the networks by depth: all of a network is in one, the head is last."""

import functools
from collections import Counter
from typing import Any

import pytest
from flax import nnx

from dynconv_jax import create_model
from dynconv_jax.models import head_of, layer_groups
from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.weights.names import match_keys
from dynconv_jax.weights.torch_layout import torch_shapes
from parity_tests.tools import registered
from parity_tests.tools.slow import thinned

# Of the networks that have no router outside of their convolutions, and of those that
# have one everywhere.
CONVOLUTIONS = "static", "condconv"


@functools.cache
def abstract(name: str, conv: str, num_classes: int = 7) -> Any:
    """Builds a network without values, once, only to be looked at."""
    options: dict[str, Any] = (
        {} if conv == "static" or name == "dynamic_net" else {"dynamic": "all"}
    )
    return abstract_module(
        lambda rngs: create_model(name, num_classes, conv=conv, rngs=rngs, **options)
    )


# Networks of which every convolution is tried.
ROUTED = "dynamic_net", "resnet18", "mobilenet_v2"


# In the slow tests all, since another one there builds them too.
@pytest.mark.parametrize(
    ("name", "conv"),
    thinned(
        [
            (name, conv)
            for name in registered.KINDS
            for conv in CONVOLUTIONS
            if conv == "static" or name in ROUTED
        ],
        *((name, conv) for name in ROUTED for conv in CONVOLUTIONS),
    ),
)
def test_each_key_of_a_network_is_at_one_depth(name, conv):
    net = abstract(name, conv)
    keys = torch_shapes(net)
    found: Counter[str] = Counter()
    for names in layer_groups(net):
        found.update(set().union(*match_keys(names, keys).values()))
    assert found == dict.fromkeys(keys, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", registered.KINDS)
def test_the_head_is_what_has_a_size_for_the_classes(name):
    net, other = (abstract(name, "static", classes) for classes in (7, 5))
    of_seven, of_five = torch_shapes(net), torch_shapes(other)
    differing = {key for key in of_seven if of_seven[key] != of_five[key]}
    head = set().union(*match_keys(head_of(net), of_seven).values())
    # A dynamic head has parts that do not know of the classes.
    assert differing <= head if name.startswith("dcd_") else differing == head


@pytest.mark.parametrize(
    ("name", "count"),
    [("dynamic_net", 5), ("resnet18", 10), ("resnet50", 18), ("mobilenet_v2", 19)],
)
def test_depths_are_the_stem_each_block_and_the_head(name, count):
    assert len(layer_groups(abstract(name, "static"))) == count


def test_module_that_does_not_say_its_layers_is_refused():
    with pytest.raises(TypeError, match=r"`model` \(a Linear\) does not say"):
        head_of(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
