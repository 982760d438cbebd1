"""What is compiled: how much memory, how often, how large; and what is reused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dynconv_jax import DynamicConv, DynamicNet, dynamic_conv, set_temperature

DEFAULT_NUMERICS = True

# (batch, side, C, O, kernel side, stride, groups): layers on large planes.
LARGE_PLANES = {
    "3×3": (8, 56, 32, 32, 3, 1, 1),
    "5×5": (8, 56, 32, 32, 5, 1, 1),
    "1×1": (8, 56, 32, 48, 1, 1, 1),
    "strided": (8, 64, 32, 64, 3, 2, 1),
    "depthwise": (8, 14, 64, 64, 3, 1, 64),
}


def gradient_memory(layer, shape):
    """Compiles the gradient by parameters and input; returns all the bytes it needs."""
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    def gradient(params, x):
        def loss(params, x):
            return jnp.square(nnx.merge(graphdef, params, rest)(x)).sum()

        return jax.grad(loss, argnums=(0, 1))(params, x)

    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    analysis = jax.jit(gradient).lower(params, x).compile().memory_analysis()
    assert analysis is not None
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
    )


def memories(name, implementation):
    """Returns the bytes of the gradient: of the layer, and of a static one."""
    batch, side, features, outputs, kernel, stride, groups = LARGE_PLANES[name]
    options: dict[str, Any] = dict(
        strides=stride,
        feature_group_count=groups,
        padding=kernel // 2,
        rngs=nnx.Rngs(0),
    )
    arguments = (features, outputs, (kernel, kernel))
    shape = (batch, side, side, features)
    dynamic = DynamicConv(*arguments, implementation=implementation, **options)
    static = nnx.Conv(*arguments, use_bias=False, **options)
    return gradient_memory(dynamic, shape), gradient_memory(static, shape)


@pytest.mark.parametrize("name", LARGE_PLANES)
def test_gradient_needs_at_most_twice_the_memory_of_a_static_convolution(name):
    dynamic, static = memories(name, "auto")
    assert dynamic <= 2 * static


def test_gradient_of_the_mapped_convolution_needs_more():
    dynamic, static = memories("depthwise", "vmap")
    assert dynamic > 2 * static


def counted(function):
    """Returns the function jitted, and a list that grows with every trace."""
    traces = []

    def traced(*arguments):
        traces.append(None)
        return function(*arguments)

    return jax.jit(traced), traces


def test_routing_values_and_temperatures_cause_no_recompilation(rng):
    layer = DynamicConv(3, 4, (3, 3), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(layer)
    apply, traces = counted(lambda state, x, a: nnx.merge(graphdef, state)(x, a))
    x = jnp.asarray(rng.normal(size=(2, 7, 6, 3)), jnp.float32)
    outputs = []
    for temperature in (1.0, 30.0):
        set_temperature(layer, temperature)
        for attention in np.eye(4, dtype=np.float32)[:2]:
            rows = jnp.stack([attention, attention])
            outputs.append(apply(nnx.state(layer), x, rows))
    assert len(traces) == 1
    assert not np.allclose(outputs[0], outputs[1])


def test_equal_shapes_compile_once(rng):
    kernel = jnp.asarray(rng.normal(size=(2, 3, 3, 3, 4)), jnp.float32)
    apply, traces = counted(lambda x, a: dynamic_conv(x, a, kernel))
    for _ in range(3):
        x = jnp.asarray(rng.normal(size=(5, 7, 6, 3)), jnp.float32)
        apply(x, jnp.asarray(rng.normal(size=(5, 2)), jnp.float32))
    assert len(traces) == 1


@pytest.mark.parametrize("form", ["auto", "patches", "rows", "scan", "experts", "taps"])
def test_programs_do_not_grow_with_the_batch(form):
    """What takes time to compile is the operations, so those are counted."""
    groups = 6 if form == "taps" else 1
    kernel = jnp.ones((3, 3, 3, 6 // groups, 6))

    def gradient(x, a):
        def loss(x, a):
            outputs = dynamic_conv(
                x, a, kernel, feature_group_count=groups, implementation=form
            )
            return jnp.square(outputs).sum()

        return jax.grad(loss, argnums=(0, 1))(x, a)

    def operations(batch):
        shapes = ((batch, 9, 7, 6), (batch, 3))
        operands = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        return jax.jit(gradient).lower(*operands).as_text().count(" = ")

    assert operations(4096) == operations(512)


@pytest.mark.slow
def test_training_step_reuses_the_memory_of_what_is_donated():
    net = DynamicNet(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.adam(1e-3), wrt=nnx.Param)
    graphdef, state = nnx.split((net, optimizer))

    def step(state, images, labels):
        net, optimizer = nnx.merge(graphdef, state)

        def loss_of(net):
            losses = optax.softmax_cross_entropy_with_integer_labels(
                net(images), labels
            )
            return losses.mean()

        gradients = nnx.grad(loss_of)(net)
        optimizer.update(net, gradients)
        return nnx.state((net, optimizer))

    operands = (state, jnp.ones((4, 16, 12, 3)), jnp.zeros(4, jnp.int32))
    compiled = jax.jit(step, donate_argnums=0).lower(*operands).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert analysis.alias_size_in_bytes >= state_bytes
    assert "may-alias" in (compiled.as_text() or "")
    compiled(*operands)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
