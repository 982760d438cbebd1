"""The two ways to apply all experts: gathered windows, and one convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynconv_jax.functional.cost import Plan
from dynconv_jax.functional.dynamic import dynamic_conv_by_plan
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics
from parity_tests.tolerances import assert_close
from parity_tests.tools.cases import CASES

NAMES = ("inputs", "attention", "kernel")
BY_CONVOLUTION = Plan("experts by convolution")


def operands(case, rng, dtype="float64"):
    kernel = (*case.kernel_size, case.width, case.outputs)
    arrays = (
        case.inputs(rng),
        rng.normal(size=(case.batch, case.num_experts)),
        rng.normal(size=(case.num_experts, *kernel)),
    )
    return tuple(jnp.asarray(array, dtype) for array in arrays)


def function_of(case, plan):
    geometry = Geometry.create(
        case.channels, case.outputs, case.kernel_size, **case.jax_geometry
    )

    def convolve(inputs, attention, kernel, spatial=None):
        return dynamic_conv_by_plan(
            plan, inputs, attention, kernel, geometry, Numerics(), spatial
        )

    return convolve


def results(case, arrays, plan):
    """Outputs and gradients under a random cotangent."""

    @jax.jit
    def run(*arrays):
        outputs, pullback = jax.vjp(function_of(case, plan), *arrays)
        cotangent = np.random.default_rng(1).normal(size=outputs.shape)
        return outputs, pullback(jnp.asarray(cotangent, outputs.dtype))

    outputs, gradients = run(*arrays)
    return {"output": outputs, **dict(zip(NAMES, gradients, strict=False))}


DENSE = [name for name, case in CASES.items() if case.groups == 1]


@pytest.mark.parametrize("name", DENSE)
def test_one_convolution_equals_gathered_windows(name, rng):
    case = CASES[name]
    arrays = operands(case, rng)
    expected = results(case, arrays, Plan("experts"))
    assert_close(results(case, arrays, BY_CONVOLUTION), expected, dtype="float64")


def test_a_single_expert_without_attention_is_a_static_convolution(rng):
    case = CASES["one expert"]
    inputs, _, kernel = operands(case, rng)
    ones = jnp.ones((case.batch, 1))
    apply = function_of(case, BY_CONVOLUTION)
    actual, expected = apply(inputs, None, kernel), apply(inputs, ones, kernel)
    assert_close({"output": actual}, {"output": expected}, dtype="float64")


@pytest.mark.parametrize("name", ["2d strided", "3d"])
def test_bfloat16_agrees_with_float64(name, rng):
    case = CASES[name]
    narrow = operands(case, rng, "bfloat16")
    actual = results(case, narrow, BY_CONVOLUTION)
    assert {part.dtype for part in actual.values()} == {jnp.dtype("bfloat16")}
    exact = tuple(array.astype("float64") for array in narrow)
    expected = function_of(case, Plan("experts"))(*exact)
    output = {"output": actual["output"]}
    assert_close(output, {"output": expected}, dtype="bfloat16")


def test_groups_are_taken_by_gathered_windows(rng):
    case = CASES["2d grouped"]
    arrays = operands(case, rng)
    programs = [
        jax.jit(function_of(case, plan)).lower(*arrays).as_text()
        for plan in (BY_CONVOLUTION, Plan("experts"))
    ]
    assert programs[0] == programs[1]


def test_spatial_attention_is_taken_by_gathered_windows(rng):
    case = CASES["2d strided"]
    spatial = jnp.asarray(rng.normal(size=(case.batch, *case.kernel_size)))
    arrays = (*operands(case, rng), spatial)
    expected = results(case, arrays, Plan("experts"))
    assert_close(results(case, arrays, BY_CONVOLUTION), expected, dtype="float64")


def test_it_is_one_convolution_and_each_gradient_one_more(rng):
    case = CASES["2d strided"]
    arrays = operands(case, rng)

    def loss(*arrays):
        return jnp.sin(function_of(case, BY_CONVOLUTION)(*arrays)).sum()

    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).as_text()
    assert program.count("stablehlo.convolution") == 3
    assert "stablehlo.dot_general" not in program
