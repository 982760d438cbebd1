"""The taps that have samples beside channels, against the mapped convolution."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynconv_jax.functional.cost import Plan
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.per_sample import per_sample_conv_by_plan
from parity_tests.tolerances import assert_close
from parity_tests.tools.cases import CASES, Case
from parity_tests.tools.exported import exported

BATCHED, REFERENCE = Plan("batched taps"), Plan("vmap")
DEPTHWISE = {
    name: dataclasses.replace(case, groups=case.channels, width=1)
    for name, case in CASES.items()
    if name in ("1d dilated, strided", "2d", "2d uneven", "2d cropped", "3d")
} | {
    "multiplied": CASES["2d depthwise, multiplied"],
    "beyond the input": Case(
        (3, 2), (5, 4), (2, 1), ((2, 2), (2, 1)), (1, 1), groups=4, width=1
    ),
    # Of every stride some pixels are reached by no tap.
    "strided beyond the kernel": Case(
        (7, 8), (2, 1), (3, 2), ((0, 0), (1, 0)), (1, 1), groups=4, width=1
    ),
}


def operands(case, rng, dtype="float64"):
    kernel = (case.batch, *case.kernel_size, 1, case.outputs)
    arrays = case.inputs(rng), rng.normal(size=kernel)
    return tuple(jnp.asarray(array, dtype) for array in arrays)


def convolution(case, plan):
    geometry = Geometry.create(
        case.channels, case.outputs, case.kernel_size, **case.jax_geometry
    )

    def convolve(inputs, kernel):
        return per_sample_conv_by_plan(plan, inputs, kernel, geometry, Numerics())

    return convolve


def gradients(case, plan):
    def loss(inputs, kernel):
        outputs = convolution(case, plan)(inputs, kernel)
        return jnp.sin(outputs).sum(), outputs

    def run(*arrays):
        parts, outputs = jax.grad(loss, (0, 1), has_aux=True)(*arrays)
        return {"inputs": parts[0], "kernel": parts[1], "output": outputs}

    return run


@pytest.mark.parametrize("name", DEPTHWISE)
def test_outputs_and_gradients_equal_the_mapped_convolution(name, rng):
    case = DEPTHWISE[name]
    arrays = operands(case, rng)
    expected = jax.jit(gradients(case, REFERENCE))(*arrays)
    actual = jax.jit(gradients(case, BATCHED))(*arrays)
    assert_close(actual, expected, dtype="float64")


def test_gradients_of_gradients(rng):
    case = DEPTHWISE["multiplied"]
    arrays = operands(case, rng)

    def slope(plan) -> dict[str, jax.Array]:
        def length(*arrays):
            parts = gradients(case, plan)(*arrays)
            return jnp.sin(parts["inputs"]).sum() + jnp.sin(parts["kernel"]).sum()

        parts = jax.jit(jax.grad(length, (0, 1)))(*arrays)
        return dict(zip(("inputs", "kernel"), parts, strict=True))

    assert_close(slope(BATCHED), slope(REFERENCE), dtype="float64")


def test_bfloat16_is_summed_in_float32(rng):
    case = DEPTHWISE["multiplied"]
    narrow = operands(case, rng, "bfloat16")
    actual = jax.jit(gradients(case, BATCHED))(*narrow)
    assert {part.dtype for part in actual.values()} == {jnp.dtype("bfloat16")}
    exact = convolution(case, REFERENCE)(*(each.astype("float64") for each in narrow))
    output = {"output": actual["output"]}
    assert_close(output, {"output": exact}, dtype="bfloat16")


@pytest.mark.parametrize("name", ["2d uneven", "multiplied"])
def test_any_size_is_taken(name, rng):
    case = DEPTHWISE[name]
    run = gradients(case, BATCHED)
    kernel = (*map(str, case.kernel_size), "1", str(case.outputs))
    artifact = exported(
        run,
        f"b, h, w, {case.channels}",
        f"b, {', '.join(kernel)}",
        constraints=["h >= 6", "w >= 6"],
        dtype="float64",
    )
    larger = dataclasses.replace(case, batch=3, spatial=(9, 7))
    arrays = operands(larger, rng)
    actual: Any = artifact.call(*(np.asarray(array) for array in arrays))
    assert_close(actual, jax.jit(run)(*arrays), dtype="float64")


def test_an_ensemble_is_mapped(rng):
    case = DEPTHWISE["multiplied"]
    members = [operands(case, rng) for _ in range(2)]
    stacked = [jnp.stack(each) for each in zip(*members, strict=True)]
    mapped = jax.jit(jax.vmap(gradients(case, BATCHED)))(*stacked)
    for index, arrays in enumerate(members):
        own = jax.jit(gradients(case, BATCHED))(*arrays)
        actual = {name: part[index] for name, part in mapped.items()}
        assert_close(actual, own, dtype="float64")
