"""Gradient checkpointing: what blocks compute is computed anew, in place of kept.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
"""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from dynconv_torch.gating import RECORDED


class Checkpointing(nn.Module):
    """What has blocks, and calls them.

    Attributes:
        grad_checkpointing: Whether only what goes into a block is kept for the backward
            pass, and the rest computed anew; see `set_grad_checkpointing`.
    """

    grad_checkpointing: bool = False

    def _call(self, block: nn.Module, x: Tensor) -> Tensor:
        if not self.grad_checkpointing:
            return block(x)
        contexts = contextlib.nullcontext(), _again(block)
        answer = checkpoint(block, x, use_reentrant=False, context_fn=lambda: contexts)
        assert isinstance(answer, Tensor)
        return answer


class Blocks(Checkpointing, nn.Sequential):
    """Blocks in a row.

    Example:
        >>> import torch
        >>> Blocks(nn.Linear(3, 8), nn.ReLU())(torch.ones(2, 3)).shape
        torch.Size([2, 8])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Applies the blocks in turn."""
        for block in self:
            input = self._call(block, input)
        return input


def set_grad_checkpointing(model: nn.Module, enable: bool = True) -> None:
    """Has the blocks of a network computed anew in the backward pass, or not.

    It saves the memory of what they compute, and costs about one more forward pass.
    Outputs, gradients, batch statistics and random numbers stay the same. It is no part
    of the weights of a network, nor of what `save_pretrained` writes.

    Args:
        model: A network of `list_models()`, or what has one in it.
        enable: Whether to do so.

    Raises:
        TypeError: If there are no such blocks in the model.

    Example:
        >>> from dynconv_torch import DynamicNet
        >>> net = DynamicNet(device="meta")
        >>> set_grad_checkpointing(net)
        >>> net.grad_checkpointing
        True
    """
    parts = [part for part in model.modules() if isinstance(part, Checkpointing)]
    if not parts:
        raise TypeError(
            f"`model` (a {type(model).__name__}) has no blocks of a network of "
            "`dynconv_torch.models`; wrap one's own in `torch.utils.checkpoint`"
        )
    for part in parts:
        part.grad_checkpointing = enable


def _again(block: nn.Module) -> AbstractContextManager[None]:
    """Returns the context in which a block computes anew what it is about to compute.

    It saves the same tensors, so its routers record if they do now, and its batch norms
    use their statistics; but these are updated once, and nobody else sees the records.
    """
    routers = [part for part in block.modules() if hasattr(part, RECORDED)]

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        norms = [
            (
                part,
                part.momentum,
                part.num_batches_tracked,
                part.num_batches_tracked.clone(),
            )
            for part in block.modules()
            if isinstance(part, _BatchNorm) and part.num_batches_tracked is not None
        ]
        silent = [router for router in routers if not hasattr(router, RECORDED)]
        for norm, *_ in norms:
            norm.momentum = 0.0
        for router in silent:
            setattr(router, RECORDED, [])
        try:
            yield
        finally:
            for norm, momentum, count, held in norms:
                norm.momentum = momentum
                count.copy_(held)
            for router in silent:
                delattr(router, RECORDED)

    return context()
