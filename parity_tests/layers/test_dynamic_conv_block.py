"""DynamicConvBlock: convolution, batch norm and ReLU together."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax import DynamicConvBlock
from parity_tests.parity import assert_parity
from parity_tests.tolerances import assert_close
from parity_tests.tools import reference


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("options", [dict(), dict(top_k=2), dict(temperature=30.0)])
def test_blocks_agree(options, batch, rng):
    ours = DynamicConvBlock(
        4, 6, (3, 3), 2, padding=1, param_dtype="float64", rngs=nnx.Rngs(0), **options
    )
    theirs = dynconv_torch.DynamicConvBlock(4, 6, 3, 2, padding=1, **options).double()
    assert_parity(ours, theirs, rng.normal(size=(batch, 9, 8, 4)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_agree_in_narrower_dtypes(dtype, rng):
    ours = DynamicConvBlock(
        16, 8, (3, 3), 2, padding=1, param_dtype=dtype, rngs=nnx.Rngs(0)
    )
    theirs = dynconv_torch.DynamicConvBlock(16, 8, 3, 2, padding=1)
    inputs = jnp.asarray(rng.normal(size=(3, 9, 8, 16)), dtype)
    assert_parity(ours, theirs.to(getattr(torch, dtype)), np.asarray(inputs))


def test_blocks_agree_when_the_attention_is_given(rng):
    ours = DynamicConvBlock(4, 6, param_dtype="float64", rngs=nnx.Rngs(0))
    theirs = dynconv_torch.DynamicConvBlock(4, 6, padding=1).double()
    attention = rng.normal(size=(2, 4))
    assert_parity(ours, theirs, rng.normal(size=(2, 5, 6, 4)), attention=attention)


def test_block_agrees_with_the_plain_reference(rng):
    plain = reference.PlainBlock(4, 6, 5, 0.6).double()
    theirs = dynconv_torch.DynamicConvBlock(
        4, 6, 3, 2, padding=1, num_experts=5, temperature=0.6
    ).double()
    theirs.load_state_dict(plain.state_dict(), strict=True)
    x = torch.from_numpy(rng.normal(size=(2, 4, 9, 8)))
    actual, expected = {"output": theirs(x)}, {"output": plain(x)}
    actual |= dict(theirs.bn.named_buffers())
    expected |= dict(plain.bn.named_buffers())
    assert_close(
        {name: value.detach().numpy() for name, value in actual.items()},
        {name: value.detach().numpy() for name, value in expected.items()},
        dtype="float64",
    )


def test_routing_is_that_of_the_convolution(rng):
    block = DynamicConvBlock(4, 6, rngs=nnx.Rngs(0))
    x = jnp.asarray(rng.normal(size=(2, 5, 6, 4)), jnp.float32)
    assert (block.routing(x) == block.dyn.routing(x)).all()
    twin = dynconv_torch.DynamicConvBlock(4, 6)
    x = torch.from_numpy(rng.normal(size=(2, 4, 5, 6))).float()
    assert torch.equal(twin.routing(x), twin.dyn.routing(x))


def test_routing_is_that_of_the_block_where_the_convolution_has_none(rng):
    block = DynamicConvBlock(4, 6, conv=dynconv_jax.CondConv, rngs=nnx.Rngs(0))
    x = rng.normal(size=(2, 5, 6, 4)).astype("float32")
    assert (block.routing(jnp.asarray(x)) == block.routing_fn(jnp.asarray(x))).all()
    twin = dynconv_torch.DynamicConvBlock(4, 6, conv=dynconv_torch.CondConv2d)
    theirs = torch.from_numpy(x).movedim(-1, 1)
    assert torch.equal(twin.routing(theirs), twin.routing_fn(theirs))
