"""Layers: thin modules over `functional` and `routing`, one family a file."""

from dynconv_torch.layers.decomposed_conv import (
    DecomposedConv1d,
    DecomposedConv2d,
    DecomposedConv3d,
)
from dynconv_torch.layers.dynamic_conv import (
    DynamicConv1d,
    DynamicConv2d,
    DynamicConv3d,
)
from dynconv_torch.layers.dynamic_conv_block import DynamicConvBlock
from dynconv_torch.layers.od_conv import ODConv1d, ODConv2d, ODConv3d

__all__ = [
    "DecomposedConv1d",
    "DecomposedConv2d",
    "DecomposedConv3d",
    "DynamicConv1d",
    "DynamicConv2d",
    "DynamicConv3d",
    "DynamicConvBlock",
    "ODConv1d",
    "ODConv2d",
    "ODConv3d",
]
