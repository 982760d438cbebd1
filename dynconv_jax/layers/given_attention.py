"""Layers whose attention comes from outside, and how a block applies them.

Such a layer says so by `needs_attention`, as `CondConv` does. A block has one router
for all of its layers, `routing_fn`, and hands its answer to those that need it.
"""

from typing import Any

import jax
from flax import nnx


def needs_attention(layer: Any) -> bool:
    """Returns whether a layer, or the class of one, takes its attention from outside.

    Example:
        >>> needs_attention(jax.nn.relu)
        False
    """
    return getattr(layer, "needs_attention", False)


def needs_context(layer: Any) -> bool:
    """Returns whether a layer, or the class of one, is steered by a context.

    Example:
        >>> needs_context(jax.nn.relu)
        False
    """
    return getattr(layer, "needs_context", False)


def route(routing_fn: Any, inputs: jax.Array) -> jax.Array | None:
    """Returns the attention of a router, or None where there is no router."""
    return None if routing_fn is None else routing_fn(inputs)


def apply(
    layer: Any,
    inputs: jax.Array,
    attention: jax.Array | None,
    context: jax.Array | None = None,
) -> jax.Array:
    """Applies a layer, with the attention or the context that it takes from outside.

    Example:
        >>> apply(jax.nn.relu, jax.numpy.array([-1.0, 2.0]), None).tolist()
        [0.0, 2.0]
    """
    if isinstance(layer, RoutedSequential) or needs_attention(layer):
        return layer(inputs, attention)
    if needs_context(layer):
        return layer(inputs, context)
    return layer(inputs)


class RoutedSequential(nnx.Sequential):
    """Layers in a row; those that take their attention from outside are given it.

    Example:
        >>> layers = RoutedSequential(nnx.Linear(3, 8, rngs=nnx.Rngs(0)), jax.nn.relu)
        >>> layers(jax.numpy.ones((2, 3))).shape
        (2, 8)
    """

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: jax.Array, attention: jax.Array | None = None
    ) -> jax.Array:
        """Applies the layers in turn."""
        for layer in self.layers:
            inputs = apply(layer, inputs, attention)
        return inputs
