"""What is to be computed in full width, also under autocast and in narrow modules."""

import contextlib
import functools
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dynconv_torch.functional.tracing import refuse_proxy


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
    refuse_proxy(device)
    if is_autocast(device):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def scale_channels(
    features: Float[Tensor, "batch channels *spatial"],
    weights: Float[Tensor, "batch channels"],
) -> Float[Tensor, "batch channels *spatial"]:
    """Multiplies each channel of a sample by a weight, and rounds once.

    The result has the dtype of the features, also where the weights are wider.
    """
    per_pixel = weights.reshape(*weights.shape, *(1,) * (features.ndim - 2))
    return (features * per_pixel).to(features.dtype)


def check_same_dtype(name: str, x: Tensor, weight: str, *own: torch.dtype) -> None:
    """Refuses an input in another dtype than the weights, unless autocast casts it.

    Args:
        name: The input, as the caller has it.
        x: The input.
        weight: The weights, as the caller has them.
        *own: Their dtypes; without any, all pass.

    Raises:
        ValueError: If the two differ.

    Example:
        >>> check_same_dtype("x", torch.ones(3), "weight", torch.float32)
    """
    if own and x.dtype not in own and not is_autocast(x.device):
        raise ValueError(
            f"`{name}` ({x.dtype}) and `{weight}` ({own[0]}) must have the same dtype; "
            "cast one to the other"
        )


def check_floating(name: str, x: Tensor) -> None:
    """Refuses integers, in whose dtype an answer would be cut to whole numbers.

    Raises:
        ValueError: If `x` is of integers or truth values.

    Example:
        >>> check_floating("x", torch.ones(3))
    """
    if not x.is_floating_point():
        raise ValueError(
            f"`{name}` ({x.dtype}) must be floating; cast it, as by `.float()`"
        )


def dtypes_of(*modules: nn.Module) -> set[torch.dtype]:
    """Returns the floating dtypes of the parameters of modules.

    Modules that keep their weights otherwise, as quantized ones do, add none.

    Example:
        >>> dtypes_of(nn.Linear(3, 8), nn.ReLU())
        {torch.float32}
    """
    return {
        parameter.dtype
        for module in modules
        for parameter in module.parameters()
        if parameter.is_floating_point()
    }


def call_wide(layer: nn.Module, features: Tensor) -> Tensor:
    """Calls a layer in the dtype of the features, wherever its own is narrower.

    It is called as a module, hooks included, so that it may be any that takes such
    features: wrapped, parametrized or quantized.

    Args:
        layer: The layer. Its buffers are updated as it would update them, and keep
            their dtype.
        features: What it takes.

    Returns:
        What it returns.
    """
    dtype = features.dtype

    def widened(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        return {
            name: value.to(dtype)
            for name, value in named
            if value.is_floating_point()
            and value.dtype != dtype
            and torch.promote_types(value.dtype, dtype) == dtype
        }

    buffers = widened(layer.named_buffers())
    wide = {**widened(layer.named_parameters()), **buffers}
    if not wide:
        return layer(features)
    outputs = torch.func.functional_call(layer, wide, (features,))
    if layer.training:
        with torch.no_grad():
            for name, value in buffers.items():
                layer.get_buffer(name).copy_(value)
    return outputs
