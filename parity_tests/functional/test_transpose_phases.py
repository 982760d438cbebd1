"""The phases of a transposed convolution: what each computes, and no more."""

import math

import jax
import jax.numpy as jnp
import pytest

from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.transpose_geometry import TransposeGeometry
from dynconv_jax.functional.transpose_phases import along_each_axis, conv_by_phases
from parity_tests.tools.cases import TRANSPOSE_CASES


def geometry_of(case):
    return TransposeGeometry.create(
        case.channels, case.outputs, case.kernel_size, **case.jax_geometry
    )


@pytest.mark.parametrize("name", TRANSPOSE_CASES)
def test_phases_have_each_output_and_each_tap_that_reaches_one_once(name):
    case = TRANSPOSE_CASES[name]
    geometry = geometry_of(case)
    sizes = geometry.output_size(case.spatial)
    for axis, phases in enumerate(along_each_axis(geometry, case.spatial)):
        low, _ = geometry.pads(case.spatial)[axis]
        stride, dilation = case.strides[axis], case.dilation[axis]
        assert len(phases) == stride
        for rest, phase in enumerate(phases):
            # A tap reaches the outputs that lie whole strides from where it stands.
            reached = [
                tap
                for tap in range(case.kernel_size[axis])
                if (rest + tap * dilation - low) % stride == 0
            ]
            outputs = range(rest, sizes[axis], stride)
            if phase is None:
                assert not reached or not outputs
                continue
            assert list(range(case.kernel_size[axis]))[phase.taps] == reached
            assert phase.size == len(outputs)
            # A convolution of this padding has as many outputs.
            extent = (len(reached) - 1) * phase.dilation + 1
            whole = case.spatial[axis] + sum(phase.padding)
            assert whole - extent + 1 == phase.size


@pytest.mark.parametrize("name", ["1d", "2d, uneven", "3d"])
def test_nothing_is_interleaved_beyond_whole_strides_of_the_output(name):
    case = TRANSPOSE_CASES[name]
    geometry = geometry_of(case)
    shapes = (
        (case.batch, *case.spatial, case.channels),
        (1, *geometry.kernel_shape),
    )

    def convolve(inputs, kernel, plain):
        size = plain.output_size(inputs.shape[1:-1])
        return jnp.zeros((len(inputs), *size, plain.out_features))

    def interleave(inputs, kernel):
        return conv_by_phases(inputs, kernel, geometry, Numerics(), convolve)

    program = jax.make_jaxpr(interleave)(*map(jnp.ones, shapes))
    largest = max(
        variable.aval.size for eqn in program.eqns for variable in eqn.outvars
    )
    whole = [
        math.ceil(size / stride) * stride
        for size, stride in zip(
            geometry.output_size(case.spatial), case.strides, strict=True
        )
    ]
    assert largest <= case.batch * math.prod(whole) * case.outputs
