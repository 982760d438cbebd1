"""Layers: thin modules over `functional` and `routing`, one family a file."""

from dynconv_torch.layers.dynamic_conv import (
    DynamicConv1d,
    DynamicConv2d,
    DynamicConv3d,
)
from dynconv_torch.layers.dynamic_conv_block import DynamicConvBlock
from dynconv_torch.layers.kernel_warehouse import (
    KernelWarehouse,
    WarehouseConv1d,
    WarehouseConv2d,
    WarehouseConv3d,
    set_assignment,
)

__all__ = [
    "DynamicConv1d",
    "DynamicConv2d",
    "DynamicConv3d",
    "DynamicConvBlock",
    "KernelWarehouse",
    "WarehouseConv1d",
    "WarehouseConv2d",
    "WarehouseConv3d",
    "set_assignment",
]
