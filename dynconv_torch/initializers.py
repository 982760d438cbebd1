"""How layers draw their parameters, where not as PyTorch's own."""

from typing import Literal

from torch import Tensor, nn

# How a layer draws its parameters: in the library's way, or in that of its authors.
Init = Literal["default", "published"]
INITS = "default", "published"


def kaiming_fan_out(weight: Tensor) -> None:
    """Draws from N(0, 2 / fan_out).

    Example:
        >>> import torch
        >>> weight = torch.empty(512, 8, 1, 1)
        >>> kaiming_fan_out(weight)
        >>> bool(0.05 < weight.std() < 0.08)
        True
    """
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
