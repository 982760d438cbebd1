"""What is to be computed in full width, also under autocast and in narrow modules."""

import contextlib
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def at_least_float32(*dtypes: torch.dtype) -> torch.dtype:
    """Returns the common dtype of `dtypes`, raised to float32 where it is narrower."""
    return functools.reduce(torch.promote_types, dtypes, torch.float32)


def is_autocast(device: torch.device) -> bool:
    """Returns whether autocast is on for `device`; some devices do not know it."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(
        device.type
    )


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Returns a context in which autocast does not narrow what is computed."""
    if is_autocast(device):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def scale_channels(features: Tensor, weights: Tensor) -> Tensor:
    """Multiplies features (B, C, *S) by weights (B, C), and rounds once.

    The result has the dtype of the features, also where the weights are wider.
    """
    per_pixel = weights.reshape(*weights.shape, *(1,) * (features.ndim - 2))
    return (features * per_pixel).to(features.dtype)


def wide_linear(layer: nn.Module, features: Tensor) -> Tensor:
    """Applies a linear layer, or a 1×1 convolution, in the dtype of the features.

    Args:
        layer: What holds `weight` (O, I), or (O, I, 1, ...), and `bias` (O) or None.
        features: Shape (B, I).

    Returns:
        Shape (B, O).
    """
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    return F.linear(
        features,
        weight.flatten(1).to(features.dtype),
        bias.to(features.dtype) if isinstance(bias, Tensor) else None,
    )


def wide_norm(layer: nn.Module, features: Tensor) -> Tensor:
    """Applies a normalising layer in the dtype of the features.

    Args:
        layer: A batch or layer norm. Its running statistics are updated as it would
            update them, and keep their dtype.
        features: Shape (B, C).

    Returns:
        Shape (B, C).
    """
    state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    if all(value.dtype == features.dtype for value in state.values() if value.ndim):
        return layer(features)
    wide = {
        name: value.to(features.dtype) if value.is_floating_point() else value
        for name, value in state.items()
    }
    outputs = torch.func.functional_call(layer, wide, (features,))
    with torch.no_grad():
        for name, buffer in layer.named_buffers():
            buffer.copy_(wide[name])
    return outputs
