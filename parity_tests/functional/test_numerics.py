"""Products of rounded numbers, whose gradients are sums that are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynconv_jax import dynamic_conv
from dynconv_jax.functional.numerics import contract_rounded, is_widened
from parity_tests.tolerances import assert_close

MIX = "bk,kn->bn"


@pytest.mark.parametrize(
    ("dtype", "narrow", "expected"),
    [
        ("float32", "bfloat16", True),
        ("float32", "float16", True),
        ("float32", "float32", False),
        ("float64", "float64", False),
        ("float64", "float32", False),
        ("float64", "bfloat16", False),
        ("bfloat16", "float32", False),
        ("bfloat16", "bfloat16", False),
        ("float32", "int8", False),
    ],
)
def test_only_float32_beside_narrower_floats_is_widened(dtype, narrow, expected):
    assert is_widened(jnp.dtype(dtype), jnp.dtype(narrow)) == expected


def operands(rng):
    shapes = (256, 4), (4, 30)
    return [jnp.asarray(rng.uniform(size=shape), jnp.float32) for shape in shapes]


def rounded(array, narrow):
    return np.asarray(array.astype(narrow), np.float64)


@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16])
def test_gradients_are_float32_sums_of_narrow_products(narrow, rng):
    attention, experts = operands(rng)
    cotangent = jnp.asarray(rng.normal(size=(256, 30)), narrow)

    def mix(attention, experts):
        return contract_rounded(MIX, attention, experts, narrow, narrow)

    outputs, pull = jax.vjp(mix, attention, experts)
    assert outputs.dtype == narrow
    gradients = pull(cotangent)
    actual = {"attention": gradients[0], "experts": gradients[1]}
    wide = np.asarray(cotangent, np.float64)
    expected = {
        "attention": wide @ rounded(experts, narrow).T,
        "experts": rounded(attention, narrow).T @ wide,
    }
    assert all(each.dtype == jnp.float32 for each in actual.values())
    assert_close(actual, expected, dtype="float32")


def test_narrow_experts_have_gradients_rounded_once(rng):
    attention, experts = operands(rng)

    def loss(experts):
        outputs = contract_rounded(MIX, attention, experts, "bfloat16", "bfloat16")
        return outputs.astype(jnp.float32).sum()

    narrow = jax.grad(loss)(experts.astype(jnp.bfloat16))
    wide = jax.grad(loss)(experts)
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))
    assert (wide != narrow.astype(jnp.float32)).any()


def test_derivatives_of_either_mode_and_order_are_those_of_the_product(rng):
    attention, experts = operands(rng)
    tangents = operands(rng)

    def derivatives(product):
        def value(attention, experts):
            return jnp.square(product(attention, experts).astype(jnp.float32)).mean()

        forward = jax.jvp(value, (attention, experts), tuple(tangents))[1]
        one = jax.jvp(lambda k: value(attention, k), (experts,), (tangents[1],))[1]
        gradient = jax.grad(value, argnums=(0, 1))
        twice = jax.jvp(gradient, (attention, experts), tuple(tangents))[1]
        mapped = jax.vmap(jax.grad(value, argnums=1), (0, None))(
            jnp.stack([attention, -attention]), experts
        )
        found = dict(forward=forward, one=one, mapped=mapped)
        return found | {"attention": twice[0], "experts": twice[1]}

    def rounded_product(attention, experts):
        return contract_rounded(MIX, attention, experts, "bfloat16", "bfloat16")

    # One program each: operation by operation it takes seconds.
    differentiate = jax.jit(derivatives, static_argnums=0)
    actual, expected = map(differentiate, (rounded_product, jnp.matmul))
    assert_close(actual, expected, dtype="bfloat16")


@pytest.mark.parametrize("form", ["patches", "scan", "experts"])
def test_experts_may_wait_to_be_rounded(form, rng):
    inputs = jnp.asarray(rng.normal(size=(64, 5, 4, 3)), jnp.bfloat16)
    attention = jnp.asarray(rng.uniform(size=(64, 2)), jnp.float32)
    experts = jnp.asarray(rng.normal(size=(2, 3, 3, 3, 4)), jnp.float32)

    def conv(experts):
        return dynamic_conv(inputs, attention, experts, implementation=form)

    outputs, pull = jax.vjp(conv, experts)
    assert outputs.dtype == jnp.bfloat16
    np.testing.assert_array_equal(outputs, conv(experts.astype(jnp.bfloat16)))
    (gradient,) = pull(jnp.ones_like(outputs))
    assert gradient.dtype == jnp.float32
    # A number of eight bits has none of the last sixteen.
    assert (gradient != gradient.astype(jnp.bfloat16).astype(jnp.float32)).any()
