"""Dynamic convolution for PyTorch: the reference twin of the JAX library."""

from dynconv_torch.functional import (
    dynamic_conv,
    dynamic_conv_transpose,
    mix_kernels,
    per_sample_conv,
    per_sample_conv_transpose,
)
from dynconv_torch.layers import (
    DynamicConv1d,
    DynamicConv2d,
    DynamicConv3d,
    DynamicConvBlock,
    DynamicConvTranspose1d,
    DynamicConvTranspose2d,
    DynamicConvTranspose3d,
    ODConv1d,
    ODConv2d,
    ODConv3d,
)
from dynconv_torch.models import DynamicNet
from dynconv_torch.routing import Router, load_balance_loss, set_temperature

__all__ = [
    "DynamicConv1d",
    "DynamicConv2d",
    "DynamicConv3d",
    "DynamicConvBlock",
    "DynamicConvTranspose1d",
    "DynamicConvTranspose2d",
    "DynamicConvTranspose3d",
    "DynamicNet",
    "ODConv1d",
    "ODConv2d",
    "ODConv3d",
    "Router",
    "dynamic_conv",
    "dynamic_conv_transpose",
    "load_balance_loss",
    "mix_kernels",
    "per_sample_conv",
    "per_sample_conv_transpose",
    "set_temperature",
]
