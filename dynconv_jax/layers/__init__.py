"""Layers: thin modules over `functional` and `routing`, one family a file."""

from dynconv_jax.layers.batch_norm import BatchNorm
from dynconv_jax.layers.dynamic_conv import DynamicConv
from dynconv_jax.layers.dynamic_conv_block import DynamicConvBlock
from dynconv_jax.layers.kernel_warehouse import (
    Assignment,
    KernelWarehouse,
    WarehouseConv,
    set_assignment,
)

__all__ = [
    "Assignment",
    "BatchNorm",
    "DynamicConv",
    "DynamicConvBlock",
    "KernelWarehouse",
    "WarehouseConv",
    "set_assignment",
]
