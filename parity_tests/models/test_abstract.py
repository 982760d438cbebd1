"""Modules without values are those that flax answers."""

import jax
import pytest
from flax import nnx

from dynconv_jax import create_model
from dynconv_jax.models.abstract import abstract_module

OPTIONS = {
    "dynamic_net": dict(router_dropout=0.2),
    "mobilenet_v2": dict(dropout=0.3, conv="static"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_abstract_modules_are_those_of_flax(name):
    def build(rngs):
        return create_model(name, 7, rngs=rngs, **OPTIONS[name])

    ours = nnx.split(abstract_module(build))
    theirs = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    assert ours[0] == theirs[0]
    assert jax.tree.leaves(ours[1]) == jax.tree.leaves(theirs[1])
