"""Layers whose attention comes from outside, and how a block applies them.

Such a layer says so by `needs_attention`, as `CondConv2d` does. A block has one router
for all of its layers, `routing_fn`, and hands its answer to those that need it.
"""

from typing import Any

from torch import Tensor, nn


def needs_attention(layer: Any) -> bool:
    """Returns whether a layer, or the class of one, takes its attention from outside.

    Example:
        >>> needs_attention(nn.ReLU())
        False
    """
    return getattr(layer, "needs_attention", False)


def needs_context(layer: Any) -> bool:
    """Returns whether a layer, or the class of one, is steered by a context.

    Example:
        >>> needs_context(nn.ReLU())
        False
    """
    return getattr(layer, "needs_context", False)


def route(routing_fn: nn.Module | None, x: Tensor) -> Tensor | None:
    """Returns the attention of a router, or None where there is no router."""
    return None if routing_fn is None else routing_fn(x)


def apply(
    layer: Any,
    x: Tensor,
    attention: Tensor | None,
    context: Tensor | None = None,
) -> Tensor:
    """Applies a layer, with the attention or the context that it takes from outside.

    Example:
        >>> import torch
        >>> apply(nn.ReLU(), torch.tensor([-1.0, 2.0]), None).tolist()
        [0.0, 2.0]
    """
    if isinstance(layer, RoutedSequential) or needs_attention(layer):
        return layer(x, attention)
    if needs_context(layer):
        return layer(x, context)
    return layer(x)


class RoutedSequential(nn.Sequential):
    """Layers in a row; those that take their attention from outside are given it.

    Example:
        >>> import torch
        >>> layers = RoutedSequential(nn.Linear(3, 8), nn.ReLU())
        >>> layers(torch.ones(2, 3)).shape
        torch.Size([2, 8])
    """

    def forward(self, x: Tensor, attention: Tensor | None = None) -> Tensor:
        """Applies the layers in turn."""
        for layer in self:
            x = apply(layer, x, attention)
        return x
