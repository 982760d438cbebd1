"""Layers: thin modules over `functional` and `routing`, one family a file."""

from dynconv_jax.layers.batch_norm import BatchNorm
from dynconv_jax.layers.cond_conv import CondConv
from dynconv_jax.layers.dynamic_conv import DynamicConv
from dynconv_jax.layers.dynamic_conv_block import DynamicConvBlock

__all__ = ["BatchNorm", "CondConv", "DynamicConv", "DynamicConvBlock"]
