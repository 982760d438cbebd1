"""The block that networks repeat: dynamic convolution, batch norm, ReLU."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynconv_torch.layers.dynamic_conv import DynamicConv2d
from dynconv_torch.layers.given_attention import apply, needs_attention, route
from dynconv_torch.routing import SigmoidRouter


class DynamicConvBlock(nn.Module):
    """DynamicConv2d → BatchNorm2d → ReLU.

    Attributes:
        dyn: The `DynamicConv2d`, or what was given in its place.
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
        conv: Callable[..., Any] = DynamicConv2d,
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
            conv: Builds the convolution, with the signature of `torch.nn.Conv2d`. For
                one that takes its attention from outside, as `CondConv2d` does, the
                block has a `routing_fn`.
            device: Where the parameters are.
            dtype: The dtype of the parameters.
            **options: The other options of the convolution.

        Raises:
            TypeError: If `conv` is not callable, or another argument of the wrong kind.
            ValueError: If a value is out of range.
        """
        if not callable(conv):
            raise TypeError(
                f"`conv` (={conv!r}) must be a callable with the signature of "
                "`torch.nn.Conv2d`, such as `DynamicConv2d`"
            )
        super().__init__()
        shared: dict[str, Any] = dict(device=device, dtype=dtype)
        options = dict(bias=False) | options
        self.dyn = conv(
            in_channels, out_channels, kernel_size, stride, **options, **shared
        )
        if needs_attention(self.dyn):
            self.routing_fn = SigmoidRouter(in_channels, self.dyn.num_experts, **shared)
        self.bn = nn.BatchNorm2d(out_channels, **shared)

    def routing(self, x: Tensor) -> Tensor:
        """Returns the attention (B, K) of the convolution for `x`."""
        routing = getattr(self, "routing_fn", None) or self.dyn.routing
        return routing(x)

    def forward(self, x: Tensor, attention: Tensor | None = None) -> Tensor:
        """Applies the block; arguments and result are those of the convolution."""
        if attention is None:
            attention = route(getattr(self, "routing_fn", None), x)
            output = apply(self.dyn, x, attention)
        else:
            output = self.dyn(x, attention)
        return F.relu(self.bn(output))
