"""Dynamic convolution for JAX: the layers of the family, as Flax NNX modules."""

from dynconv_jax.diagnostics import (
    RouterSummary,
    RoutingCollapseWarning,
    capture_attention,
    diagnose,
    summarize,
)
from dynconv_jax.functional import (
    dynamic_conv,
    dynamic_conv_transpose,
    explain,
    mix_kernels,
    per_sample_conv,
    per_sample_conv_transpose,
)
from dynconv_jax.layers import (
    BatchNorm,
    CondConv,
    DynamicConv,
    DynamicConvBlock,
    DynamicConvTranspose,
    ODConv,
)
from dynconv_jax.models import (
    DynamicNet,
    EfficientNet,
    MobileNetV2,
    ResNet,
    create_model,
    list_models,
)
from dynconv_jax.multiply_adds import count_multiply_adds, count_parameters
from dynconv_jax.routing import (
    Router,
    SigmoidRouter,
    Temperature,
    load_balance_loss,
    set_temperature,
)
from dynconv_jax.weights import (
    chen_options,
    load_torch_state_dict,
    load_weights,
    save_weights,
    to_torch_state_dict,
)

__all__ = [
    "BatchNorm",
    "CondConv",
    "DynamicConv",
    "DynamicConvBlock",
    "DynamicConvTranspose",
    "DynamicNet",
    "ODConv",
    "EfficientNet",
    "MobileNetV2",
    "ResNet",
    "Router",
    "RouterSummary",
    "RoutingCollapseWarning",
    "SigmoidRouter",
    "Temperature",
    "capture_attention",
    "count_multiply_adds",
    "count_parameters",
    "chen_options",
    "diagnose",
    "create_model",
    "dynamic_conv",
    "dynamic_conv_transpose",
    "explain",
    "list_models",
    "load_balance_loss",
    "load_torch_state_dict",
    "load_weights",
    "mix_kernels",
    "per_sample_conv",
    "per_sample_conv_transpose",
    "save_weights",
    "set_temperature",
    "summarize",
    "to_torch_state_dict",
]
