"""From logits to attention: the k largest, one expert kept, temperature, NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dynconv_jax.gating import attend
from dynconv_torch.gating import attend as torch_attend
from parity_tests.parity import as_numpy
from parity_tests.tolerances import assert_close


def test_keeping_all_experts_is_exactly_the_plain_router(rng):
    logits = jnp.asarray(rng.normal(size=(6, 5)))
    assert (attend(logits, 0.7, top_k=5) == attend(logits, 0.7)).all()


def test_top_k_keeps_the_largest_and_renormalises(rng):
    plain = np.asarray(attend(jnp.asarray(rng.normal(size=(6, 5)))))
    kept = np.asarray(attend(jnp.log(plain), top_k=2))
    threshold = np.sort(plain, axis=-1)[:, -2:-1]
    expected = np.where(plain >= threshold, plain, 0)
    expected /= expected.sum(axis=-1, keepdims=True)
    assert_close({"attention": kept}, {"attention": expected}, dtype="float64")


def test_top_k_gives_no_gradient_to_the_experts_dropped(rng):
    logits = jnp.asarray(rng.normal(size=(6, 5)))
    weights = jnp.asarray(rng.normal(size=(6, 5)))
    gradient = jax.grad(lambda z: jnp.sum(weights * attend(z, top_k=2)))(logits)
    assert ((gradient != 0) == (attend(logits, top_k=2) > 0)).all()


def test_top_k_of_equal_logits_keeps_the_first_in_both_frameworks():
    ours = attend(jnp.zeros((1, 5)), top_k=2)
    theirs = torch_attend(torch.zeros(1, 5), top_k=2)
    assert ours.tolist() == theirs.tolist() == [[0.5, 0.5, 0, 0, 0]]


@pytest.mark.parametrize("top_k", [1, 2])
def test_top_k_lets_nan_be_seen(top_k):
    logits = [[0.0, float("nan"), 2.0, 1.0]]
    assert jnp.isnan(attend(jnp.array(logits), top_k=top_k)).any()
    assert torch_attend(torch.tensor(logits), top_k=top_k).isnan().any()


def test_single_expert_kept_has_the_weight_one_exactly(rng):
    logits = rng.normal(size=(6, 5)).astype("float32")
    expected = np.eye(5)[logits.argmax(-1)]
    for found in (
        attend(jnp.asarray(logits), 0.3, top_k=1),
        jax.jit(attend, static_argnames="top_k")(jnp.asarray(logits), 0.3, top_k=1),
        torch_attend(torch.from_numpy(logits), 0.3, top_k=1),
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("temperature", [0.3, 30.0])
@pytest.mark.parametrize("transform", [None, jax.jit, jax.vmap])
def test_single_expert_kept_has_the_gradient_of_its_probability(
    transform, temperature, rng
):
    logits = jnp.asarray(rng.normal(size=(6, 5)))
    weights = jnp.asarray(rng.normal(size=(6, 5)))
    kept = jnp.asarray(np.eye(5)[np.asarray(logits).argmax(-1)])

    def loss(z, weights):
        return jnp.sum(weights * attend(z, temperature, top_k=1))

    def of_probability(z):
        return jnp.sum(weights * kept * jax.nn.softmax(z / temperature))

    gradient = jax.grad(loss)
    found = (transform(gradient) if transform else gradient)(logits, weights)
    leaf = torch.from_numpy(np.array(logits)).requires_grad_()
    theirs = torch_attend(leaf, temperature, top_k=1)
    (theirs * torch.from_numpy(np.array(weights))).sum().backward()
    assert leaf.grad is not None
    expected = jax.grad(of_probability)(logits)
    assert_close(
        {"jax": found, "torch": as_numpy(leaf.grad)},
        {"jax": expected, "torch": expected},
        dtype="float64",
    )


def test_low_temperature_decides_and_high_temperature_evens_out():
    logits = jnp.array([[0.0, 1.0, 0.5]])
    assert float(attend(logits, 1e-2)[0, 1]) == 1.0
    assert float(jnp.ptp(attend(logits, 1e6))) < 1e-6
