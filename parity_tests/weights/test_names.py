"""Names of parts: which keys they mean, and what is said of those that mean none."""

import pytest

from dynconv_jax.weights.names import match_keys, suggestion

KEYS = (
    *("layer1.0.conv1.weight", "layer1.0.bn1.bias", "layer10.0.conv1.weight"),
    *("fc.weight", "fc.bias", "fc2.bias"),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fc", {"fc.weight", "fc.bias"}),
        ("fc.bias", {"fc.bias"}),
        ("layer1", {"layer1.0.conv1.weight", "layer1.0.bn1.bias"}),
        ("layer1.0.bn1", {"layer1.0.bn1.bias"}),
        ("*.bias", {"layer1.0.bn1.bias", "fc.bias", "fc2.bias"}),
        ("layer*.conv1", {"layer1.0.conv1.weight", "layer10.0.conv1.weight"}),
        ("fc?", {"fc2.bias"}),
        ("layer", set()),
        ("FC", set()),
        ("conv1", set()),
        ("", set()),
    ],
)
def test_name_means_a_key_or_the_beginning_of_keys_up_to_a_dot(name, expected):
    assert match_keys([name], KEYS) == {name: expected}


def test_near_names_are_suggested():
    assert "did you mean 'layer1.0'" in suggestion("layer.0", KEYS)
