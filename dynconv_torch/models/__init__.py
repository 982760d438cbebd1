"""Networks, one architecture a file."""

from dynconv_torch.models.dynamic_net import DynamicNet

__all__ = ["DynamicNet"]
