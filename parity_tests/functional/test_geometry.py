"""Geometry: what both frameworks accept, what both refuse, and with which words."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from jax import lax

from dynconv_jax import per_sample_conv
from dynconv_jax.functional.geometry import Geometry
from dynconv_torch.functional.geometry import Geometry as TorchGeometry
from parity_tests.parity import assert_parity
from parity_tests.tools.cases import Case, convolutions

REFUSALS = {
    "bare int as kernel size": (dict(kernel_size=3), TypeError, r"kernel_size.*\(=3\)"),
    "rank 4": (dict(kernel_size=(1, 1, 1, 1)), ValueError, "kernel_size.*1, 2 or 3"),
    "empty kernel": (dict(kernel_size=(0, 3)), ValueError, r"kernel_size.*\(=0\)"),
    "zero stride": (dict(strides=0), ValueError, r"strides.*\(=0\).*at least 1"),
    "strides for another rank": (dict(strides=(1, 1, 1)), ValueError, "strides.*3 ent"),
    "fractional stride": (dict(strides=1.5), TypeError, r"strides.*\(=1.5\)"),
    "bool as stride": (dict(strides=True), TypeError, r"strides.*\(=True\)"),
    "zero dilation": (dict(kernel_dilation=0), ValueError, r"kernel_dilation.*\(=0\)"),
    "unknown padding": (dict(padding="CIRCULAR"), ValueError, "padding.*'CIRCULAR'"),
    "padding of a triple": (dict(padding=((1, 1, 1), 1)), ValueError, "padding"),
    "padding for another rank": (dict(padding=(1,)), ValueError, "padding.*2 entries"),
    "no groups": (dict(feature_group_count=0), ValueError, "feature_group_count"),
    "indivisible inputs": (
        dict(in_features=7, feature_group_count=2),
        ValueError,
        r"in_features` \(=7\) must be divisible by `feature_group_count` \(=2\)",
    ),
    "indivisible outputs": (
        dict(out_features=7, feature_group_count=2),
        ValueError,
        r"out_features` \(=7\) must be divisible by `feature_group_count` \(=2\)",
    ),
    "no inputs": (dict(in_features=0), ValueError, r"in_features` \(=0\)"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_geometry_is_refused_by_name_and_value(name):
    changed, error, message = REFUSALS[name]
    arguments = dict(in_features=4, out_features=6, kernel_size=(3, 3)) | changed
    with pytest.raises(error, match=message):
        Geometry.create(**arguments)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [5, 6, 7, 8])
@pytest.mark.parametrize("padding", ["SAME", "VALID", "same"])
def test_named_padding_is_that_of_xla(size, stride, padding):
    geometry = Geometry.create(1, 1, (4,), strides=stride, padding=padding)
    expected = lax.padtype_to_pads((size,), (4,), (stride,), padding.upper())
    assert geometry.pads((size,)) == tuple(expected)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 5, 6, 7, 8])
@pytest.mark.parametrize("extent", [1, 2, 5])
def test_tf_same_padding_of_the_twin_is_that_of_xla(extent, size, stride):
    geometry = TorchGeometry.create(
        1, 1, extent, rank=1, stride=stride, padding="TF_same"
    )
    expected = lax.padtype_to_pads((size,), (extent,), (stride,), "SAME")
    assert geometry.pads((size,)) == tuple(expected)
    assert geometry.output_size((size,)) == (-(-size // stride),)


def test_same_padding_of_the_twin_with_a_stride_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match="stride of 1 only.*'tf_same'"):
        TorchGeometry.create(2, 4, 3, rank=1, stride=2, padding="same")


@pytest.mark.parametrize("padding", ["same", "valid", 0, 2, (1,), ((2, 1),)])
def test_output_size_is_the_same_in_both_frameworks(padding):
    ours = Geometry.create(2, 4, (3,), padding=padding, kernel_dilation=2)
    theirs = TorchGeometry.create(2, 4, 3, rank=1, padding=padding, dilation=2)
    assert ours.output_size((9,)) == theirs.output_size((9,))


def test_window_beyond_the_padded_input_is_refused():
    with pytest.raises(ValueError, match=r"kernel_size.*\(5, 3\).*pad more"):
        per_sample_conv(
            jnp.ones((1, 3, 9, 2)), jnp.ones((1, 5, 3, 2, 4)), padding="VALID"
        )


def test_empty_plane_is_refused():
    with pytest.raises(ValueError, match="empty spatial dimension"):
        per_sample_conv(jnp.ones((1, 0, 9, 2)), jnp.ones((1, 3, 3, 2, 4)), padding=2)


def accepted(call) -> bool:
    try:
        call()
    except ValueError:
        return False
    return True


@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(case=convolutions())
def test_both_frameworks_agree_or_both_refuse(case: Case):
    inputs = case.inputs(np.random.default_rng(0))
    ours = Geometry.create(
        case.channels, case.outputs, case.kernel_size, **case.jax_geometry
    )
    theirs = TorchGeometry.create(
        case.channels,
        case.outputs,
        case.kernel_size,
        rank=len(case.spatial),
        **case.torch_geometry,
    )
    ours_accepts = accepted(lambda: ours.output_size(case.spatial))
    assert ours_accepts == accepted(lambda: theirs.output_size(case.spatial))
    if ours_accepts:
        assert_parity(case.jax_layer(), case.torch_layer(), inputs)
    else:
        with pytest.raises(ValueError, match="pad more"):
            case.jax_layer()(jnp.asarray(inputs))
