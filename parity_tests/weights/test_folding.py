"""Batch norms folded into the convolutions before them."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dynconv_jax import (
    AdaptiveConv,
    BatchNorm,
    CondConv,
    DecomposedConv,
    DynamicConv,
    DynamicConvBlock,
    ODConv,
    fold_batch_norm,
    with_warehouses,
)
from parity_tests.tolerances import assert_close
from parity_tests.tools.trained import evaluated, layer_of, warmed

OPTIONS: dict[str, Any] = dict(param_dtype="float64", rngs=nnx.Rngs(0))


def block_of(conv: Any, **options: Any) -> Any:
    options = dict(strides=2, padding=1, conv=conv, **OPTIONS) | options
    return warmed(DynamicConvBlock(6, 8, **options))


@pytest.mark.parametrize(
    "conv", [CondConv, DecomposedConv, DynamicConv, ODConv, nnx.Conv]
)
def test_folded_batch_norms_leave_the_function_as_it_was(conv, rng):
    images = jnp.asarray(rng.normal(size=(2, 9, 8, 6)))
    block = block_of(conv, use_bias=True)
    folded: Any = fold_batch_norm(block, jax.ShapeDtypeStruct(images.shape, "float64"))
    assert not isinstance(folded.bn, nnx.BatchNorm)
    assert_close(
        {"output": folded(images)},
        {"output": evaluated(block)(images)},
        dtype="float64",
    )


def test_a_folded_copy_of_a_model_in_training_is_for_evaluation(rng):
    images = jnp.asarray(rng.normal(size=(2, 9, 8, 6)))
    block = block_of(DynamicConv, reduction=1, router_dropout=0.5)
    assert not jnp.array_equal(block(images), block(images))
    expected = evaluated(block)(images)
    folded: Any = fold_batch_norm(block, images)
    assert_close({"output": folded(images)}, {"output": expected}, dtype="float64")


def test_a_folded_copy_shares_nothing_with_the_model(rng):
    images = jnp.asarray(rng.normal(size=(2, 9, 8, 6)))
    block = block_of(DynamicConv)
    before = evaluated(block)(images)
    folded: Any = fold_batch_norm(block, images)
    assert_close({"": evaluated(block)(images)}, {"": before}, dtype="float64")
    for leaf in jax.tree.leaves(nnx.state(block)):
        leaf.delete()  # as a step does to what it is donated
    assert_close({"": folded(images)}, {"": before}, dtype="float64")


class TwoNorms(nnx.Module):
    """A convolution whose outputs two batch norms take."""

    def __init__(self):
        self.conv = nnx.Conv(6, 8, (3, 3), **OPTIONS)
        self.first, self.second = (BatchNorm(8, **OPTIONS) for _ in range(2))
        warmed(self)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(x)
        return self.first(y) * self.second(y)


class SharedConv(nnx.Module):
    """One convolution under two names, a batch norm after each call."""

    def __init__(self):
        self.a_conv = self.b_conv = nnx.Conv(6, 6, (3, 3), **OPTIONS)
        self.first, self.second = (BatchNorm(6, **OPTIONS) for _ in range(2))
        warmed(self)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(self.b_conv(self.first(self.a_conv(x))))


class Elsewhere(nnx.Module):
    """A convolution whose outputs go around its batch norm too."""

    def __init__(self):
        self.conv = nnx.Conv(6, 8, (3, 3), **OPTIONS)
        self.bn = BatchNorm(8, **OPTIONS)
        warmed(self)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(x)
        return self.bn(y) + y


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (TwoNorms, "takes its input from a convolution of its own"),
        (
            SharedConv,
            "takes its input from a convolution of its own",
        ),
        (Elsewhere, "go elsewhere, too"),
    ],
)
def test_what_cannot_be_folded_is_refused(build, reason, rng):
    with pytest.raises(ValueError, match=reason):
        fold_batch_norm(build(), jnp.asarray(rng.normal(size=(2, 5, 4, 6))))


def test_the_norm_behind_cells_that_layers_share_stays():
    def build(conv: Any, rngs: Any) -> Any:
        return DynamicConvBlock(3, 8, conv=conv, param_dtype="float64", rngs=rngs)

    block = with_warehouses(build, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no batch norm"):
        fold_batch_norm(block, jax.ShapeDtypeStruct((2, 9, 8, 3), "float64"))


class NormedStyle(nnx.Module):
    """A layer that latents steer, and a batch norm behind it."""

    def __init__(self, demodulate: bool):
        """Builds both."""
        options: dict[str, Any] = dict(style_features=5, demodulate=demodulate)
        self.conv = AdaptiveConv(6, 8, (3,), **options, **OPTIONS)
        self.bn = BatchNorm(8, **OPTIONS)

    def __call__(self, inputs: jax.Array, latents: jax.Array) -> jax.Array:
        """Applies both."""
        return self.bn(self.conv(inputs, latents))


def test_the_norm_behind_a_layer_that_demodulates_stays(rng):
    inputs, latents = rng.normal(size=(2, 9, 6)), rng.normal(size=(2, 5))
    with pytest.raises(ValueError, match="no batch norm"):
        fold_batch_norm(NormedStyle(True), inputs, latents)
    linear = warmed(NormedStyle(False))
    folded: Any = fold_batch_norm(linear, inputs, latents)
    assert not isinstance(folded.bn, nnx.BatchNorm)
    expected = evaluated(linear)(inputs, latents)
    assert_close({"": folded(inputs, latents)}, {"": expected}, dtype="float64")


def test_a_model_without_a_batch_norm_to_fold_is_refused():
    with pytest.raises(ValueError, match="no batch norm"):
        fold_batch_norm(layer_of("dynamic"), jnp.ones((2, 9, 8, 6)))
