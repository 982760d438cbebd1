"""What normalises the hidden features of an attention: over samples, or each alone."""

from typing import Any

from torch import Tensor, nn

from dynconv_torch.functional.checks import check_choice
from dynconv_torch.functional.numerics import call_wide
from dynconv_torch.functional.tracing import has_open_size

NORMS = ("batch", "layer", "none")


def attention_norm(
    norm: str, features: int, **options: Any
) -> nn.BatchNorm1d | nn.LayerNorm | None:
    """Returns a norm by its name; `"none"` is None.

    Args:
        norm: One of `NORMS`.
        features: The number of features.
        **options: `device` and `dtype`.

    Raises:
        ValueError: If the name is not known.

    Example:
        >>> attention_norm("layer", 16).normalized_shape
        (16,)
    """
    check_choice("norm", norm, NORMS)
    if norm == "batch":
        return nn.BatchNorm1d(features, **options)
    if norm == "layer":
        return nn.LayerNorm(features, **options)
    return None


def normalise(layer: nn.Module | None, features: Tensor) -> Tensor:
    """Applies a norm to features (B, H), in their dtype.

    Raises:
        ValueError: If a batch norm is training with one sample.

    Example:
        >>> import torch
        >>> float(normalise(None, torch.ones(2, 16)).mean())
        1.0
    """
    if layer is None:
        return features
    is_batch_norm = isinstance(layer, nn.BatchNorm1d)
    is_one = not has_open_size(features) and features.shape[0] == 1
    if is_batch_norm and layer.training and is_one:
        raise ValueError(
            "`norm` (='batch') normalises the attention over the samples, and in "
            "training a batch of one has no variance; build the layer with "
            "`norm='layer'` or `norm='none'`, or train with a larger batch"
        )
    return call_wide(layer, features)
