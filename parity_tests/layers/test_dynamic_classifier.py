"""DynamicClassifier: parity, its equations once more, weights, the door."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_torch
from dynconv_jax import DynamicClassifier, load_torch_state_dict, to_torch_state_dict
from parity_tests.parity import assert_parity, torch_state
from parity_tests.tolerances import assert_close
from parity_tests.tools.published_shapes import classifier

SMALL: dict[str, Any] = dict(latent_features=3, hidden_features=4)


def torch_head(channels=5, outputs=7, dtype=torch.float64, **options):
    """A head of PyTorch whose norms are not those of the beginning."""
    head = dynconv_torch.DynamicClassifier(
        channels, outputs, dtype=dtype, **SMALL | options
    )
    norms: list[Any] = [head.bn1, head.bn2]
    for norm in norms:
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            torch.nn.init.normal_(tensor)
    torch.nn.init.normal_(head.fc_scale.weight, std=2)  # so that gates have their kinks
    return head


def heads(channels=5, outputs=7, dtype="float64", **options):
    """The same head in both frameworks, with the same parameters."""
    theirs = torch_head(channels, outputs, getattr(torch, dtype), **options)
    ours = DynamicClassifier(
        channels,
        outputs,
        param_dtype=dtype,
        rngs=nnx.Rngs(0),
        **SMALL | options,
    )
    load_torch_state_dict(ours, torch_state(theirs))
    return ours, theirs


def test_heads_agree(rng):
    assert_parity(*heads(), rng.normal(size=(3, 5)))


def test_heads_agree_in_float32(rng):
    pair = heads(dtype="float32", latent_features=1)
    assert_parity(*pair, rng.normal(size=(6, 5)).astype(np.float32))


# The equations once more


def plain_head(x, state, training):
    """The equations, a sample at a time, over published keys; batch norm by hand."""

    def gate(logits):
        return (logits + 3).clamp(0, 6) / 3

    def norm(name, samples):
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        if training:
            together = torch.stack(samples)
            mean, variance = together.mean(0), together.var(0, correction=0)
        return [
            (sample - mean) / torch.sqrt(variance + 1e-5) * state[f"{name}.weight"]
            + state[f"{name}.bias"]
            for sample in samples
        ]

    latents = norm("bn1", [state["cls_q.weight"] @ sample for sample in x])
    scales, mixed = [], []
    for sample, latent in zip(x, latents, strict=True):
        squeezed = state["fc.0.weight"] @ sample
        squeezed = squeezed * gate(state["fc.1.fc.0.weight"] @ squeezed)
        scales.append(gate(state["fc_scale.weight"] @ squeezed))
        size = len(latent)
        phi = (state["fc_phi.weight"] @ squeezed).reshape(size, size)
        mixed.append(phi @ latent)
    outputs = []
    for sample, scale, latent, other in zip(
        x, scales, latents, norm("bn2", mixed), strict=True
    ):
        static = state["cls.weight"] @ sample + state["cls.bias"]
        outputs.append(scale * static + state["cls_p.weight"] @ (other + latent))
    return torch.stack(outputs)


@pytest.mark.parametrize("training", [False, True])
def test_head_computes_the_equations(training):
    head = torch_head().train(training)
    x = torch.randn(4, 5, dtype=torch.float64).requires_grad_()
    state = dict(head.named_parameters())
    leaves = [x, *state.values()]
    buffers = {key: value.clone() for key, value in head.named_buffers()}
    expected = plain_head(x, {**buffers, **state}, training)
    actual = head(x)
    cotangent = torch.randn_like(actual)

    def results(outputs):
        gradients = torch.autograd.grad(outputs, leaves, cotangent)
        named = zip(("input", *state), gradients, strict=True)
        found = {"output": outputs.detach()} | {f"of {n}": g for n, g in named}
        return {name: value.numpy() for name, value in found.items()}

    assert_close(results(actual), results(expected), dtype="float64", floor=1e-4)


# Weights


def test_published_state_dict_comes_back_bit_for_bit(rng):
    expected = {
        key.removeprefix("head."): shape
        for key, shape in classifier("head", 64, 10).items()
    }
    state = {
        key: np.array(7) if not shape else rng.random(shape).astype(np.float32)
        for key, shape in expected.items()
    }
    ours = DynamicClassifier(64, 10, rngs=nnx.Rngs(0))
    theirs = dynconv_torch.DynamicClassifier(64, 10)
    load_torch_state_dict(ours, state)
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    theirs.load_state_dict(tensors, strict=True)
    for returned in (to_torch_state_dict(ours), torch_state(theirs)):
        assert returned.keys() == state.keys()
        for key, value in state.items():
            assert returned[key].tobytes() == value.tobytes()


# In use


def test_what_is_dynamic_is_computed_in_float32_at_least():
    ours, theirs = heads(dtype="bfloat16")
    evaluated = nnx.view(ours, use_running_average=True)
    x = jax.ShapeDtypeStruct((2, 5), "bfloat16")
    found = jax.eval_shape(evaluated.decomposition, x)
    assert {each.dtype for each in found} == {jnp.dtype("float32")}
    assert jax.eval_shape(evaluated, x).dtype == jnp.bfloat16
    tensor = torch.randn(2, 5).bfloat16()
    assert {each.dtype for each in theirs.decomposition(tensor)} == {torch.float32}
    assert theirs(tensor).dtype == torch.bfloat16


def test_one_sample_is_refused_in_training_alone():
    ours, theirs = heads()
    with pytest.raises(ValueError, match="^`inputs` .shape .1, 5.. gives the batch n"):
        ours(jnp.ones((1, 5)))
    with pytest.raises(ValueError, match="^`x` .shape .1, 5.. gives the batch norms"):
        theirs(torch.ones(1, 5).double())
    assert nnx.view(ours, use_running_average=True)(jnp.ones((1, 5))).shape == (1, 7)
    assert theirs.eval()(torch.ones(1, 5).double()).shape == (1, 7)


def test_bad_inputs_are_refused():
    ours, theirs = heads()
    for shape in [(2, 4), (5,), (2, 3, 5)]:
        with pytest.raises(ValueError, match=r"`inputs` .*`in_features` \(=5\)"):
            ours(jnp.ones(shape))
        with pytest.raises(ValueError, match=r"`x` .*`in_features` \(=5\)"):
            theirs(torch.ones(shape).double())


@pytest.mark.parametrize(
    "name", ["in_features", "out_features", "latent_features", "hidden_features"]
)
def test_sizes_that_are_none_are_refused(name):
    sizes: dict[str, Any] = {"in_features": 5, "out_features": 7, name: 0}
    with pytest.raises(ValueError, match=rf"`{name}` \(=0\)"):
        DynamicClassifier(**sizes, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=rf"`{name}` \(=0\)"):
        dynconv_torch.DynamicClassifier(**sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_features_of_another_dtype_are_refused_as_by_other_layers(dtype):
    with pytest.raises(
        ValueError, match=r"`x` \(torch.* and `weight` \(torch.float64\)"
    ):
        torch_head()(torch.ones(2, 5).to(dtype))
