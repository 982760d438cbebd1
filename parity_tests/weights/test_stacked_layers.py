"""Layers that were stacked in one are refused, and the refusal tells the way out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dynconv_jax
from dynconv_jax import to_torch_state_dict
from dynconv_jax.weights import torch_variables
from parity_tests.tools.jax_modules import Holder


def stacked(make, axis=0):
    keys = jax.random.split(jax.random.key(0), 2)
    build = nnx.vmap(
        lambda key: Holder(make(rngs=nnx.Rngs(key))), in_axes=0, out_axes=axis
    )
    return build(keys)


STACKS = {
    "Linear": functools.partial(nnx.Linear, 3, 4),
    "Conv": functools.partial(nnx.Conv, 3, 4, (3, 2), use_bias=False),
    "ConvTranspose": functools.partial(nnx.ConvTranspose, 3, 4, (3,), use_bias=False),
    "LinearGeneral": functools.partial(nnx.LinearGeneral, 3, (2, 4), use_bias=False),
    "MultiHeadAttention": functools.partial(nnx.MultiHeadAttention, 2, 4),
    "Embed": functools.partial(nnx.Embed, 3, 4),
    "LayerNorm": functools.partial(nnx.LayerNorm, 3, use_scale=False),
    "GroupNorm": functools.partial(nnx.GroupNorm, 4, 2, use_bias=False),
    "RMSNorm": functools.partial(nnx.RMSNorm, 3),
    "BatchNorm": functools.partial(nnx.BatchNorm, 3, use_bias=False, use_scale=False),
    "ours": functools.partial(dynconv_jax.BatchNorm, 3),
    "Router": functools.partial(dynconv_jax.Router, 3),
    "SigmoidRouter": functools.partial(dynconv_jax.SigmoidRouter, 3),
    "DynamicConv": functools.partial(dynconv_jax.DynamicConv, 3, 4, (3,)),
    "CondConv": functools.partial(dynconv_jax.CondConv, 3, 4, (3,)),
    "ODConv": functools.partial(dynconv_jax.ODConv, 3, 4, (3,)),
    "DynamicConvTranspose": functools.partial(
        dynconv_jax.DynamicConvTranspose, 3, 4, (3,)
    ),
    "AdaptiveConv": functools.partial(
        dynconv_jax.AdaptiveConv, 3, 4, (3,), style_features=5
    ),
    "ModulatedConv": functools.partial(
        dynconv_jax.ModulatedConv, 3, 4, (3,), style_features=5
    ),
    "DecomposedConv": functools.partial(dynconv_jax.DecomposedConv, 4, 4, (3,)),
}


@pytest.mark.parametrize("name", STACKS)
def test_layers_stacked_in_one_are_refused_by_path(name):
    layers = nnx.eval_shape(lambda: stacked(STACKS[name]))
    with pytest.raises(ValueError, match="`part.*several layers in one.*nnx.vmap"):
        torch_variables(layers)


@pytest.mark.parametrize("axis", [1, -1])
def test_layers_stacked_along_another_axis_are_refused(axis):
    with pytest.raises(ValueError, match="several layers in one"):
        to_torch_state_dict(stacked(STACKS["Linear"], axis))


def test_layers_come_apart_and_together_as_the_refusal_says():
    layers = stacked(STACKS["Linear"])
    apart = [jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(2)]
    assert to_torch_state_dict(apart[1])["part.weight"].shape == (4, 3)
    joined = jax.tree.map(lambda *leaves: jnp.stack(leaves), *apart)
    np.testing.assert_array_equal(joined.part.kernel[...], layers.part.kernel[...])
