"""Parts that are alike are compiled once, and compute what they compute alone."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynconv_jax import BatchNorm
from parity_tests.passes import run_jax
from parity_tests.tolerances import assert_close
from parity_tests.tools.alike import compiled_once


class Part(nnx.Module):
    """A linear layer and a norm, which counts how often Python runs it."""

    runs = 0

    def __init__(self, features: int, rngs: nnx.Rngs):
        options: dict[str, Any] = dict(param_dtype=jnp.float64, rngs=rngs)
        self.linear = nnx.Linear(features, features, **options)
        self.norm = BatchNorm(features, **options)

    def __call__(self, x):
        Part.runs += 1
        return x + jnp.tanh(self.norm(self.linear(x)))


class Same(Part):
    """A part that has its call from another class."""


class Parts(nnx.Module):
    """Four parts of three kinds: two are alike, one is wider, one of another class."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.narrow = nnx.Sequential(Part(4, rngs), Part(4, rngs), Same(4, rngs))
        self.wide = Part(8, rngs)

    def __call__(self, x):
        return self.wide(jnp.tile(self.narrow(x), 2))


@pytest.fixture
def arrays(rng):
    return rng.normal(size=(5, 4)), rng.normal(size=(5, 8))


def test_outputs_gradients_and_statistics_are_those_of_the_whole(arrays):
    net = Parts()
    expected = run_jax(net, *arrays, training=True)
    with compiled_once(net):
        actual = run_jax(net, *arrays, training=True, jit=False)
    for ours, theirs in zip(actual, expected, strict=True):
        ours, theirs = (x if isinstance(x, dict) else {"": x} for x in (ours, theirs))
        assert_close(ours, theirs, dtype="float64")
    means = [
        value for name, value in actual[2].items() if name.endswith("running_mean")
    ]
    assert len(means) == 4 and all(np.abs(value).max() > 0 for value in means)


def test_python_runs_parts_that_are_alike_once(arrays, monkeypatch):
    monkeypatch.setattr(Part, "runs", 0)
    net = Parts()
    with compiled_once(net):
        for _ in range(2):
            run_jax(net, *arrays, training=False, jit=False)
    assert Part.runs == 3


def test_classes_are_as_before_also_after_an_error():
    net, call = Parts(), Part.__call__
    with pytest.raises(KeyError), compiled_once(net):
        assert Part.__call__ is not call and "__call__" in vars(Same)
        raise KeyError
    assert Part.__call__ is call and "__call__" not in vars(Same)
