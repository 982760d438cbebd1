"""Checkpoints: state dicts of published layouts, and of networks of one's own."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

import dynconv_torch
from dynconv_torch.weights.identify import identify

Array = TypeVar("Array")

# A small network, and its convolutions.
SMALL: dict[str, Any] = dict(name="dynamic_net", width_mult=0.25, num_classes=7)
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "static": dict(conv="static"),
    "dynamic": dict(conv="dynamic", conv_options={"num_experts": 2}),
    "condconv": dict(conv="condconv", conv_options={"num_experts": 3}),
    "odconv": dict(conv="odconv", conv_options={"num_experts": 1}),
    "decomposed": dict(conv="decomposed"),
    "kernel_warehouse": dict(conv="kernel_warehouse", conv_options={"ratio": 0.5}),
    "fdconv": dict(conv="fdconv", conv_options={"num_experts": 3}),
    "frequency_dynamic": dict(conv="frequency_dynamic"),
}


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


def refusal(package, given, kind: type[Exception] = ValueError, **options) -> str:
    """Returns why no network is made of a checkpoint, which is one line."""
    with pytest.raises(kind) as caught:
        package.create_model_from_checkpoint(given, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_reads(name, options, *, defaults=()):
    """Asserts that a network is recognised with just these options."""
    match = identify(as_published(zeros(shapes_of(name, **options))))
    assert match is not None and match.problems == []
    assert match.call.doubts == ()
    found = {k: v for k, v in match.call.options.items() if k not in defaults}
    expected = {k: v for k, v in options.items() if (k, v) != ("conv", "static")}
    assert (match.call.name, found) == (name, expected)
