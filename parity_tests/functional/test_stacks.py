"""How stacks of convolutions are computed: every plan, and the choice between them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dynconv_jax.functional.chips import Target
from dynconv_jax.functional.conv_geometry import ConvGeometry
from dynconv_jax.functional.conv_operation import ConvOperation
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.stacks import StackedConv, StackPlan, stack_on
from parity_tests.tolerances import assert_close

# Of 6 kernels, each with 4 images.
STACK, IMAGES, SPATIAL = 6, 4, (5, 7)
ROLES = ("inputs", "kernel", "outputs")


def operation_of(result, spatial=SPATIAL, channels=6, outputs=10, **options):
    options = {"padding": (1, (0, 2)), **options}
    geometry = ConvGeometry.create(channels, outputs, (3, 2), **options)
    return ConvOperation(result, geometry, spatial, Numerics(), is_stacked=True)


def types_of(operation, stack=STACK, images=IMAGES, dtype=jnp.float64):
    geometry, spatial = operation.geometry, operation.spatial
    output_size = geometry.output_size(spatial)
    shapes = {
        "inputs": (stack, images, *spatial, geometry.in_features),
        "kernel": (stack, *geometry.kernel_shape),
        "outputs": (stack, images, *output_size, geometry.out_features),
    }
    return [jax.ShapeDtypeStruct(shapes[role], dtype) for role in operation.operands]


PLANS = [
    StackPlan("patches"),
    StackPlan("patches", 1),
    StackPlan("patches", 4),
    StackPlan("xla", 1),
    StackPlan("row_conv"),
]


@pytest.mark.parametrize("result", ROLES)
def test_depthwise_a_convolution_has_the_kernels_as_an_axis_too(result, rng):
    options = dict(channels=6, outputs=12, feature_group_count=6, strides=2)
    operation = operation_of(result, **options)
    operands = [jnp.asarray(rng.normal(size=t.shape)) for t in types_of(operation)]
    found, expected = (
        jax.jit(StackedConv(operation, StackPlan(form)))(*operands)[0]
        for form in ("row_conv", "taps")
    )
    assert_close({result: found}, {result: expected}, dtype="float64")


@pytest.mark.parametrize("plan", [*PLANS, StackPlan("patches", 2, parts=2)], ids=str)
@pytest.mark.parametrize("result", ROLES)
@pytest.mark.parametrize("strides", [1, 2])
def test_plans_compute_one_convolution_after_another(plan, result, strides, rng):
    if plan.parts > 1 and result != "kernel":
        plan = dataclasses.replace(plan, parts=1)
    operation = operation_of(result, strides=strides)
    operands = [jnp.asarray(rng.normal(size=t.shape)) for t in types_of(operation)]
    alone = dataclasses.replace(operation, is_stacked=False)
    expected = jnp.stack([alone(*each)[0] for each in zip(*operands, strict=True)])
    (found,) = jax.jit(StackedConv(operation, plan))(*operands)
    assert_close({result: found}, {result: expected}, dtype="float64")


def chosen(operation, platform="cpu", device_count=1, dtype=jnp.float32, **sizes):
    types = types_of(operation, dtype=dtype, **sizes)
    return stack_on(Target(platform, device_count), operation, *types).plan


@pytest.mark.parametrize("result", ["outputs", "inputs"])
def test_on_a_cpu_large_convolutions_are_xlas_one_after_another(result):
    operation = operation_of(result, (16, 16), 32, 32)
    assert chosen(operation, stack=8, images=16) == StackPlan("xla", 1)


def test_on_a_cpu_the_gradient_of_large_kernels_is_a_loop_of_products():
    plan = chosen(operation_of("kernel", (16, 16), 32, 32), stack=8, images=16)
    assert plan.form == "patches" and plan.chunk is not None


def test_gradient_of_a_kernel_with_many_images_takes_a_part_of_them_at_a_time():
    plan = chosen(operation_of("kernel", (32, 32), 64, 64), stack=2, images=128)
    assert plan.parts > 1


@pytest.mark.parametrize("result", ROLES)
def test_many_small_convolutions_are_taken_many_at_a_time(result):
    plan = chosen(operation_of(result, (7, 7), 8, 8), stack=1024, images=1)
    assert plan.form == "patches" and plan.chunk in (None, 8, 16, 32)


def test_images_of_few_channels_are_a_product():
    assert chosen(operation_of("outputs", (32, 32), 3, 32)).form == "patches"


@pytest.mark.parametrize("place", [("tpu", 4), ("gpu", 1), ("cpu", 4)])
@pytest.mark.parametrize("result", ROLES)
def test_elsewhere_a_stack_is_one_product(place, result):
    operation = operation_of(result, (16, 16), 32, 32)
    assert chosen(operation, *place) == StackPlan("patches")


@pytest.mark.parametrize("result", ROLES)
@pytest.mark.parametrize("strides", [1, 2])
def test_on_one_tpu_a_stack_is_a_convolution_with_the_kernels_as_an_axis(
    result, strides
):
    for groups in (1, 32):
        options = dict(strides=strides, feature_group_count=groups)
        operation = operation_of(result, (16, 16), 32, 32, **options)
        assert chosen(operation, "tpu") == StackPlan("row_conv")


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_elsewhere_a_stack_of_one_is_xlas_convolution(platform):
    operation = operation_of("outputs", (16, 16), 32, 32)
    assert chosen(operation, platform, stack=1) == StackPlan("xla")


def test_depthwise_convolutions_are_sums_of_taps():
    operation = operation_of("outputs", channels=6, outputs=12, feature_group_count=6)
    assert chosen(operation) == StackPlan("taps")


@pytest.mark.parametrize("result", ROLES)
def test_images_of_one_channel_are_not_taken_for_depthwise(result):
    assert chosen(operation_of(result, channels=1)).form == "patches"


@pytest.mark.parametrize("form", ["patches", "row_conv"])
def test_a_wide_gradient_of_narrow_operands_is_not_rounded(form, rng):
    operation = dataclasses.replace(operation_of("kernel"), kernel_dtype=jnp.float32)
    narrow = [
        jnp.asarray(rng.normal(size=each.shape), jnp.bfloat16)
        for each in types_of(operation)
    ]
    wide = [each.astype(jnp.float32) for each in narrow]
    plan = StackPlan(form)
    (found,) = jax.jit(StackedConv(operation, plan))(*narrow)
    (expected,) = jax.jit(StackedConv(operation_of("kernel"), plan))(*wide)
    assert found.dtype == jnp.float32
    assert_close({"kernel": found}, {"kernel": expected}, dtype="float32")
