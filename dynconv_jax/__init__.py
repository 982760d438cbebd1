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
    Assignment,
    BatchNorm,
    DynamicConv,
    DynamicConvBlock,
    KernelWarehouse,
    WarehouseConv,
    set_assignment,
)
from dynconv_jax.models import DynamicNet, with_warehouses
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
    "Assignment",
    "BatchNorm",
    "DynamicConv",
    "DynamicConvBlock",
    "DynamicNet",
    "KernelWarehouse",
    "Router",
    "RouterSummary",
    "RoutingCollapseWarning",
    "Temperature",
    "WarehouseConv",
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
    "set_assignment",
    "set_temperature",
    "summarize",
    "to_torch_state_dict",
    "with_warehouses",
]
