"""Dynamic convolution for JAX (Flax NNX)."""

from dynconv_jax.functional import dynamic_conv, mix_kernels, per_sample_conv
from dynconv_jax.layers import BatchNorm, DynamicConv, DynamicConvBlock
from dynconv_jax.models import DynamicNet
from dynconv_jax.routing import (
    Router,
    Temperature,
    load_balance_loss,
    set_temperature,
)
