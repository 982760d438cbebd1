"""Dynamic convolution for PyTorch: the reference twin of the JAX library."""

from dynconv_torch.functional import dynamic_conv, mix_kernels, per_sample_conv
from dynconv_torch.layers import (
    DecomposedConv1d,
    DecomposedConv2d,
    DecomposedConv3d,
    DynamicConv1d,
    DynamicConv2d,
    DynamicConv3d,
    DynamicConvBlock,
    ODConv1d,
    ODConv2d,
    ODConv3d,
)
from dynconv_torch.models import DynamicNet
from dynconv_torch.routing import Router, load_balance_loss, set_temperature

__all__ = [
    "DecomposedConv1d",
    "DecomposedConv2d",
    "DecomposedConv3d",
    "DynamicConv1d",
    "DynamicConv2d",
    "DynamicConv3d",
    "DynamicConvBlock",
    "DynamicNet",
    "ODConv1d",
    "ODConv2d",
    "ODConv3d",
    "Router",
    "dynamic_conv",
    "load_balance_loss",
    "mix_kernels",
    "per_sample_conv",
    "set_temperature",
]
