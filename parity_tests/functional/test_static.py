"""few_channel_conv: a product where that is faster, and always XLA's convolution."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.static import few_channel_conv, static_conv
from parity_tests.tolerances import assert_close

# (spatial, channels, kernel size, strides, padding, further options)
CASES = {
    "image": ((9, 7), 3, (3, 3), (1, 1), [(1, 1), (1, 1)], {}),
    "strided": ((9, 7), 1, (4, 2), (2, 1), [(2, 2), (0, 1)], {}),
    "large window": ((9, 7), 1, (5, 3), (2, 1), [(2, 2), (0, 1)], {}),
    "SAME": ((8, 7), 4, (3, 2), (2, 2), "SAME", {}),
    "VALID": ((8, 7), 2, (3, 2), (1, 1), "VALID", {}),
    "1-D": ((11,), 3, (3,), (2,), "SAME", {}),
    "3-D": ((4, 5, 3), 2, (2, 3, 1), (1, 1, 1), "SAME", {}),
    "many channels": ((9, 7), 6, (3, 3), (1, 1), "SAME", {}),
    "dilated": ((9, 7), 3, (3, 3), (1, 1), "SAME", {"rhs_dilation": (2, 1)}),
    "transposed": (
        (5, 4),
        3,
        (3, 3),
        (1, 1),
        [(1, 1), (2, 1)],
        {"lhs_dilation": (2, 2)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_equals_the_convolution_of_xla(name, rng):
    spatial, channels, size, strides, padding, options = CASES[name]
    inputs = jnp.asarray(rng.normal(size=(2, *spatial, channels)))
    kernel = jnp.asarray(rng.normal(size=(*size, channels, 5)))
    letters = "DHW"[-len(spatial) :]
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")

    def results(conv, **options) -> dict[str, jax.Array]:
        outputs, pull = jax.vjp(
            lambda *operands: conv(*operands, strides, padding, **options),
            inputs,
            kernel,
        )
        gradients = pull(jnp.cos(outputs))
        return {"y": outputs, "x": gradients[0], "kernel": gradients[1]}

    actual = results(few_channel_conv, **options)
    expected = results(lax.conv_general_dilated, dimension_numbers=numbers, **options)
    assert_close(actual, expected, dtype="float64")


@pytest.mark.parametrize(
    ("channels", "size", "is_product"),
    [(4, (3, 3), True), (5, (3, 3), False), (3, (3, 4), False)],
)
def test_small_windows_of_few_channels_are_a_product_on_a_cpu(
    channels, size, is_product
):
    inputs, kernel = jnp.ones((2, 9, 7, channels)), jnp.ones((*size, channels, 8))

    def program(platform):
        def apply(inputs, kernel):
            return few_channel_conv(inputs, kernel, (1, 1), "SAME")

        traced = jax.jit(apply).trace(inputs, kernel)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert ("stablehlo.convolution" not in program("cpu")) == is_product
    assert "stablehlo.convolution" in program("cuda")
    assert "stablehlo.convolution" in program("tpu")


def test_a_layer_of_flax_makes_use_of_the_product():
    layer = nnx.Conv(
        3, 8, (3, 3), conv_general_dilated=few_channel_conv, rngs=nnx.Rngs(0)
    )
    program = jax.jit(lambda inputs: layer(inputs)).lower(
        jnp.ones((2, 9, 7, 3), jnp.float32)
    )
    assert "stablehlo.convolution" not in program.as_text()


# (channels, outputs, kernel size, strides, padding, dilation, groups)
WIDE_KERNELS = {
    "plain": (3, 4, (3, 2), (1, 1), "SAME", (1, 1), 1),
    "strided": (3, 4, (3, 3), (2, 3), ((2, 0), (1, 1)), (1, 1), 1),
    "dilated": (3, 4, (3, 2), (1, 1), "VALID", (2, 3), 1),
    "grouped": (4, 6, (3, 3), (2, 1), "SAME", (1, 1), 2),
    "depthwise": (4, 8, (3, 3), (1, 2), "SAME", (1, 1), 4),
}


def wide_geometry(name):
    channels, outputs, size, strides, padding, dilation, groups = WIDE_KERNELS[name]
    return Geometry.create(
        *(channels, outputs, size),
        strides=strides,
        padding=padding,
        kernel_dilation=dilation,
        feature_group_count=groups,
    )


def wide_operands(geometry, rng):
    """Returns inputs, a wider kernel and a cotangent."""
    sizes = geometry.output_size((9, 7))
    return (
        jnp.asarray(rng.normal(size=(2, 9, 7, geometry.in_features)), jnp.bfloat16),
        jnp.asarray(rng.normal(size=geometry.kernel_shape), jnp.float32),
        jnp.asarray(rng.normal(size=(2, *sizes, geometry.out_features)), jnp.bfloat16),
    )


def wide_results(geometry, inputs, kernel, cotangent) -> dict[str, jax.Array]:
    found, pull = jax.vjp(
        lambda x, w: static_conv(x, w, geometry, Numerics()), inputs, kernel
    )
    of_inputs, of_kernel = pull(cotangent)
    return {"y": found, "x": of_inputs, "kernel": of_kernel}


@pytest.mark.parametrize("name", WIDE_KERNELS)
def test_a_wider_kernel_is_rounded_and_its_gradient_is_not(name, rng):
    geometry = wide_geometry(name)
    operands = wide_operands(geometry, rng)

    def widened(array: jax.Array) -> jax.Array:
        return array.astype(jnp.bfloat16).astype(jnp.float32)

    actual = wide_results(geometry, *operands)
    expected = wide_results(geometry, *map(widened, operands))
    assert actual["kernel"].dtype == jnp.float32
    assert_close(
        {"kernel": actual.pop("kernel")},
        {"kernel": expected.pop("kernel")},
        dtype="float32",
    )
    assert_close(actual, expected, dtype="bfloat16")


@pytest.mark.parametrize("name", WIDE_KERNELS)
def test_a_wider_kernel_that_is_mapped_has_a_gradient_as_if_it_were_not(name, rng):
    geometry = wide_geometry(name)
    members = [wide_operands(geometry, rng) for _ in range(3)]
    stacks = [jnp.stack(each) for each in zip(*members, strict=True)]
    mapped = jax.jit(jax.vmap(functools.partial(wide_results, geometry)))
    actual = mapped(*stacks)
    each = [wide_results(geometry, *member) for member in members]
    expected = jax.tree.map(lambda *parts: jnp.stack(parts), *each)
    assert actual["kernel"].dtype == jnp.float32
    of_kernel = [{"kernel": found.pop("kernel")} for found in (actual, expected)]
    assert_close(*of_kernel, dtype="float32")
    assert_close(actual, expected, dtype="bfloat16")
    for platform in ("cpu", "tpu", "cuda"):
        lowered = mapped.trace(*stacks).lower(lowering_platforms=(platform,))
        counts = re.findall(r"_group_count ?= ?(\d+)", lowered.as_text())
        assert {int(count) for count in counts} <= {1, geometry.feature_group_count}


def test_a_wider_kernel_has_second_derivatives(rng):
    geometry = wide_geometry("strided")
    operands = wide_operands(geometry, rng)

    def slope(inputs, kernel, cotangent):
        def length(inputs, kernel):
            found = wide_results(geometry, inputs, kernel, cotangent)
            of_inputs = found["x"].astype(jnp.float32)
            return jnp.sin(found["kernel"]).sum() + jnp.sin(of_inputs).sum()

        return dict(zip("xw", jax.grad(length, (0, 1))(inputs, kernel), strict=True))

    actual = slope(*operands)
    expected = slope(*(each.astype(jnp.float32) for each in operands))
    assert_close(actual, expected, dtype="bfloat16")
