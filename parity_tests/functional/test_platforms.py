"""Computations that each platform does in a form of its own.

The plans are set apart here by hand, so that they differ on small shapes too.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dynconv_jax import dynamic_conv, explain
from dynconv_jax.functional.chips import Target
from dynconv_jax.functional.cost import Plan
from dynconv_jax.functional.dynamic import PlannedDynamicConv
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.platforms import compute_where_lowered
from parity_tests.functional.test_transformations import NAMES, gradients, operands
from parity_tests.tolerances import assert_close
from parity_tests.tools.cases import CASES, EXTREMES

DENSE, DEPTHWISE = "2d strided", "2d depthwise, multiplied"
PLANS = {
    DENSE: {"cpu": Plan("rows", 2), "gpu": Plan("patches"), "tpu": Plan("experts")},
    DEPTHWISE: {
        "cpu": Plan("looped taps"),
        "gpu": Plan("taps"),
        "tpu": Plan("patches"),
    },
}
# What of a CPU plan shows in a program: a loop over the samples, or, of samples that
# one step of a loop takes all, the condition that keeps their parts from being fused.
OF_CPU = {DENSE: "stablehlo.while", DEPTHWISE: "stablehlo.case"}


def geometry_of(name):
    case = CASES[name]
    return Geometry.create(
        case.channels, case.outputs, case.kernel_size, **case.jax_geometry
    )


@dataclasses.dataclass(frozen=True)
class Placed:
    """The dynamic convolution of a case, with a plan for each platform."""

    name: str

    def on(self, target: Target) -> PlannedDynamicConv:
        plan = PLANS[self.name][target.platform]
        return PlannedDynamicConv(plan, geometry_of(self.name), Numerics())


def apply_own(name):
    """Returns the dynamic convolution of a case with plans that differ."""
    return lambda *arrays: compute_where_lowered(Placed(name), *arrays, None)


def apply_reference(name):
    case = CASES[name]
    return lambda *arrays: dynamic_conv(
        *arrays, implementation="vmap", **case.jax_geometry
    )


def curved(apply):
    """Returns a loss with second derivatives and a cotangent that is not constant."""

    def loss(*arrays):
        outputs = apply(*arrays)
        weights = jnp.arange(outputs.size, dtype=outputs.dtype).reshape(outputs.shape)
        return jnp.sum(jnp.sin(outputs) * jnp.cos(weights))

    return loss


def slope(apply):
    """Returns the gradient of the sum of cosines of a gradient."""

    def length(*arrays):
        parts = jax.grad(curved(apply), argnums=(0, 1, 2))(*arrays)
        return sum(jnp.sum(jnp.cos(part)) for part in parts)

    return lambda *arrays: gradients(length, arrays)


def pushed(apply):
    """Returns the tangent of the outputs along the operands themselves."""
    return lambda *arrays: {"tangent": jax.jvp(apply, arrays, arrays)[1]}


def pushed_gradient(apply):
    """Returns the product of the Hessian and the operands, forward over reverse."""

    def push(*arrays):
        gradient = jax.grad(curved(apply), argnums=(0, 1, 2))
        return dict(zip(NAMES, jax.jvp(gradient, arrays, arrays)[1], strict=True))

    return push


TRANSFORMED = {
    "outputs": lambda apply: lambda *arrays: {"outputs": apply(*arrays)},
    "gradient": lambda apply: lambda *arrays: gradients(curved(apply), arrays),
    "gradient, rematerialised": lambda apply: (
        lambda *arrays: gradients(jax.checkpoint(curved(apply)), arrays)
    ),
    "second gradient": slope,
    "forward mode": pushed,
    "forward mode over the gradient": pushed_gradient,
}


@pytest.mark.parametrize("transformed", TRANSFORMED)
@pytest.mark.parametrize("name", PLANS)
def test_transformed_it_equals_the_reference(name, transformed, rng):
    arrays = operands(CASES[name], rng)
    transform = TRANSFORMED[transformed]
    actual = jax.jit(transform(apply_own(name)))(*arrays)
    expected = jax.jit(transform(apply_reference(name)))(*arrays)
    assert_close(actual, expected, dtype="float64")


# What is mapped: inputs, attention, kernel.
AXES = {"all": (0, 0, 0), "inputs": (0, None, None), "kernel, last": (None, None, -1)}


@pytest.mark.parametrize("transformed", ["outputs", "gradient", "forward mode"])
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("name", PLANS)
def test_mapped_it_equals_its_parts(name, axes, transformed, rng):
    stacks = operands(CASES[name], rng, 2)
    parts = [
        [stack[index if axis is not None else 0] for stack, axis in _with(stacks, axes)]
        for index in range(2)
    ]
    arrays = [
        stack[0] if axis is None else jnp.moveaxis(stack, 0, axis)
        for stack, axis in _with(stacks, axes)
    ]
    own = TRANSFORMED[transformed](apply_own(name))
    actual = jax.jit(jax.vmap(own, in_axes=AXES[axes]))(*arrays)
    one = jax.jit(own)
    expected = jax.tree.map(lambda *each: jnp.stack(each), *(one(*a) for a in parts))
    assert_close(actual, expected, dtype="float64")


def _with(stacks, axes):
    return zip(stacks, AXES[axes], strict=True)


def test_gradient_of_a_mapped_loss_adds_up_what_is_shared(rng):
    inputs, attention, kernel = operands(CASES[DENSE], rng)
    stack = jnp.stack([inputs, 2 * inputs])

    def total(apply):
        def loss(inputs, attention, kernel):
            mapped = jax.vmap(curved(apply), in_axes=(0, None, None))
            return mapped(inputs, attention, kernel).sum()

        return lambda *arrays: gradients(loss, arrays)

    actual = total(apply_own(DENSE))(stack, attention, kernel)
    expected = total(apply_reference(DENSE))(stack, attention, kernel)
    assert_close(actual, expected, dtype="float64")


def test_in_shard_map_the_gradient_of_shared_experts_is_summed(rng):
    arrays = operands(CASES[DENSE], rng)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    data, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        apply_own(DENSE), mesh=mesh, in_specs=(data, data, whole), out_specs=data
    )
    actual = jax.jit(TRANSFORMED["gradient"](mapped))(*arrays)
    expected = TRANSFORMED["gradient"](apply_reference(DENSE))(*arrays)
    assert_close(actual, expected, dtype="float64")


def lowered(name, *platforms):
    """Returns the program of the gradient as it is lowered for platforms."""
    case = CASES[name]
    kernel = (case.num_experts, *case.kernel_size, case.width, case.outputs)
    shapes = (5, *case.spatial, case.channels), (5, case.num_experts), kernel
    gradient = jax.grad(curved(apply_own(name)), argnums=(0, 1, 2))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    traced = jax.jit(lambda *arrays: (apply_own(name)(*arrays), gradient(*arrays)))
    return traced.trace(*arrays).lower(lowering_platforms=platforms).as_text()


@pytest.mark.parametrize("name", PLANS)
def test_a_program_for_one_platform_has_the_form_of_that_platform_alone(name):
    programs = {each: lowered(name, each) for each in ("cpu", "cuda", "rocm", "tpu")}
    for platform, program in programs.items():
        for sign in ("stablehlo.while", "stablehlo.case"):
            is_own = platform == "cpu" and sign == OF_CPU[name]
            assert (sign in program) == is_own
    assert programs["cuda"] == programs["rocm"]
    assert len(set(programs.values())) == 3


def test_a_program_for_several_platforms_asks_which_it_runs_on():
    assert "stablehlo.case" in lowered(DENSE, "cpu", "cuda", "tpu")
    assert "stablehlo.case" not in lowered(DENSE, "cuda", "rocm")


def test_an_exported_program_agrees_on_this_platform(rng):
    arrays = operands(CASES[DENSE], rng)
    transform = TRANSFORMED["gradient"]
    exported = jax.export.export(
        jax.jit(transform(apply_own(DENSE))), platforms=("cpu", "cuda", "tpu")
    )(*arrays)
    expected = transform(apply_reference(DENSE))(*arrays)
    actual: Any = exported.call(*arrays)
    assert_close(actual, expected, dtype="float64")


@pytest.mark.parametrize("form", ["patches", "rows", "scan", "vmap"])
def test_a_form_that_is_the_same_everywhere_is_traced_as_it_is(form):
    def apply(*arrays):
        return dynamic_conv(*arrays, implementation=form)

    shapes = (5, 8, 7, 4), (5, 3), (3, 3, 3, 4, 6)
    program = jax.make_jaxpr(apply)(*map(jnp.ones, shapes))
    assert "compute_where_lowered" not in str(program)


SHARED = {
    # Whether devices share a batch is known when the program is lowered.
    "one device": (1, True),
    "four devices": (4, False),
}


@pytest.mark.parametrize("name", SHARED)
def test_forms_for_a_batch_on_one_device_are_not_for_several(name):
    device_count, is_alone = SHARED[name]
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Spy(Placed):
        def on(self, target: Target) -> PlannedDynamicConv:
            seen.append(target)
            return super().on(target)

    case = CASES[DENSE]
    batch = 4
    kernel = (case.num_experts, *case.kernel_size, case.width, case.outputs)
    shapes = (batch, *case.spatial, case.channels), (batch, case.num_experts), kernel
    mesh = jax.sharding.AbstractMesh(
        (device_count,), ("data",), axis_types=(AxisType.Auto,)
    )
    arrays = [
        jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes))
        )
        for shape, axes in zip(shapes, (("data",), ("data",), ()), strict=True)
    ]
    traced = jax.jit(
        lambda *each: compute_where_lowered(Spy(DENSE), *each, None)
    ).trace(*arrays)
    seen.clear()
    traced.lower(lowering_platforms=("tpu",))
    assert {(each.platform, each.device_count) for each in seen} == {
        ("tpu", device_count)
    }
    kernels, shape = (4, 3, 3, 256, 256), (32, 14, 14, 256)
    found = explain(
        shape, kernels, dtype="bfloat16", chip="v5e", device_count=device_count
    )
    forms = {each.plan.form for each in found.estimates}
    assert ("row_conv" in forms) == is_alone


def test_the_precision_is_that_of_the_trace(rng):
    def program():
        inputs, kernel = jnp.ones((32, 56, 56, 64)), jnp.ones((4, 3, 3, 64, 64))
        return jax.jit(dynamic_conv).trace(inputs, jnp.ones((32, 4)), kernel)

    with jax.default_matmul_precision("high"):
        traced = program()
    assert "precision = [HIGH, HIGH]" in traced.lower().as_text()
    assert "precision = [HIGH, HIGH]" not in program().lower().as_text()


@pytest.mark.parametrize("name", EXTREMES)
def test_chips_loop_over_no_samples_also_where_this_host_would(name):
    inputs, kernel, options = EXTREMES[name]

    def differentiate(cotangent, *arrays):
        outputs, pull = jax.vjp(lambda *each: dynamic_conv(*each, **options), *arrays)
        return outputs, pull(cotangent)

    shapes = (inputs, (inputs[0], kernel[0]), kernel)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    outputs = jax.eval_shape(lambda *each: dynamic_conv(*each, **options), *arrays)
    traced = jax.jit(differentiate).trace(outputs, *arrays)
    for platform in ("cuda", "tpu"):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "stablehlo.while" not in program
    if name != "experts":
        assert "stablehlo.while" in traced.lower(lowering_platforms=("cpu",)).as_text()


def products(function, arrays) -> int:
    """Returns how many products the compiled outputs and gradients have."""

    def differentiate(cotangent, *arrays):
        outputs, pull = jax.vjp(function, *arrays)
        return outputs, pull(cotangent)

    outputs = jax.eval_shape(function, *arrays)
    compiled = jax.jit(differentiate).lower(outputs, *arrays).compile()
    return (compiled.as_text() or "").count(" dot(")


def test_forward_and_backward_share_what_both_compute():
    case = CASES[DENSE]
    plan = PlannedDynamicConv(Plan("patches"), geometry_of(DENSE), Numerics())

    @dataclasses.dataclass(frozen=True)
    class ByPatches:
        def on(self, target: Target) -> PlannedDynamicConv:
            return plan

    kernel = (case.num_experts, *case.kernel_size, case.width, case.outputs)
    shapes = (5, *case.spatial, case.channels), (5, case.num_experts), kernel
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    direct = products(lambda x, a, k: plan(x, a, k, None), arrays)
    late = products(
        lambda *each: compute_where_lowered(ByPatches(), *each, None), arrays
    )
    assert late == direct > 0
