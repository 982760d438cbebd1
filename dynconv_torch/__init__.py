"""Dynamic convolution for PyTorch: the reference twin of the JAX library."""

from dynconv_torch.functional import dynamic_conv, mix_kernels, per_sample_conv
from dynconv_torch.layers import (
    DynamicConv1d,
    DynamicConv2d,
    DynamicConv3d,
    DynamicConvBlock,
    KernelWarehouse,
    WarehouseConv1d,
    WarehouseConv2d,
    WarehouseConv3d,
    set_assignment,
)
from dynconv_torch.models import DynamicNet, with_warehouses
from dynconv_torch.routing import Router, load_balance_loss, set_temperature

__all__ = [
    "DynamicConv1d",
    "DynamicConv2d",
    "DynamicConv3d",
    "DynamicConvBlock",
    "DynamicNet",
    "KernelWarehouse",
    "Router",
    "WarehouseConv1d",
    "WarehouseConv2d",
    "WarehouseConv3d",
    "dynamic_conv",
    "load_balance_loss",
    "mix_kernels",
    "per_sample_conv",
    "set_assignment",
    "set_temperature",
    "with_warehouses",
]
