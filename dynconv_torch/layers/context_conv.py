"""ContextConv: a dynamic convolution whose attention is a linear map of a context."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_tensors
from dynconv_torch.functional.geometry import PaddingLike, positive_int
from dynconv_torch.functional.tracing import sizes_of
from dynconv_torch.gating import Temperature
from dynconv_torch.layers.convolution import check_rows
from dynconv_torch.layers.expert_conv import ExpertConvNd
from dynconv_torch.layers.style import linear_attention
from dynconv_torch.scheduled import HoldsScheduled


def context_linear(
    context_channels: int, out_channels: int, **options: Any
) -> nn.Linear:
    """Returns a linear layer of a context, drawn as all of DyMN's are.

    Args:
        context_channels: The number of features of the context.
        out_channels: The number of outputs.
        **options: `device` and `dtype`.

    Example:
        >>> context_linear(16, 4).weight.shape
        torch.Size([4, 16])
    """
    linear = nn.Linear(context_channels, out_channels, **options)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return linear


class ContextAttention(HoldsScheduled, nn.Sequential):
    """The router of `ContextConv2d`: a softmax over one linear layer of the context.

        a = softmax(linear(context) / T)          (B, K)    rows sum to 1

    All of it is computed in float32 at least, also under autocast. The linear layer is
    the one entry of a sequence, because published checkpoints name it so.

    Attributes:
        temperature: T, a scalar buffer; write it with `set_temperature`.

    Example:
        >>> attention = ContextAttention(16, 4)
        >>> attention(torch.ones(2, 16)).shape
        torch.Size([2, 4])
    """

    temperature: Tensor

    def __init__(
        self,
        context_channels: int,
        num_experts: int,
        *,
        temperature: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the router; `ContextConv2d` explains the arguments.

        Raises:
            ValueError: If the temperature is no positive number.
        """
        linear = context_linear(
            context_channels, num_experts, device=device, dtype=dtype
        )
        super().__init__(linear)
        self.hold_scheduled(Temperature, temperature, linear.weight.device)

    def forward(self, context: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns the attention (B, K) for a context (B, context_channels)."""
        return linear_attention(self, self[0], context)


class ContextConvNd(ExpertConvNd):
    """What the convolutions of all ranks share that are steered by a context.

    Attributes:
        weight: The experts, shape (1, 1, K, O·(C/g)·k·k), as in DyMN's checkpoints;
            each row is a flattened kernel.
        bias: Their biases, shape (K, O), or None.
        residuals: The `ContextAttention`; `routing` calls it.
    """

    needs_context = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: PaddingLike = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = False,
        num_experts: int = 4,
        temperature: float = 1.0,
        implementation: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        context_channels: int,
    ):
        """Builds the layer; each expert is drawn from N(0, 2 / fan_out).

        Args:
            in_channels: C, the number of input channels.
            out_channels: O, the number of output channels.
            kernel_size: An int, or one per spatial dimension.
            stride: An int, or one per spatial dimension.
            padding: `"same"` (with a stride of 1), `"valid"`, an int, or one int or
                (low, high) pair per spatial dimension.
            dilation: An int, or one per spatial dimension.
            groups: g; it must divide C and O.
            bias: Whether every expert has a bias, mixed as the kernels are.
            num_experts: K.
            temperature: The initial T. DyMN's falls from 30 to 1 by
                `two_slope_temperature`; see `set_temperature`.
            implementation: How to compute it, `"auto"`, `"loop"`, `"grouped"`,
                `"patches"` or `"experts"`; see `dynconv_torch.dynamic_conv`.
            device: Where the parameters are.
            dtype: The dtype of the parameters. Attention is computed in float32 at
                least.
            context_channels: H, the number of features of the context.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range or does not fit the others.
        """
        super().__init__()
        self.build_experts(
            *(in_channels, out_channels, kernel_size, stride, padding, dilation),
            *(groups, bias, num_experts, implementation, device, dtype),
        )
        self.weight = nn.Parameter(self.weight.detach().flatten(1)[None, None])
        self.context_channels = positive_int("context_channels", context_channels)
        self.residuals = ContextAttention(
            context_channels,
            self.num_experts,
            temperature=temperature,
            device=device,
            dtype=dtype,
        )

    @property
    def experts(self) -> Tensor:
        """The experts as kernels, shape (K, O, C/g, *kernel_size)."""
        width = self.in_channels // self.groups
        shape = self.out_channels, width, *self.kernel_size
        return self.weight[0, 0].unflatten(1, shape)

    def reset_parameters(self) -> None:
        """Draws each expert from N(0, 2 / fan_out) and zeroes the biases."""
        fan_out = self.out_channels * math.prod(self.kernel_size)
        nn.init.normal_(self.weight, std=(2 / fan_out) ** 0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def routing(self, context: Tensor) -> Tensor:
        """Returns the attention over the experts.

        Args:
            context: Shape (B, context_channels), or (context_channels,).

        Returns:
            Shape (B, K), or (K,); rows sum to 1.

        Raises:
            ValueError: If the context does not fit the layer.
        """
        check_tensors(context=context)
        size = "context_channels", self.context_channels
        check_rows("context", context, sizes_of(context)[:-1], *size)
        return self.residuals(context)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Applies the layer.

        Args:
            x: Shape (B, C, *S), or (C, *S) for one sample without a batch.
            context: Shape (B, context_channels), or (context_channels,).

        Returns:
            Shape (B, O, *S_out), or (O, *S_out).

        Raises:
            TypeError: If an argument is no tensor.
            ValueError: If the input or the context does not fit the layer.
        """
        is_unbatched = self.is_unbatched(x)
        size = "context_channels", self.context_channels
        check_rows("context", context, self.batch_of(x), *size)
        if is_unbatched:
            return self.forward(x[None], context[None])[0]
        return self.convolve(x, self.residuals(context))


class ContextConv1d(ContextConvNd):
    """A 1-D convolution with K experts, mixed by a softmax over a context.

    See `ContextConv2d`.

    Example:
        >>> layer = ContextConv1d(3, 8, 3, padding="same", context_channels=16)
        >>> layer(torch.ones(2, 3, 9), torch.ones(2, 16)).shape
        torch.Size([2, 8, 9])
    """

    rank = 1


class ContextConv2d(ContextConvNd):
    """A 2-D convolution with K experts, mixed by a softmax over a context.

        a = softmax(residuals(context) / T)       (B, K)
        y = conv(x, Σ_k a_k W_k) + Σ_k a_k b_k

    The context is a vector for each sample, which several layers share: in DyMN those
    of a block, and a `ContextGenerator` makes it. Schmid et al., "Dynamic Convolutional
    Neural Networks as Efficient Pre-trained Audio Models", TASLP 2024, on dynamic
    convolution.

    Attributes:
        weight: The experts, shape (1, 1, K, O·(C/g)·k·k), as in DyMN's checkpoints;
            each row is a flattened kernel.
        bias: Their biases, shape (K, O), or None.
        residuals: The `ContextAttention`; `routing` calls it.

    Example:
        >>> layer = ContextConv2d(4, 8, 3, padding="same", context_channels=16)
        >>> features, context = torch.ones(2, 4, 9, 7), torch.ones(2, 16)
        >>> layer(features, context).shape, layer.routing(context).shape
        (torch.Size([2, 8, 9, 7]), torch.Size([2, 4]))
    """

    rank = 2


class ContextConv3d(ContextConvNd):
    """A 3-D convolution with K experts, mixed by a softmax over a context.

    See `ContextConv2d`.

    Example:
        >>> layer = ContextConv3d(3, 8, 1, stride=2, context_channels=16)
        >>> layer(torch.ones(2, 3, 4, 4, 4), torch.ones(2, 16)).shape
        torch.Size([2, 8, 2, 2, 2])
    """

    rank = 3
