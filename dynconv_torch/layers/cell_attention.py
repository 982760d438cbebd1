"""The router of KernelWarehouse: how much of each cell goes into each tile.

    v = mean over *S of x              (B, C)
    h = relu(norm1(v · fc1))           (B, H)     H = max(16, C // reduction)
    z = h · fc2 + b2                   (B, M, n + 1)
    a = z / (Σ_j |z_j| + 1e-3)         (B, M, n + 1)

No softmax: entries may be negative, and a tile's magnitudes sum to less than 1. All of
it is computed in float32 at least, also under autocast.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynconv_torch.functional.geometry import positive_int
from dynconv_torch.functional.per_sample import is_autocast
from dynconv_torch.routing import at_least_float32

NORMS = ("batch", "layer", "none")


class _WideBatchNorm(nn.BatchNorm1d):
    """Batch norm in the dtype of its input, also where its own state is narrower."""

    def forward(self, input: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        assert mean is not None and var is not None
        assert self.num_batches_tracked is not None
        if input.dtype == mean.dtype:
            return super().forward(input)
        wide_mean, wide_var = mean.to(input.dtype), var.to(input.dtype)
        output = F.batch_norm(
            input,
            wide_mean,
            wide_var,
            self.weight.to(input.dtype),
            self.bias.to(input.dtype),
            self.training,
            self.momentum or 0.0,
            self.eps,
        )
        if self.training:
            mean.copy_(wide_mean)
            var.copy_(wide_var)
            self.num_batches_tracked.add_(1)
        return output


class CellAttention(nn.Module):
    """The router of a layer: how much of each cell goes into each tile.

    Attributes:
        fc1: The linear layer C → H; it has a bias where no batch norm follows.
        norm1: What normalises its H features.
        fc2: The linear layer H → M · (n + 1).

    Example:
        >>> attention = CellAttention(8, num_tiles=9, num_cells=18)
        >>> attention(torch.ones(2, 8, 5, 4)).shape
        torch.Size([2, 9, 19])
    """

    def __init__(
        self,
        in_channels: int,
        num_tiles: int,
        num_cells: int,
        *,
        reduction: int = 16,
        norm: str = "batch",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the router; `WarehouseConv2d` explains the arguments.

        Raises:
            TypeError: If the reduction is not an integer.
            ValueError: If a value is out of range.
        """
        super().__init__()
        if norm not in NORMS:
            raise ValueError(
                f"`norm` (={norm!r}) must be one of {', '.join(map(repr, NORMS))}"
            )
        hidden = max(16, in_channels // positive_int("reduction", reduction))
        self.num_tiles = num_tiles
        self.num_cells = num_cells
        self.fc1 = nn.Linear(
            in_channels, hidden, bias=norm != "batch", device=device, dtype=dtype
        )
        if norm == "batch":
            self.norm1 = _WideBatchNorm(hidden, device=device, dtype=dtype)
        elif norm == "layer":
            self.norm1 = nn.LayerNorm(hidden, device=device, dtype=dtype)
        else:
            self.norm1 = nn.Identity()
        self.fc2 = nn.Linear(
            hidden, num_tiles * (num_cells + 1), device=device, dtype=dtype
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the linear layers from Kaiming's normal, zeroes their biases."""
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the attention a (B, M, n + 1) for `x` (B, C, *S).

        Raises:
            ValueError: In training with batch norm, if there is one sample only.
        """
        has_batch_norm = isinstance(self.norm1, nn.BatchNorm1d)
        if has_batch_norm and self.training and x.shape[0] == 1:
            raise ValueError(
                "`x` is one sample, whose features the batch norm of the attention "
                'cannot normalise in training; use `norm="layer"`, or a larger batch'
            )
        dtype = at_least_float32(x.dtype, self.fc1.weight.dtype)

        def linear(layer: nn.Linear, features: Tensor) -> Tensor:
            bias = None if layer.bias is None else layer.bias.to(dtype)
            return F.linear(features, layer.weight.to(dtype), bias)

        if is_autocast(x.device):
            wide = torch.autocast(x.device.type, enabled=False)
        else:
            wide = contextlib.nullcontext()
        with wide:
            pooled = x.mean(tuple(range(2, x.ndim)), dtype=dtype)
            hidden = self._normalise(linear(self.fc1, pooled))
            logits = linear(self.fc2, F.relu(hidden))
            logits = logits.unflatten(1, (self.num_tiles, self.num_cells + 1))
            return logits / (logits.abs().sum(-1, keepdim=True) + 1e-3)

    def _normalise(self, hidden: Tensor) -> Tensor:
        if isinstance(self.norm1, nn.LayerNorm):  # in the dtype of its input
            weight, bias = self.norm1.weight, self.norm1.bias
            return F.layer_norm(
                hidden,
                self.norm1.normalized_shape,
                weight.to(hidden.dtype),
                bias.to(hidden.dtype),
                self.norm1.eps,
            )
        return self.norm1(hidden)
