"""Pure functions on tensors; they know nothing of modules."""

from dynconv_torch.functional.dynamic import dynamic_conv, mix_kernels
from dynconv_torch.functional.geometry import Geometry
from dynconv_torch.functional.per_sample import per_sample_conv

__all__ = ["Geometry", "dynamic_conv", "mix_kernels", "per_sample_conv"]
