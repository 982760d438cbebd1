"""Networks, one architecture a file."""

from dynconv_torch.models.dynamic_net import DynamicNet
from dynconv_torch.models.warehouses import with_warehouses

__all__ = ["DynamicNet", "with_warehouses"]
