"""What the layers of the twin share: how they show themselves."""

import pytest

import dynconv_torch

SHOWN = {
    "dilation=(2, 2)": dict(dilation=2),
    "groups=2": dict(groups=2),
    "bias=True": dict(bias=True),
    "implementation='patches'": dict(implementation="patches"),
}


@pytest.mark.parametrize("part", SHOWN)
def test_a_layer_shows_an_option_that_is_not_the_default(part):
    plain = dynconv_torch.DynamicConv2d(4, 6, (3, 2), 2, 1)
    expected = "4, 6, kernel_size=(3, 2), stride=(2, 2), padding=((1, 1), (1, 1))"
    assert plain.extra_repr() == f"{expected}, num_experts=4"
    layer = dynconv_torch.DynamicConv2d(4, 6, (3, 2), 2, 1, **SHOWN[part])
    assert layer.extra_repr() == f"{expected}, {part}, num_experts=4"
