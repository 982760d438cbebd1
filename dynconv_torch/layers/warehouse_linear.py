"""A linear layer whose kernel is tiled with cells: a 1-D convolution of one tap."""

from typing import Any

from torch import Tensor, nn

from dynconv_torch.functional.checks import check_tensors
from dynconv_torch.functional.geometry import Geometry
from dynconv_torch.layers.kernel_warehouse import KernelWarehouse, WarehouseConv1d


class WarehouseLinear(nn.Module):
    """A linear layer whose kernel is tiled, for every sample, with mixed cells.

    Li & Yao, "KernelWarehouse", ICML 2024, have one as the head of their MobileNetV2 of
    half the parameters. It is one of the layers that a `KernelWarehouse` was made for,
    by `linear_geometry`. Its attention sees the mean of all positions of a sample.

    Attributes:
        conv: The `WarehouseConv1d` that computes it.

    Example:
        >>> import torch
        >>> layer = WarehouseLinear(KernelWarehouse([linear_geometry(8, 5)]))
        >>> layer(torch.ones(2, 8)).shape, layer(torch.ones(2, 7, 6, 8)).shape
        (torch.Size([2, 5]), torch.Size([2, 7, 6, 5]))
    """

    def __init__(
        self,
        warehouse: KernelWarehouse,
        index: int | None = None,
        *,
        bias: bool = True,
        **options: Any,
    ):
        """Builds the layer.

        Args:
            warehouse: Where the cells are.
            index: Which of the warehouse's layers this is; None takes the next one.
            bias: Whether there is a bias.
            **options: Further options of `WarehouseConv1d`.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range, the layer was built before, or is no
                linear one.
        """
        super().__init__()
        self.conv = WarehouseConv1d(warehouse, index, bias=bias, **options)
        geometry = self.conv.share.geometry
        inputs, outputs = geometry.in_channels, geometry.out_channels
        if geometry != linear_geometry(inputs, outputs):
            raise ValueError(
                f"`warehouse` has for layer {self.conv.index} a convolution of "
                f"`kernel_size` (={geometry.kernel_size}); make it for "
                f"`linear_geometry({inputs}, {outputs})`"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer.

        Args:
            x: Shape (B, C), or (B, *positions, C).

        Returns:
            Shape (B, O), or (B, *positions, O).

        Raises:
            TypeError: If the input is no tensor.
            ValueError: If the input does not fit the layer.
        """
        check_tensors(x=x)
        if x.ndim < 2:
            raise ValueError(
                f"`x` (shape {tuple(x.shape)}) must be (batch, *positions, features)"
            )
        # In a row, which has a length also where there is one position.
        row = x[:, None] if x.ndim == 2 else x.flatten(1, -2)
        y = self.conv(row.movedim(-1, 1)).movedim(1, -1)
        return y[:, 0] if x.ndim == 2 else y.unflatten(1, x.shape[1:-1])


def linear_geometry(in_features: int, out_features: int) -> Geometry:
    """Returns the geometry of a linear layer, for the warehouse that it is to share.

    Args:
        in_features: C, the number of input features.
        out_features: O, the number of output features.

    Example:
        >>> linear_geometry(8, 5).weight_shape
        (5, 8, 1)
    """
    return Geometry.create(in_features, out_features, 1, rank=1)
