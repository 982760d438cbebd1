"""Dynamic ReLU: a piecewise linear function whose pieces depend on the sample."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_dtype, check_tensors
from dynconv_torch.functional.geometry import positive_int
from dynconv_torch.functional.numerics import check_floating, dtypes_of
from dynconv_torch.functional.pooling import spatial_mean
from dynconv_torch.functional.tracing import sizes_of
from dynconv_torch.layers.context_conv import context_linear
from dynconv_torch.layers.convolution import check_rows
from dynconv_torch.layers.style import apply_wide


class DynamicReLU(nn.Module):
    """The largest of M linear functions, whose coefficients a sample gives itself.

        θ = 2 σ(linear(context)) − 1              (B, C, 2M)
        a, b = θ · lambdas + init_v               (B, C, M) each
        y = max_m (a_m x + b_m)

    Each channel has coefficients of its own: DY-ReLU-B of Chen et al., "Dynamic ReLU",
    ECCV 2020, section 3.2. The context is given, as DyMN's blocks do, or the layer's
    own: a hidden layer, ReLU behind it, of the mean over the pixels. With θ = 0 it is
    max(x, 0). Coefficients are computed in float32 at least, also under autocast.

    Attributes:
        lambdas: Shape (2M,), the range of the coefficients: 1 for slopes, 0.5 for
            intercepts; a buffer, which checkpoints hold.
        init_v: Shape (2M,), what they are at θ = 0: 1 for the first slope, else 0.
        coef_net: The linear layer of a given context, in a sequence of one; otherwise
            there are `fc1` and `fc2`.

    Example:
        >>> DynamicReLU(8)(torch.ones(2, 8, 9, 7)).shape
        torch.Size([2, 8, 9, 7])
        >>> activation = DynamicReLU(8, context_channels=16)
        >>> activation(torch.ones(2, 8, 9, 7), torch.ones(2, 16)).shape
        torch.Size([2, 8, 9, 7])
    """

    lambdas: Tensor
    init_v: Tensor

    def __init__(
        self,
        channels: int,
        *,
        context_channels: int | None = None,
        reduction: int = 8,
        num_pieces: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the layer.

        Args:
            channels: C, the number of channels.
            context_channels: The number of features of a context that is given in
                each call; None has the layer make its own.
            reduction: The hidden layer of its own has max(C // reduction, 1) units.
            num_pieces: M.
            device: Where the parameters are.
            dtype: The dtype of the parameters.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range.
        """
        super().__init__()
        self.channels = positive_int("channels", channels)
        self.num_pieces = positive_int("num_pieces", num_pieces)
        positive_int("reduction", reduction)
        check_dtype(dtype)
        self.context_channels = context_channels
        options: dict[str, Any] = dict(device=device, dtype=dtype)
        count = 2 * num_pieces
        if context_channels is None:
            hidden = max(channels // reduction, 1)
            self.fc1 = nn.Linear(channels, hidden, **options)
            self.fc2 = nn.Linear(hidden, count * channels, **options)
        else:
            positive_int("context_channels", context_channels)
            self.coef_net = nn.Sequential(
                context_linear(context_channels, count * channels, **options)
            )
        scale = [1.0] * num_pieces + [0.5] * num_pieces
        self.register_buffer("lambdas", torch.tensor(scale, **options))
        start = [1.0] + [0.0] * (count - 1)
        self.register_buffer("init_v", torch.tensor(start, **options))

    def coefficients(self, context: Tensor) -> Tensor:
        """Returns slopes and intercepts.

        Args:
            context: Shape (B, context_channels); of a layer that makes its own, the
                means (B, C).

        Returns:
            Shape (B, C, 2M), in float32 at least: M slopes, then M intercepts.
        """
        if self.context_channels is None:
            logits = apply_wide(self.fc2, F.relu(apply_wide(self.fc1, context)))
        else:
            logits = apply_wide(self.coef_net, context)
        theta = (2 * torch.sigmoid(logits) - 1).unflatten(1, (self.channels, -1))
        return theta * self.lambdas.to(theta) + self.init_v.to(theta)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Applies the layer.

        Args:
            x: Shape (B, C, *S). A sample alone needs the batch axis, too.
            context: Shape (B, context_channels), where the layer was built for one.

        Returns:
            The shape and the dtype of `x`.

        Raises:
            TypeError: If an argument is no tensor; if there is a context and the layer
                makes its own, or none and it does not.
            ValueError: If the input or the context does not fit the layer.
        """
        check_tensors(x=x)
        check_floating("x", x)
        shape = sizes_of(x)
        if x.ndim < 2 or shape[1] != self.channels:
            raise ValueError(
                f"`x` (shape {shape}) must be (batch, channels, *spatial) with "
                f"`channels` (={self.channels})"
            )
        size = self.context_channels
        if (context is None) != (size is None):
            raise TypeError(
                "`context` must be given if, and only if, the layer was built with "
                f"`context_channels` (={size})"
            )
        if context is None or size is None:
            context = spatial_mean(x, *dtypes_of(self))
        else:
            check_rows("context", context, shape[:1], "context_channels", size)
        given = self.coefficients(context)
        pieces = given.reshape(*given.shape[:2], *(1,) * (x.ndim - 2), given.shape[2])
        count = self.num_pieces
        mapped = [
            x * pieces[..., index] + pieces[..., count + index]
            for index in range(count)
        ]
        # Of equal pieces each has its share of the gradient, as in JAX.
        return functools.reduce(torch.maximum, mapped).to(x.dtype)

    def extra_repr(self) -> str:
        """Returns the arguments of the layer, for its `repr`."""
        parts = [f"{self.channels}, num_pieces={self.num_pieces}"]
        if self.context_channels is not None:
            parts.append(f"context_channels={self.context_channels}")
        return ", ".join(parts)
