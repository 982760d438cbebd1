"""SameConv2d: of the size of the inputs, or of what the stride leaves of it."""

import pytest
import torch
from torch.nn import functional

from dynconv_torch.layers.same_conv import SameConv2d
from parity_tests.parity import as_numpy
from parity_tests.tolerances import assert_close


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (9, 8)),
        (dict(stride=2), (5, 4)),
        (dict(stride=(3, 1), dilation=2), (3, 8)),
    ],
)
def test_the_size_is_that_of_the_inputs_over_the_stride(options, expected):
    outputs = SameConv2d(3, 4, 3, **options)(torch.ones(2, 3, 9, 8))
    assert outputs.shape == (2, 4, *expected)


def test_without_options_it_is_the_convolution_of_pytorch_with_a_bias():
    layer = SameConv2d(3, 4, (3, 5)).double()
    inputs = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    assert layer.bias is not None
    expected = functional.conv2d(inputs, layer.weight, layer.bias, padding="same")
    assert_close(
        {"outputs": as_numpy(layer(inputs))},
        {"outputs": as_numpy(expected)},
        dtype="float64",
    )
