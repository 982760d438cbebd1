"""Layers: thin modules over `functional` and `routing`, one family a file."""

from dynconv_jax.layers.adaptive_conv import AdaptiveConv
from dynconv_jax.layers.batch_norm import BatchNorm
from dynconv_jax.layers.cond_conv import CondConv
from dynconv_jax.layers.context_conv import ContextConv
from dynconv_jax.layers.context_generator import Context, ContextGenerator
from dynconv_jax.layers.conv import Conv, replace_convs
from dynconv_jax.layers.coordinate_attention import CoordinateAttention, CoordinateGate
from dynconv_jax.layers.decomposed_conv import DecomposedConv
from dynconv_jax.layers.dynamic_classifier import DynamicClassifier
from dynconv_jax.layers.dynamic_conv import DynamicConv
from dynconv_jax.layers.dynamic_conv_block import DynamicConvBlock
from dynconv_jax.layers.dynamic_conv_transpose import DynamicConvTranspose
from dynconv_jax.layers.dynamic_relu import DynamicReLU
from dynconv_jax.layers.equalized_linear import EqualizedLinear
from dynconv_jax.layers.fd_conv import FDConv
from dynconv_jax.layers.frequency_dynamic_conv import FrequencyDynamicConv
from dynconv_jax.layers.kernel_warehouse import (
    Assignment,
    KernelWarehouse,
    WarehouseConv,
    set_assignment,
)
from dynconv_jax.layers.modulated_conv import ModulatedConv
from dynconv_jax.layers.od_conv import ODConv
from dynconv_jax.layers.pooled_linear import PooledLinear
from dynconv_jax.layers.warehouse_linear import WarehouseLinear, linear_geometry

__all__ = [
    "AdaptiveConv",
    "Assignment",
    "BatchNorm",
    "CondConv",
    "Context",
    "ContextConv",
    "ContextGenerator",
    "Conv",
    "CoordinateAttention",
    "CoordinateGate",
    "DecomposedConv",
    "DynamicClassifier",
    "DynamicConv",
    "DynamicConvBlock",
    "DynamicConvTranspose",
    "DynamicReLU",
    "EqualizedLinear",
    "FDConv",
    "FrequencyDynamicConv",
    "KernelWarehouse",
    "ModulatedConv",
    "ODConv",
    "PooledLinear",
    "WarehouseConv",
    "WarehouseLinear",
    "linear_geometry",
    "replace_convs",
    "set_assignment",
]
