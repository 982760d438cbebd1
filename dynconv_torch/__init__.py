"""Dynamic convolution for PyTorch: the reference twin of the JAX library."""

from dynconv_torch.functional import dynamic_conv, mix_kernels, per_sample_conv
from dynconv_torch.layers import (
    CondConv1d,
    CondConv2d,
    CondConv3d,
    DynamicConv1d,
    DynamicConv2d,
    DynamicConv3d,
    DynamicConvBlock,
    chen_options,
    to_chen_layout,
)
from dynconv_torch.models import (
    DynamicNet,
    EfficientNet,
    MobileNetV2,
    ResNet,
    create_model,
    list_models,
)
from dynconv_torch.routing import (
    Router,
    SigmoidRouter,
    load_balance_loss,
    set_temperature,
)

__all__ = [
    "CondConv1d",
    "CondConv2d",
    "CondConv3d",
    "DynamicConv1d",
    "DynamicConv2d",
    "DynamicConv3d",
    "DynamicConvBlock",
    "DynamicNet",
    "EfficientNet",
    "MobileNetV2",
    "ResNet",
    "Router",
    "SigmoidRouter",
    "chen_options",
    "create_model",
    "dynamic_conv",
    "list_models",
    "load_balance_loss",
    "mix_kernels",
    "per_sample_conv",
    "set_temperature",
    "to_chen_layout",
]
