"""Gradient checkpointing: what blocks compute is computed anew, in place of kept.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
"""

from typing import Any

import jax
from flax import nnx


class Checkpointing(nnx.Module):
    """What has blocks, and calls them.

    Attributes:
        grad_checkpointing: Whether only what goes into a block is kept for the backward
            pass, and the rest computed anew; see `set_grad_checkpointing`.
    """

    grad_checkpointing: bool = False

    def _call(self, block: Any, inputs: jax.Array) -> jax.Array:
        if self.grad_checkpointing:
            return rematerialised(block, inputs)
        return block(inputs)


class Blocks(Checkpointing, nnx.Sequential):
    """Blocks in a row.

    Example:
        >>> blocks = Blocks(nnx.Linear(3, 8, rngs=nnx.Rngs(0)), jax.nn.relu)
        >>> blocks(jax.numpy.ones((2, 3))).shape
        (2, 8)
    """

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: jax.Array
    ) -> jax.Array:
        """Applies the blocks in turn."""
        for block in self.layers:
            inputs = self._call(block, inputs)
        return inputs


def set_grad_checkpointing(model: nnx.Module, enable: bool = True) -> None:
    """Has the blocks of a network computed anew in the backward pass, or not.

    It saves the memory of what they compute, and costs about one more forward pass.
    Outputs, gradients, batch statistics and random numbers stay the same, and so does
    what `capture_routers` records. It is no part of the weights of a network, nor of
    what `save_pretrained` writes.

    Args:
        model: A network of `list_models()`, or what has one in it.
        enable: Whether to do so.

    Raises:
        TypeError: If there are no such blocks in the model.

    Example:
        >>> from dynconv_jax import DynamicNet
        >>> net = nnx.eval_shape(lambda: DynamicNet(rngs=nnx.Rngs(0)))
        >>> set_grad_checkpointing(net)
        >>> net.grad_checkpointing
        True
    """
    parts = [part for _, part in nnx.iter_modules(model)]
    parts = [part for part in parts if isinstance(part, Checkpointing)]
    if not parts:
        raise TypeError(
            f"`model` (a {type(model).__name__}) has no blocks of a network of "
            "`dynconv_jax.models`; wrap one's own in `nnx.remat`"
        )
    for part in parts:
        part.grad_checkpointing = enable


def rematerialised(block: Any, inputs: jax.Array) -> jax.Array:
    """Calls a block, of which only inputs and parameters are kept for its gradient.

    As `nnx.remat`, which does not take a module to which `nnx.capture` listens.

    Args:
        block: A module. Its batch statistics and random state move on once.
        inputs: What it takes.

    Returns:
        What it returns.

    Example:
        >>> layer = nnx.Linear(3, 8, rngs=nnx.Rngs(0))
        >>> rematerialised(layer, jax.numpy.ones((2, 3))).shape
        (2, 8)
    """
    parts: list[Any] = [part for _, part in nnx.iter_modules(block)]
    listeners = [getattr(part, "__captures__", ()) for part in parts]
    recorded = [[each.get_value() for each in listener] for listener in listeners]
    try:
        for part, listener in zip(parts, listeners, strict=True):
            if listener:
                del part.__captures__
        graphdef, params, rest = nnx.split(block, nnx.Param, ...)
    finally:
        for part, listener in zip(parts, listeners, strict=True):
            if listener:
                part.__captures__ = nnx.data(listener)

    @jax.checkpoint
    def call(params, rest, inputs, recorded):
        merged = nnx.merge(graphdef, params, rest, copy=True)
        inner: list[Any] = [part for _, part in nnx.iter_modules(merged)]
        own = []
        for part, listener, values in zip(inner, listeners, recorded, strict=True):
            pairs = zip(listener, values, strict=True)
            own.append(tuple(type(each)(value) for each, value in pairs))
            if listener:
                part.__captures__ = nnx.data(own[-1])
        outputs = merged(inputs)
        recorded = [[each.get_value() for each in listener] for listener in own]
        for part, listener in zip(inner, listeners, strict=True):
            if listener:
                del part.__captures__
        return outputs, nnx.state(merged, nnx.Not(nnx.Param)), recorded

    outputs, state, recorded = call(params, rest, inputs, recorded)
    nnx.update(block, state)
    for listener, values in zip(listeners, recorded, strict=True):
        for each, value in zip(listener, values, strict=True):
            each.set_value(value)
    return outputs
