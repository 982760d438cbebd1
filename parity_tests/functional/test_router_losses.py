"""Losses on routers: what they are, and that every expert has a gradient in them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import torch

import dynconv_jax
import dynconv_torch
from dynconv_jax import load_balance_loss, router_z_loss
from dynconv_jax.gating import attend
from dynconv_torch.gating import attend as torch_attend
from parity_tests.parity import as_numpy
from parity_tests.tolerances import assert_close

TOP_KS = [None, 1, 2, 3]


def balance_of(logits, temperature, top_k):
    attention = attend(logits, temperature, top_k)
    whole = None if top_k is None else jax.nn.softmax(logits / temperature)
    return load_balance_loss(attention, whole)


def torch_balance_of(logits, temperature, top_k):
    attention = torch_attend(logits, temperature, top_k)
    whole = None if top_k is None else torch.softmax(logits / temperature, -1)
    return dynconv_torch.load_balance_loss(attention, whole)


def torch_gradient(loss, logits, *arguments):
    leaf = torch.from_numpy(np.array(logits)).requires_grad_()
    value = loss(leaf, *arguments)
    (gradient,) = torch.autograd.grad(value, leaf)
    return {"loss": as_numpy(value), "gradient": as_numpy(gradient)}


def test_balance_is_one_when_even_and_largest_when_one_expert_takes_all():
    packages: list[tuple[Any, Any]] = [
        (load_balance_loss, jnp.asarray),
        (dynconv_torch.load_balance_loss, torch.from_numpy),
    ]
    for balance, array in packages:
        assert float(balance(array(np.full((6, 4), 0.25)))) == 1
        assert float(balance(array(np.eye(4)[[0, 1, 2, 3]]))) == 1
        assert float(balance(array(np.eye(4)[[2] * 6]))) == 4
        pairs = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.3, 0.7]])
        assert float(balance(array(pairs), array(np.full((2, 4), 0.25)))) == 1


@pytest.mark.parametrize("top_k", TOP_KS)
def test_balance_is_that_of_the_source(top_k, rng):
    logits = rng.normal(size=(7, 5))
    whole = scipy.special.softmax(logits / 0.7, axis=-1)
    ranks = np.argsort(np.argsort(-logits, axis=-1), axis=-1)
    kept = ranks < (top_k or 1)
    expected = 5 * np.sum(kept.mean(0) / (top_k or 1) * whole.mean(0))
    found = balance_of(jnp.asarray(logits), 0.7, top_k)
    assert_close({"": found}, {"": expected}, dtype="float64")


@pytest.mark.parametrize("temperature", [0.2, 30.0])
@pytest.mark.parametrize("top_k", TOP_KS)
def test_balance_agrees_with_its_gradient(top_k, temperature, rng):
    logits = jnp.asarray(rng.normal(size=(7, 5)))
    loss, gradient = jax.value_and_grad(balance_of)(logits, temperature, top_k)
    expected = torch_gradient(torch_balance_of, logits, temperature, top_k)
    assert_close({"loss": loss, "gradient": gradient}, expected, dtype="float64")


@pytest.mark.parametrize("top_k", TOP_KS)
def test_gradient_of_the_balance_is_that_of_its_differences(top_k, rng):
    logits = rng.normal(size=(6, 4))
    gradient = np.asarray(jax.grad(balance_of)(jnp.asarray(logits), 1.0, top_k))
    step, direction = 1e-4, rng.normal(size=logits.shape)
    # Of the fourth order, whose error is far below the tolerance.
    values = [
        float(balance_of(jnp.asarray(logits + k * step * direction), 1.0, top_k))
        for k in (-2, -1, 1, 2)
    ]
    slope = np.dot([1, -8, 8, -1], values) / (12 * step)
    assert_close({"": (gradient * direction).sum()}, {"": slope}, dtype="float64")


@pytest.mark.parametrize("top_k", [1, 2])
def test_expert_that_no_sample_keeps_is_asked_back(top_k, rng):
    logits = rng.normal(size=(6, 4))
    logits[:, 2] -= 10
    ours = np.asarray(jax.grad(balance_of)(jnp.asarray(logits), 1.0, top_k))
    theirs = torch_gradient(torch_balance_of, logits, 1.0, top_k)["gradient"]
    for gradient in (ours, theirs):
        assert (gradient[:, 2] < 0).all()  # descent raises its logits
        assert (gradient != 0).all()


def test_balance_of_sigmoids_does_not_depend_on_their_scale(rng):
    gates = rng.uniform(size=(6, 4))
    losses = [float(load_balance_loss(jnp.asarray(s * gates))) for s in (1, 0.25)]
    assert losses[0] == losses[1]
    assert (np.asarray(jax.grad(load_balance_loss)(jnp.asarray(gates))) != 0).all()


def test_balance_takes_any_number_of_batch_dimensions(rng):
    whole = rng.dirichlet(np.ones(4), size=6)
    flat = float(load_balance_loss(jnp.asarray(whole)))
    cube = whole.reshape(2, 3, 4)
    found = {
        "jax": load_balance_loss(jnp.asarray(cube)),
        "torch": dynconv_torch.load_balance_loss(torch.from_numpy(cube)),
    }
    assert_close(found, dict.fromkeys(found, flat), dtype="float64")


def test_nan_is_seen_in_the_balance():
    whole = np.array([[0.5, 0.5], [np.nan, np.nan]])
    assert np.isnan(load_balance_loss(jnp.asarray(whole)))
    assert dynconv_torch.load_balance_loss(torch.from_numpy(whole)).isnan()


def test_probabilities_of_another_shape_are_refused_by_both():
    message = r"`probabilities` \(shape \(2, 4\)\).*`attention`, \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        load_balance_loss(jnp.ones((2, 3)), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=message):
        dynconv_torch.load_balance_loss(torch.ones(2, 3), torch.ones(2, 4))


@pytest.mark.parametrize("scale", [1.0, 500.0])
def test_z_loss_agrees_with_its_gradient(scale, rng):
    logits = scale * rng.normal(size=(7, 5))
    loss, gradient = jax.value_and_grad(router_z_loss)(jnp.asarray(logits))
    expected = torch_gradient(dynconv_torch.router_z_loss, logits)
    assert_close({"loss": loss, "gradient": gradient}, expected, dtype="float64")


def test_z_loss_is_that_of_the_source(rng):
    logits = rng.normal(size=(7, 5))
    expected = np.mean(np.log(np.exp(logits).sum(-1)) ** 2)
    found = router_z_loss(jnp.asarray(logits))
    assert_close({"": found}, {"": expected}, dtype="float64")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_arrays_are_summed_in_float32(dtype):
    logits, gates = np.full((2, 4), 300.0), np.ones((2, 4))
    narrow = getattr(torch, dtype)
    ours = router_z_loss(jnp.asarray(logits, dtype))
    theirs = dynconv_torch.router_z_loss(torch.from_numpy(logits).to(narrow))
    assert ours.dtype == jnp.float32 and theirs.dtype == torch.float32
    found = {"jax": ours, "torch": theirs}
    expected = dict.fromkeys(found, (300 + np.log(4)) ** 2)
    assert_close(found, expected, dtype="float32")
    ours = load_balance_loss(jnp.asarray(gates, dtype))
    theirs = dynconv_torch.load_balance_loss(torch.from_numpy(gates).to(narrow))
    assert ours.dtype == jnp.float32 and theirs.dtype == torch.float32


def test_losses_on_samples_of_a_mesh_are_those_of_one_device(rng):
    kinds = (jax.sharding.AxisType.Explicit,)
    mesh = jax.make_mesh((len(jax.devices()),), ("batch",), axis_types=kinds)
    logits = jnp.asarray(rng.normal(size=(8, 5)))
    kept = jax.nn.one_hot(logits.argmax(-1), 5)

    def losses(kept, logits):
        whole = jax.nn.softmax(logits)
        return (
            load_balance_loss(kept, whole)
            + load_balance_loss(whole)
            + router_z_loss(logits)
        )

    expected = jax.grad(losses, argnums=1)(kept, logits)
    with jax.set_mesh(mesh):
        sharding = jax.sharding.NamedSharding(mesh, jax.P("batch", None))
        placed = jax.device_put((kept, logits), sharding)
        found = jax.jit(jax.grad(losses, argnums=1))(*placed)
        assert found.sharding.spec == sharding.spec
    assert_close({"": found}, {"": expected}, dtype="float64")


@pytest.mark.parametrize(
    "given",
    [dynconv_torch.DynamicNet, dict, lambda: None, lambda: 0.5, lambda: [[0.5, 0.5]]],
    ids=["model", "dict", "None", "number", "list"],
)
@pytest.mark.parametrize("name", ["load_balance_loss", "router_z_loss"])
@pytest.mark.parametrize("package", [dynconv_jax, dynconv_torch])
def test_what_no_router_answers_is_refused_and_what_does_is_named(package, name, given):
    with pytest.raises(TypeError, match=r"^`(attention|logits)` .*`capture_routers"):
        getattr(package, name)(given())


@pytest.mark.parametrize("name", ["load_balance_loss", "router_z_loss"])
@pytest.mark.parametrize("scalar", [jnp.float32(1), torch.tensor(1.0)])
def test_weights_of_no_experts_are_refused(name, scalar):
    package = dynconv_torch if isinstance(scalar, torch.Tensor) else dynconv_jax
    with pytest.raises(ValueError, match=r"shape \(\)\) must be \(\.\.\., num_experts"):
        getattr(package, name)(scalar)
