"""The router of KernelWarehouse: how much of each cell goes into each tile.

    v = mean over *S of x              (B, C)
    h = relu(norm1(v · fc1))           (B, H)     H = max(16, C // reduction)
    z = h · fc2 + b2                   (B, M, n + 1)
    a = z / (Σ_j |z_j| + 1e-3)         (B, M, n + 1)

With a basis, for warehouses of many cells, z is not one linear layer: of a tile it has
the layer's own cells, those of other layers mixed from fewer numbers, and zero:

    u, w, o = the parts of h · fc2     (B, M, own), (B, M, basis), (B, M, 1)
    z = (u between the halves of w · fc3, o) + basis_bias

No softmax: entries may be negative, and a tile's magnitudes sum to less than 1. All of
it is computed in float32 at least, also under autocast.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_positive
from dynconv_torch.functional.geometry import positive_int
from dynconv_torch.functional.numerics import call_wide, dtypes_of, without_autocast
from dynconv_torch.functional.pooling import spatial_mean
from dynconv_torch.initializers import kaiming_fan_out
from dynconv_torch.layers.attention_norm import attention_norm, normalise


class CellAttention(nn.Module):
    """The router of a layer: how much of each cell goes into each tile.

    Attributes:
        fc1: The linear layer C → H; it has a bias where no batch norm follows.
        norm1: What normalises its H features, or None.
        fc2: The linear layer H → M · (n + 1); with a basis, without bias, H → M · (own
            + basis + 1).
        fc3: With a basis, the linear layer from it to the cells of other layers, or
            None.
        basis_bias: With a basis, shape (M · (n + 1),), or None.

    Example:
        >>> attention = CellAttention(8, num_tiles=9, num_cells=18)
        >>> attention(torch.ones(2, 8, 5, 4)).shape
        torch.Size([2, 9, 19])
    """

    basis_bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        num_tiles: int,
        num_cells: int,
        *,
        start: int = 0,
        num_own: int | None = None,
        reduction: int = 16,
        norm: str = "batch",
        nonlocal_basis_ratio: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the router; `WarehouseConv2d` explains the other arguments.

        Args:
            in_channels: C, the number of input channels.
            num_tiles: M.
            num_cells: n.
            start: The first cell that is the layer's own.
            num_own: How many cells are; None, all.
            reduction: What divides C.
            norm: What normalises the hidden features.
            nonlocal_basis_ratio: The size of the basis over the number of the cells of
                other layers.
            device: Where the parameters are.
            dtype: The dtype of the parameters.

        Raises:
            TypeError: If the reduction or the ratio is not a number.
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
        self.start = start
        self.num_own = num_cells if num_own is None else num_own
        others = num_cells - self.num_own
        basis = basis_size(others, nonlocal_basis_ratio)
        width = num_cells if basis is None else self.num_own + basis
        self.fc2 = nn.Linear(
            hidden,
            num_tiles * (width + 1),
            bias=basis is None,
            device=device,
            dtype=dtype,
        )
        self.fc3: nn.Linear | None = None
        bias: nn.Parameter | None = None
        if basis is not None:
            self.fc3 = nn.Linear(basis, others, bias=False, device=device, dtype=dtype)
            size = num_tiles * (num_cells + 1)
            bias = nn.Parameter(torch.zeros(size, device=device, dtype=dtype))
        self.register_parameter("basis_bias", bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the linear layers from Kaiming's normal, zeroes their biases."""
        for layer in (self.fc1, self.fc2, self.fc3):
            if layer is None:
                continue
            kaiming_fan_out(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if self.basis_bias is not None:
            nn.init.zeros_(self.basis_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the attention a (B, M, n + 1) for `x` (B, C, *S).

        Raises:
            ValueError: In training with batch norm, if there is one sample only.
        """
        with without_autocast(x.device):
            pooled = spatial_mean(x, *dtypes_of(self))
            hidden = F.relu(normalise(self.norm1, call_wide(self.fc1, pooled)))
            logits = call_wide(self.fc2, hidden)
            logits = logits.unflatten(1, (self.num_tiles, -1))
            if self.fc3 is not None and self.basis_bias is not None:
                bias = self.basis_bias.unflatten(0, (self.num_tiles, -1))
                logits = self._from_basis(logits, self.fc3) + bias
            return logits / (logits.abs().sum(-1, keepdim=True) + 1e-3)

    def _from_basis(self, parts: Tensor, fc3: nn.Linear) -> Tensor:
        """Returns (B, M, n + 1) of (B, M, own + basis + 1)."""
        own, basis = parts[..., : self.num_own], parts[..., self.num_own : -1]
        others, start = call_wide(fc3, basis), self.start
        before, after = others[..., :start], others[..., start:]
        return torch.cat((before, own, after, parts[..., -1:]), dim=-1)


def basis_size(others: int, ratio: float) -> int | None:
    """Returns how many numbers the cells of other layers are mixed from, if from fewer.

    Args:
        others: How many cells are of other layers.
        ratio: The size of the basis over that number.

    Raises:
        TypeError: If the ratio is not a number.
        ValueError: If it is not in (0, 1].

    Example:
        >>> basis_size(512, 1 / 16), basis_size(512, 1.0), basis_size(0, 1 / 16)
        (32, None, None)
    """
    check_positive("nonlocal_basis_ratio", ratio)
    if ratio > 1:
        raise ValueError(
            f"`nonlocal_basis_ratio` (={ratio}) must be in (0, 1]; with 1 there is no "
            "basis"
        )
    if ratio == 1 or not others:
        return None
    return max(16, int(others * ratio))
