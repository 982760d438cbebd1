"""Attention from outside: one router for a block, given to those that need it."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import dynconv_jax
import dynconv_torch
from dynconv_jax.layers.given_attention import RoutedSequential, needs_attention
from dynconv_torch.layers import given_attention as twin
from parity_tests.parity import assert_parity


class Block(nnx.Module):
    """A layer that routes itself, between two that share a router."""

    def __init__(self):
        options: dict[str, Any] = dict(
            num_experts=3, param_dtype="float64", rngs=nnx.Rngs(0)
        )
        cond = functools.partial(dynconv_jax.CondConv, **options)
        self.layers = RoutedSequential(
            cond(3, 4, (3, 1)),
            dynconv_jax.DynamicConv(4, 2, (1, 1), **options),
            cond(2, 5, (1, 3)),
        )
        self.routing_fn = dynconv_jax.SigmoidRouter(
            3, 3, param_dtype="float64", rngs=nnx.Rngs(1)
        )

    def __call__(self, x):
        return self.layers(x, self.routing_fn(x))


class TwinBlock(torch.nn.Module):
    """The same in PyTorch."""

    def __init__(self):
        super().__init__()
        self.layers = twin.RoutedSequential(
            dynconv_torch.CondConv2d(3, 4, (3, 1), padding="same", num_experts=3),
            dynconv_torch.DynamicConv2d(4, 2, 1, num_experts=3),
            dynconv_torch.CondConv2d(2, 5, (1, 3), padding="same", num_experts=3),
        )
        self.routing_fn = dynconv_torch.SigmoidRouter(3, 3)

    def forward(self, x):
        return self.layers(x, self.routing_fn(x))


def test_layers_in_a_row_are_given_the_attention_that_they_need(rng):
    assert_parity(Block(), TwinBlock().double(), rng.normal(size=(2, 6, 5, 3)))


def test_blocks_give_their_layer_the_attention_of_their_router(rng):
    conv = functools.partial(dynconv_jax.CondConv, num_experts=3)
    ours = dynconv_jax.DynamicConvBlock(
        3, 4, (1, 3), conv=conv, param_dtype="float64", rngs=nnx.Rngs(0)
    )
    theirs = dynconv_torch.DynamicConvBlock(
        *(3, 4, (1, 3)),
        conv=functools.partial(dynconv_torch.CondConv2d, num_experts=3),
        padding="same",
    ).double()
    assert_parity(ours, theirs, rng.normal(size=(2, 6, 5, 3)))
    attention = jnp.asarray(rng.uniform(size=(2, 3)))
    x = jnp.asarray(rng.normal(size=(2, 6, 5, 3)))
    given, own = ours(x, attention), ours(x)
    assert not np.allclose(given, own)


def test_layers_say_what_they_need():
    assert needs_attention(dynconv_jax.CondConv)
    assert twin.needs_attention(dynconv_torch.CondConv1d)
    assert not needs_attention(dynconv_jax.ODConv)
    assert not twin.needs_attention(torch.nn.ReLU())
