"""Coordinate attention: gates along the one and along the other axis of an image."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_dtype, check_tensors
from dynconv_torch.functional.geometry import positive_int
from dynconv_torch.functional.numerics import (
    call_wide,
    check_floating,
    dtypes_of,
    without_autocast,
)
from dynconv_torch.functional.pooling import axis_means
from dynconv_torch.functional.tracing import sizes_of


def check_plane(x: Tensor, in_channels: int) -> None:
    """Raises an error unless `x` is a tensor (B, in_channels, H, W)."""
    check_tensors(x=x)
    check_floating("x", x)
    shape = sizes_of(x)
    if x.ndim != 4 or shape[1] != in_channels:
        raise ValueError(
            f"`x` (shape {shape}) must be (batch, channels, height, width) with "
            f"{in_channels} channels"
        )


class CoordinateGate(nn.Module):
    """Multiplies features by the sigmoids of logits for each row and each column.

        y = x · σ(rows) · σ(columns)

    It has no parameters; `ContextGenerator` gives such logits.

    Example:
        >>> rows, columns = torch.zeros(2, 4, 9, 1), torch.zeros(2, 4, 1, 7)
        >>> float(CoordinateGate()(torch.ones(2, 4, 9, 7), rows, columns).max())
        0.25
    """

    def forward(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Applies the gates.

        Args:
            x: Shape (B, C, H, W).
            rows: Shape (B, C, H, 1), the logits of the rows.
            columns: Shape (B, C, 1, W), those of the columns.

        Returns:
            The shape and the dtype of `x`.

        Raises:
            ValueError: If `x` is not floating.
        """
        check_floating("x", x)
        return (x * torch.sigmoid(rows) * torch.sigmoid(columns)).to(x.dtype)


class CoordinateAttention(nn.Module):
    """Gates for each row and each column of each channel, from means over the other.

        s = hardswish(bn1(conv1(means over columns, then over rows)))
        y = x · σ(conv_h(s of the rows)) · σ(conv_w(s of the columns))

    Hou et al., "Coordinate Attention for Efficient Mobile Network Design", CVPR 2021,
    section 3.2, under the authors' names. A batch of one trains: its norm is over rows
    and columns too. Gates are computed in float32 at least, also under autocast.

    Attributes:
        conv1: The 1×1 convolution C → H, which both axes share; `bn1` follows.
        conv_h: The 1×1 convolution H → C of the rows.
        conv_w: That of the columns.

    Example:
        >>> CoordinateAttention(16)(torch.ones(2, 16, 9, 7)).shape
        torch.Size([2, 16, 9, 7])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 32,
        min_hidden: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the layer.

        Args:
            channels: C, the number of channels.
            reduction: There are max(C // reduction, min_hidden) hidden units.
            min_hidden: How many there are at least.
            device: Where the parameters are.
            dtype: The dtype of the parameters.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range.
        """
        super().__init__()
        self.channels = positive_int("channels", channels)
        hidden = max(
            channels // positive_int("reduction", reduction),
            positive_int("min_hidden", min_hidden),
        )
        check_dtype(dtype)
        options: dict[str, Any] = dict(device=device, dtype=dtype)
        self.conv1 = nn.Conv2d(channels, hidden, 1, **options)
        self.bn1 = nn.BatchNorm2d(hidden, **options)
        self.conv_h = nn.Conv2d(hidden, channels, 1, **options)
        self.conv_w = nn.Conv2d(hidden, channels, 1, **options)
        self.gate = CoordinateGate()

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer to `x` (B, C, H, W).

        Raises:
            ValueError: If the input does not fit the layer.
        """
        check_plane(x, self.channels)
        height = x.shape[2]
        with without_autocast(x.device):
            means = axis_means(x, *dtypes_of(self))[..., None]
            hidden = call_wide(self.bn1, call_wide(self.conv1, means))
            hidden = F.hardswish(hidden)
            rows = call_wide(self.conv_h, hidden[:, :, :height])
            columns = call_wide(self.conv_w, hidden[:, :, height:].transpose(2, 3))
            return self.gate(x, rows, columns)
