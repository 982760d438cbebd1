"""The transposed convolution's geometry: named paddings, sizes, and what is refused."""

from typing import Any

import jax.numpy as jnp
import pytest
import torch
from jax import lax

import dynconv_torch
from dynconv_jax import dynamic_conv_transpose, per_sample_conv_transpose
from dynconv_jax.functional.transpose_geometry import TransposeGeometry
from parity_tests.tolerances import assert_close


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_named_paddings_are_those_of_jax(kernel, dilation, padding, rng):
    inputs = jnp.asarray(rng.normal(size=(1, 5, 2)))
    weight = jnp.asarray(rng.normal(size=(kernel, 2, 3)))
    for stride in (1, 2, 3, 5):
        expected = lax.conv_transpose(
            inputs,
            jnp.flip(weight, 0),
            (stride,),
            padding,
            rhs_dilation=(dilation,),
            dimension_numbers=("NHC", "HIO", "NHC"),
        )
        actual = per_sample_conv_transpose(
            inputs,
            weight[None],
            strides=stride,
            padding=padding,
            kernel_dilation=dilation,
            implementation="vmap",
        )
        assert actual.shape == expected.shape
        if padding == "SAME":
            assert actual.shape[1] == 5 * stride
        assert_close({"output": actual}, {"output": expected}, dtype="float64")


def test_output_padding_lengthens_a_named_padding():
    geometry = TransposeGeometry.create(3, 4, (3,), strides=2, output_padding=1)
    assert geometry.output_size((5,)) == (11,)


BAD_OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], type, str]] = {
    "output padding": (
        dict(strides=2, output_padding=2),
        dict(stride=2, output_padding=2),
        ValueError,
        r"output_padding` \(=\(2,\)\) must be smaller than `stride",
    ),
    "negative output padding": (
        dict(strides=2, output_padding=-1),
        dict(stride=2, output_padding=-1),
        ValueError,
        r"output_padding` \(=-1\) must be at least 0",
    ),
    "output padding of another rank": (
        dict(strides=2, output_padding=(1, 1)),
        dict(stride=2, output_padding=(1, 1)),
        ValueError,
        r"output_padding` \(=\(1, 1\)\) has 2 entries",
    ),
    "output padding that is no integer": (
        dict(strides=2, output_padding=0.5),
        dict(stride=2, output_padding=0.5),
        TypeError,
        r"output_padding` \(=0.5\) must be an integer",
    ),
    "nothing left": (
        dict(padding=4),
        dict(padding=4),
        ValueError,
        r"padding` .*crops all of the output.*\(-1,\)",
    ),
    "unknown padding": (
        dict(padding="CIRCULAR"),
        dict(padding="same"),
        ValueError,
        r"padding` \(='",
    ),
    "groups": (
        dict(feature_group_count=2),
        dict(groups=2),
        ValueError,
        r"in_\w+` \(=3\) must be divisible",
    ),
    "form": (
        dict(implementation="fft"),
        dict(implementation="fft"),
        ValueError,
        r"implementation` \(='fft'\)",
    ),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_refused_by_both(name):
    ours, theirs, error, message = BAD_OPTIONS[name]
    with pytest.raises(error, match=message):
        dynamic_conv_transpose(
            jnp.ones((2, 5, 3)), jnp.ones((2, 4)), jnp.ones((4, 3, 3, 4)), **ours
        )
    with pytest.raises(error, match=message):
        dynconv_torch.dynamic_conv_transpose(
            torch.ones(2, 3, 5), torch.ones(2, 4), torch.ones(4, 3, 4, 3), **theirs
        )


def test_output_padding_may_reach_the_dilation():
    assert TransposeGeometry.create(
        3, 4, (3,), padding=0, kernel_dilation=4, output_padding=3
    ).output_size((2,)) == (13,)


def test_operands_that_do_not_fit_are_refused():
    inputs, kernel = jnp.ones((2, 5, 3)), jnp.ones((4, 3, 3, 4))
    with pytest.raises(ValueError, match=r"attention.*\(2, 4\)"):
        dynamic_conv_transpose(inputs, jnp.ones((2, 3)), kernel)
    with pytest.raises(ValueError, match=r"kernel.*\(4, 3, 3, 4\).*num_experts"):
        dynamic_conv_transpose(inputs, jnp.ones((2, 4)), kernel[:, :, :2])
    with pytest.raises(ValueError, match=r"'experts'.*dynamic_conv"):
        per_sample_conv_transpose(inputs, kernel[:2], implementation="experts")
    with pytest.raises(ValueError, match=r"weight.*in_channels, out_channels / groups"):
        dynconv_torch.dynamic_conv_transpose(
            torch.ones(2, 3, 5), torch.ones(2, 4), torch.ones(4, 2, 4, 3)
        )
