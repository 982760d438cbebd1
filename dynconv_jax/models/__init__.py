"""Networks, one architecture a file."""

from dynconv_jax.models.dynamic_net import DynamicNet

__all__ = ["DynamicNet"]
