"""Dynamic convolution for PyTorch: the reference twin of the JAX library."""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":  # one that PyTorch itself misses
        raise
    raise ImportError(
        "dynconv_torch needs PyTorch, which is not installed: "
        "pip install 'dynconv[torch]'"
    ) from None

from _dynconv_version import __version__ as __version__
from dynconv_torch.diagnostics import capture_routers
from dynconv_torch.functional import (
    adaptive_conv,
    dynamic_conv,
    dynamic_conv_transpose,
    load_balance_loss,
    mix_kernels,
    modulated_conv,
    per_sample_conv,
    per_sample_conv_transpose,
    router_z_loss,
)
from dynconv_torch.gating import RouterOutput
from dynconv_torch.layers import (
    AdaptiveConv1d,
    AdaptiveConv2d,
    AdaptiveConv3d,
    CondConv1d,
    CondConv2d,
    CondConv3d,
    DecomposedConv1d,
    DecomposedConv2d,
    DecomposedConv3d,
    DynamicConv1d,
    DynamicConv2d,
    DynamicConv3d,
    DynamicConvBlock,
    DynamicConvTranspose1d,
    DynamicConvTranspose2d,
    DynamicConvTranspose3d,
    KernelWarehouse,
    ModulatedConv1d,
    ModulatedConv2d,
    ModulatedConv3d,
    ODConv1d,
    ODConv2d,
    ODConv3d,
    WarehouseConv1d,
    WarehouseConv2d,
    WarehouseConv3d,
    WarehouseLinear,
    chen_options,
    set_assignment,
    to_chen_layout,
    to_warehouse_layout,
)
from dynconv_torch.models import (
    ConvNeXt,
    DynamicNet,
    EfficientNet,
    MobileNetV2,
    ResNet,
    create_model,
    list_convolutions,
    list_models,
    with_warehouses,
)
from dynconv_torch.routing import Router, SigmoidRouter, set_temperature
from dynconv_torch.weights import (
    create_model_from_checkpoint,
    from_pretrained,
    save_pretrained,
)

__all__ = [
    "adaptive_conv",
    "AdaptiveConv1d",
    "AdaptiveConv2d",
    "AdaptiveConv3d",
    "CondConv1d",
    "CondConv2d",
    "CondConv3d",
    "ConvNeXt",
    "DecomposedConv1d",
    "DecomposedConv2d",
    "DecomposedConv3d",
    "DynamicConv1d",
    "DynamicConv2d",
    "DynamicConv3d",
    "DynamicConvBlock",
    "DynamicConvTranspose1d",
    "DynamicConvTranspose2d",
    "DynamicConvTranspose3d",
    "DynamicNet",
    "EfficientNet",
    "KernelWarehouse",
    "MobileNetV2",
    "ModulatedConv1d",
    "ModulatedConv2d",
    "ModulatedConv3d",
    "ODConv1d",
    "ODConv2d",
    "ODConv3d",
    "ResNet",
    "Router",
    "RouterOutput",
    "SigmoidRouter",
    "WarehouseConv1d",
    "WarehouseConv2d",
    "WarehouseConv3d",
    "WarehouseLinear",
    "capture_routers",
    "chen_options",
    "create_model",
    "create_model_from_checkpoint",
    "dynamic_conv",
    "dynamic_conv_transpose",
    "from_pretrained",
    "list_convolutions",
    "list_models",
    "load_balance_loss",
    "mix_kernels",
    "modulated_conv",
    "per_sample_conv",
    "per_sample_conv_transpose",
    "router_z_loss",
    "save_pretrained",
    "set_assignment",
    "set_temperature",
    "to_chen_layout",
    "to_warehouse_layout",
    "with_warehouses",
]
