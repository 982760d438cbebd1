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
    explain,
    mix_kernels,
    per_sample_conv,
)
from dynconv_jax.layers import (
    BatchNorm,
    DecomposedConv,
    DynamicConv,
    DynamicConvBlock,
    ODConv,
)
from dynconv_jax.models import DynamicNet
from dynconv_jax.routing import (
    Router,
    Temperature,
    load_balance_loss,
    set_temperature,
)
from dynconv_jax.weights import (
    load_torch_state_dict,
    load_weights,
    save_weights,
    to_torch_state_dict,
)

__all__ = [
    "BatchNorm",
    "DecomposedConv",
    "DynamicConv",
    "DynamicConvBlock",
    "DynamicNet",
    "ODConv",
    "Router",
    "RouterSummary",
    "RoutingCollapseWarning",
    "Temperature",
    "capture_attention",
    "diagnose",
    "dynamic_conv",
    "explain",
    "load_balance_loss",
    "load_torch_state_dict",
    "load_weights",
    "mix_kernels",
    "per_sample_conv",
    "save_weights",
    "set_temperature",
    "summarize",
    "to_torch_state_dict",
]
