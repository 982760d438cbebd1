"""Every form under the transformations of JAX and of flax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from dynconv_jax import DynamicConv, DynamicNet, dynamic_conv
from parity_tests.tolerances import assert_close
from parity_tests.tools.cases import CASES

FORMS = [
    ("2d strided", form) for form in ("patches", "rows", "scan", "experts", "row_conv")
]
FORMS += [("2d depthwise, multiplied", "taps")]
NAMES: tuple[str, ...] = ("inputs", "attention", "kernel")


def operands(case, rng, *leading):
    """Inputs, attention and experts of a case, some with more leading axes."""
    kernel = (*case.kernel_size, case.width, case.outputs)
    return (
        jnp.asarray(rng.normal(size=(*leading, 5, *case.spatial, case.channels))),
        jnp.asarray(rng.normal(size=(*leading, 5, case.num_experts))),
        jnp.asarray(rng.normal(size=(*leading, case.num_experts, *kernel))),
    )


def loss_by(case, implementation):
    def loss(*operands):
        outputs = dynamic_conv(
            *operands, implementation=implementation, **case.jax_geometry
        )
        weights = np.random.default_rng(0).normal(size=outputs.shape)
        return jnp.sum(jnp.sin(outputs) * weights)

    return loss


def gradients(loss, arrays) -> dict[str, jax.Array]:
    parts = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)
    return dict(zip(NAMES, parts, strict=True))


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_ensembles_by_vmap(name, form, rng):
    case = CASES[name]
    arrays = operands(case, rng, 3)
    loss = loss_by(case, form)
    one = jax.jit(lambda *arrays: gradients(loss, arrays))
    mapped = jax.jit(jax.vmap(one))(*arrays)
    for member in range(3):
        actual = {key: value[member] for key, value in mapped.items()}
        own = one(*(array[member] for array in arrays))
        assert_close(actual, own, dtype="float64")


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_rematerialisation(name, form, rng):
    case = CASES[name]
    arrays = operands(case, rng)
    loss = loss_by(case, form)
    actual = jax.jit(lambda *arrays: gradients(jax.checkpoint(loss), arrays))(*arrays)
    assert_close(actual, gradients(loss, arrays), dtype="float64")


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_gradients_of_gradients(name, form, rng):
    case = CASES[name]
    arrays = operands(case, rng)

    def slope(loss):
        def length(*arrays):
            parts = jax.grad(loss, argnums=(0, 1, 2))(*arrays)
            return sum(jnp.sum(jnp.cos(part)) for part in parts)

        return jax.jit(lambda *arrays: gradients(length, arrays))(*arrays)

    actual = slope(loss_by(case, form))
    assert_close(actual, slope(loss_by(case, "vmap")), dtype="float64")


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_forward_mode(name, form, rng):
    case = CASES[name]
    arrays = operands(case, rng)
    tangents = operands(case, rng)

    def pushed(form) -> dict[str, jax.Array]:
        value, tangent = jax.jvp(loss_by(case, form), arrays, tangents)
        return {"value": value, "tangent": tangent}

    actual, expected = pushed(form), pushed("vmap")
    assert_close(actual, expected, dtype="float64")


def test_forward_mode_over_the_gradient_of_taps(rng):
    case = CASES["2d depthwise"]
    arrays, tangents = operands(case, rng), operands(case, rng)

    def product(form):
        gradient = jax.grad(loss_by(case, form), argnums=(0, 1, 2))
        _, pushed = jax.jit(lambda *a: jax.jvp(gradient, a, tangents))(*arrays)
        return dict(zip(NAMES, pushed, strict=True))

    assert_close(product("taps"), product("vmap"), dtype="float64")


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_shard_map(name, form, rng):
    case = CASES[name]
    arrays = operands(case, rng)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    data, whole = PartitionSpec("data"), PartitionSpec()

    def loss(*arrays):
        apply = jax.shard_map(
            lambda *arrays: dynamic_conv(
                *arrays, implementation=form, **case.jax_geometry
            ),
            mesh=mesh,
            in_specs=(data, data, whole),
            out_specs=data,
        )
        outputs = apply(*arrays)
        weights = np.random.default_rng(0).normal(size=outputs.shape)
        return jnp.sum(jnp.sin(outputs) * weights)

    actual = jax.jit(lambda *arrays: gradients(loss, arrays))(*arrays)
    assert_close(actual, gradients(loss_by(case, form), arrays), dtype="float64")


def test_layer_under_nnx_jit_and_nnx_vmap(rng):
    def make(seed):
        return DynamicConv(3, 4, (3, 3), param_dtype="float64", rngs=nnx.Rngs(seed))

    @nnx.vmap
    def make_many(key):
        return DynamicConv(3, 4, (3, 3), param_dtype="float64", rngs=nnx.Rngs(key))

    x = jnp.asarray(rng.normal(size=(2, 7, 6, 3)))
    layer = make(0)
    ensemble = make_many(jax.random.split(jax.random.key(0), 3))
    stacked = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(ensemble, x)
    graphdef, state = nnx.split(ensemble)
    members = [
        nnx.merge(graphdef, jax.tree.map(lambda array, i=i: array[i], state))(x)
        for i in range(3)
    ]
    actual = {"jit": nnx.jit(lambda layer, x: layer(x))(layer, x), "vmap": stacked}
    expected = {"jit": layer(x), "vmap": jnp.stack(members)}
    assert_close(actual, expected, dtype="float64")


@pytest.mark.slow
def test_net_under_nnx_jit_and_remat_updates_its_buffers(rng):
    x = jnp.asarray(rng.normal(size=(2, 12, 9, 3)))
    plain, jitted = (
        DynamicNet(width_mult=0.1, param_dtype="float64", rngs=nnx.Rngs(0))
        for _ in range(2)
    )
    expected = plain(x)
    actual = nnx.jit(nnx.remat(lambda net, x: net(x)))(jitted, x)
    buffers = [net.stem.layers[1].mean[...] for net in (jitted, plain)]
    assert_close(
        {"logits": actual, "mean": buffers[0]},
        {"logits": expected, "mean": buffers[1]},
        dtype="float64",
    )
