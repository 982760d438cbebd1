"""Networks, one architecture a file."""

from dynconv_jax.models.dynamic_net import DynamicNet
from dynconv_jax.models.warehouses import with_warehouses

__all__ = ["DynamicNet", "with_warehouses"]
