"""Layers: thin modules over `functional` and `routing`, one family a file."""

from dynconv_torch.layers.chen_layout import chen_options, to_chen_layout
from dynconv_torch.layers.cond_conv import CondConv1d, CondConv2d, CondConv3d
from dynconv_torch.layers.dynamic_conv import (
    DynamicConv1d,
    DynamicConv2d,
    DynamicConv3d,
)
from dynconv_torch.layers.dynamic_conv_block import DynamicConvBlock

__all__ = [
    "CondConv1d",
    "CondConv2d",
    "CondConv3d",
    "DynamicConv1d",
    "DynamicConv2d",
    "DynamicConv3d",
    "DynamicConvBlock",
    "chen_options",
    "to_chen_layout",
]
