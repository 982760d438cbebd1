"""Pure functions on arrays; they know nothing of modules."""

from dynconv_jax.functional.adaptive import adaptive_conv
from dynconv_jax.functional.choice import explain
from dynconv_jax.functional.conv import conv, conv_general_dilated
from dynconv_jax.functional.dynamic import dynamic_conv
from dynconv_jax.functional.frequency_dynamic import frequency_dynamic_conv
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.mixing import mix_kernels
from dynconv_jax.functional.modulated import modulated_conv
from dynconv_jax.functional.per_sample import per_sample_conv
from dynconv_jax.functional.router_losses import load_balance_loss, router_z_loss
from dynconv_jax.functional.transpose import (
    dynamic_conv_transpose,
    per_sample_conv_transpose,
)

__all__ = [
    "Geometry",
    "adaptive_conv",
    "conv",
    "conv_general_dilated",
    "dynamic_conv",
    "dynamic_conv_transpose",
    "explain",
    "frequency_dynamic_conv",
    "load_balance_loss",
    "mix_kernels",
    "modulated_conv",
    "per_sample_conv",
    "per_sample_conv_transpose",
    "router_z_loss",
]
