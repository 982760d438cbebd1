"""Layers: thin modules over `functional` and `routing`, one family a file."""

from dynconv_torch.layers.adaptive_conv import (
    AdaptiveConv1d,
    AdaptiveConv2d,
    AdaptiveConv3d,
)
from dynconv_torch.layers.chen_layout import chen_options, to_chen_layout
from dynconv_torch.layers.cond_conv import CondConv1d, CondConv2d, CondConv3d
from dynconv_torch.layers.context_conv import (
    ContextConv1d,
    ContextConv2d,
    ContextConv3d,
)
from dynconv_torch.layers.context_generator import Context, ContextGenerator
from dynconv_torch.layers.coordinate_attention import (
    CoordinateAttention,
    CoordinateGate,
)
from dynconv_torch.layers.decomposed_conv import (
    DecomposedConv1d,
    DecomposedConv2d,
    DecomposedConv3d,
)
from dynconv_torch.layers.dynamic_classifier import DynamicClassifier
from dynconv_torch.layers.dynamic_conv import (
    DynamicConv1d,
    DynamicConv2d,
    DynamicConv3d,
)
from dynconv_torch.layers.dynamic_conv_block import DynamicConvBlock
from dynconv_torch.layers.dynamic_conv_transpose import (
    DynamicConvTranspose1d,
    DynamicConvTranspose2d,
    DynamicConvTranspose3d,
)
from dynconv_torch.layers.dynamic_relu import DynamicReLU
from dynconv_torch.layers.equalized_linear import EqualizedLinear
from dynconv_torch.layers.fd_conv import FDConv2d
from dynconv_torch.layers.frequency_dynamic_conv import FrequencyDynamicConv2d
from dynconv_torch.layers.kernel_warehouse import (
    KernelWarehouse,
    WarehouseConv1d,
    WarehouseConv2d,
    WarehouseConv3d,
    set_assignment,
)
from dynconv_torch.layers.modulated_conv import (
    ModulatedConv1d,
    ModulatedConv2d,
    ModulatedConv3d,
)
from dynconv_torch.layers.od_conv import ODConv1d, ODConv2d, ODConv3d
from dynconv_torch.layers.warehouse_layout import to_warehouse_layout
from dynconv_torch.layers.warehouse_linear import WarehouseLinear, linear_geometry

__all__ = [
    "AdaptiveConv1d",
    "AdaptiveConv2d",
    "AdaptiveConv3d",
    "CondConv1d",
    "CondConv2d",
    "CondConv3d",
    "Context",
    "ContextConv1d",
    "ContextConv2d",
    "ContextConv3d",
    "ContextGenerator",
    "CoordinateAttention",
    "CoordinateGate",
    "DecomposedConv1d",
    "DecomposedConv2d",
    "DecomposedConv3d",
    "DynamicClassifier",
    "DynamicConv1d",
    "DynamicConv2d",
    "DynamicConv3d",
    "DynamicConvBlock",
    "DynamicConvTranspose1d",
    "DynamicConvTranspose2d",
    "DynamicConvTranspose3d",
    "DynamicReLU",
    "EqualizedLinear",
    "FDConv2d",
    "FrequencyDynamicConv2d",
    "KernelWarehouse",
    "ModulatedConv1d",
    "ModulatedConv2d",
    "ModulatedConv3d",
    "ODConv1d",
    "ODConv2d",
    "ODConv3d",
    "WarehouseConv1d",
    "WarehouseConv2d",
    "WarehouseConv3d",
    "WarehouseLinear",
    "chen_options",
    "linear_geometry",
    "set_assignment",
    "to_chen_layout",
    "to_warehouse_layout",
]
