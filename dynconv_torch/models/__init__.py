"""Networks, one architecture a file."""

from dynconv_torch.models.dynamic_net import DynamicNet
from dynconv_torch.models.resnet import ResNet, resnet18, resnet34, resnet50

__all__ = ["DynamicNet", "ResNet", "resnet18", "resnet34", "resnet50"]
