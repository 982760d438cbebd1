"""Pure functions on tensors; they know nothing of modules."""

from dynconv_torch.functional.adaptive import adaptive_conv
from dynconv_torch.functional.dynamic import dynamic_conv, mix_kernels
from dynconv_torch.functional.frequency_dynamic import frequency_dynamic_conv
from dynconv_torch.functional.geometry import Geometry
from dynconv_torch.functional.modulated import modulated_conv
from dynconv_torch.functional.per_sample import per_sample_conv
from dynconv_torch.functional.router_losses import load_balance_loss, router_z_loss
from dynconv_torch.functional.transpose import (
    dynamic_conv_transpose,
    per_sample_conv_transpose,
)

__all__ = [
    "Geometry",
    "adaptive_conv",
    "dynamic_conv",
    "dynamic_conv_transpose",
    "frequency_dynamic_conv",
    "load_balance_loss",
    "mix_kernels",
    "modulated_conv",
    "per_sample_conv",
    "per_sample_conv_transpose",
    "router_z_loss",
]
