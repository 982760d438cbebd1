"""The router of KernelWarehouse: how much of each cell goes into each tile.

    v = mean over *S of x              (B, C)
    h = relu(norm1(v · fc1))           (B, H)     H = max(16, C // reduction)
    z = h · fc2 + b2                   (B, M, n + 1)
    a = z / (Σ_j |z_j| + 1e-3)         (B, M, n + 1)

No softmax: entries may be negative, and a tile's magnitudes sum to less than 1. All of
it is computed in float32 at least, also under autocast.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynconv_torch.functional.geometry import positive_int
from dynconv_torch.functional.numerics import call_wide, dtypes_of, without_autocast
from dynconv_torch.functional.pooling import spatial_mean
from dynconv_torch.layers.attention_norm import attention_norm, normalise


class CellAttention(nn.Module):
    """The router of a layer: how much of each cell goes into each tile.

    Attributes:
        fc1: The linear layer C → H; it has a bias where no batch norm follows.
        norm1: What normalises its H features, or None.
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
        hidden = max(16, in_channels // positive_int("reduction", reduction))
        self.num_tiles = num_tiles
        self.num_cells = num_cells
        self.fc1 = nn.Linear(
            in_channels, hidden, bias=norm != "batch", device=device, dtype=dtype
        )
        self.norm1 = attention_norm(norm, hidden, device=device, dtype=dtype)
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
        with without_autocast(x.device):
            pooled = spatial_mean(x, *dtypes_of(self))
            hidden = F.relu(normalise(self.norm1, call_wide(self.fc1, pooled)))
            logits = call_wide(self.fc2, hidden)
            logits = logits.unflatten(1, (self.num_tiles, self.num_cells + 1))
            return logits / (logits.abs().sum(-1, keepdim=True) + 1e-3)
