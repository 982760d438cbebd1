"""The block that networks repeat: dynamic convolution, batch norm, ReLU."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynconv_torch.layers.dynamic_conv import DynamicConv2d


class DynamicConvBlock(nn.Module):
    """DynamicConv2d → BatchNorm2d → ReLU.

    Attributes:
        dyn: The `DynamicConv2d`.
        bn: The `torch.nn.BatchNorm2d`.

    Example:
        >>> block = DynamicConvBlock(3, 8, 3, 2, padding=1)
        >>> block(torch.ones(2, 3, 9, 7)).shape
        torch.Size([2, 8, 5, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options,
    ):
        """Builds the block.

        Args:
            in_channels: The number of input channels.
            out_channels: The number of output channels.
            kernel_size: An int, or one per spatial dimension.
            stride: An int, or one per spatial dimension.
            device: Where the parameters are.
            dtype: The dtype of the parameters.
            **options: The other options of `DynamicConv2d`.
        """
        super().__init__()
        self.dyn = DynamicConv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            device=device,
            dtype=dtype,
            **options,
        )
        self.bn = nn.BatchNorm2d(out_channels, device=device, dtype=dtype)

    def routing(self, x: Tensor) -> Tensor:
        """Returns the attention (B, K) of the convolution for `x`."""
        return self.dyn.routing(x)

    def forward(self, x: Tensor, attention: Tensor | None = None) -> Tensor:
        """Applies the block; arguments and result are those of `DynamicConv2d`."""
        return F.relu(self.bn(self.dyn(x, attention)))
