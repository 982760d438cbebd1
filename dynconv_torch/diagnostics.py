"""What the routers of a model answer while it computes."""

from typing import Any

import torch
from torch import nn

from dynconv_torch.checks import check_module
from dynconv_torch.gating import RECORDED, RouterOutput


def capture_routers(
    model: nn.Module, *args: Any, **kwargs: Any
) -> tuple[Any, dict[str, RouterOutput]]:
    """Calls a model and returns its result beside what the losses on routers need.

    The model is called as it is set, in training or evaluation.

    Args:
        model: A module that contains routers.
        *args: Passed on to the model.
        **kwargs: Passed on to the model.

    Returns:
        The model's result, and for each router that was called, by its path in the
        model, its `RouterOutput`. A layer with a router of its own is that router. A
        router called several times has its calls concatenated along B.

    Example:
        >>> from dynconv_torch import DynamicConv2d, load_balance_loss
        >>> layer = DynamicConv2d(3, 8, 3, top_k=1)
        >>> _, routers = capture_routers(layer, torch.ones(2, 3, 9, 7))
        >>> attention, probabilities, logits = routers[""]
        >>> bool(load_balance_loss(attention, probabilities) > 1)
        True
    """
    check_module("model", model)
    parts = dict(model.named_modules())
    for part in parts.values():  # of which routers alone record what they answer
        setattr(part, RECORDED, [])
    try:
        result = model(*args, **kwargs)
        called = {
            path: _concatenate(getattr(part, RECORDED))
            for path, part in parts.items()
            if getattr(part, RECORDED)
        }
    finally:
        for part in parts.values():
            delattr(part, RECORDED)
    return result, called


def _concatenate(calls: list[RouterOutput]) -> RouterOutput:
    """Joins the calls of one router, which all have the same parts."""
    attention, *parts = zip(*calls, strict=True)
    joined = (None if each[0] is None else torch.cat(each) for each in parts)
    return RouterOutput(torch.cat(attention), *joined)
