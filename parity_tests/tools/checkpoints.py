"""Checkpoints: state dicts of published layouts, and of networks of one's own."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch

import dynconv_torch

Array = TypeVar("Array")


def shapes_of(name: str, **options: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a network of PyTorch, which has no values."""
    net = dynconv_torch.create_model(name, **options, device="meta")
    return {key: tuple(value.shape) for key, value in net.state_dict().items()}


def zeros(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns arrays of these shapes, that take no memory."""
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


def trained(name: str, **options: Any) -> dict[str, torch.Tensor]:
    """Returns the state dict of a network of PyTorch with random values.

    Temperatures and what else a schedule moves keep theirs, and counts are odd.
    """
    draw = torch.Generator().manual_seed(0)
    state_dict = dynconv_torch.create_model(name, **options).state_dict()
    for value in state_dict.values():
        if value.ndim:
            value.copy_(torch.rand(value.shape, generator=draw) / 4 + 0.1)
        elif not value.is_floating_point():
            value.fill_(7)
    return state_dict


def as_published(state_dict: Mapping[str, Array]) -> dict[str, Array]:
    """Returns what checkpoints of others have: nothing that a schedule moves."""
    scheduled = ("temperature", "assignment")
    return {
        k: v for k, v in state_dict.items() if k.rpartition(".")[2] not in scheduled
    }
