"""Networks, one architecture a file."""

from dynconv_torch.models.convnext import ConvNeXt
from dynconv_torch.models.dymn import DyMN, dymn04, dymn10, dymn20
from dynconv_torch.models.dynamic_net import DynamicNet
from dynconv_torch.models.efficientnet_cc import (
    EfficientNet,
    efficientnet_cc_b0_4e,
    efficientnet_cc_b0_8e,
    efficientnet_cc_b1_8e,
    tf_efficientnet_cc_b0_4e,
    tf_efficientnet_cc_b0_8e,
    tf_efficientnet_cc_b1_8e,
)
from dynconv_torch.models.fdy_cnn import FDYCNN
from dynconv_torch.models.grad_checkpointing import set_grad_checkpointing
from dynconv_torch.models.kw_networks import (
    kw_convnext_tiny,
    kw_mobilenet_v2,
    kw_resnet18,
    kw_resnet50,
)
from dynconv_torch.models.mobilenet_v2 import MobileNetV2, mobilenet_v2
from dynconv_torch.models.mobilenet_v3 import (
    MobileNetV3,
    mobilenet_v3_large,
    mobilenet_v3_small,
)
from dynconv_torch.models.registry import (
    create_model,
    list_convolutions,
    list_models,
)
from dynconv_torch.models.resnet import (
    ResNet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
)
from dynconv_torch.models.warehouses import with_warehouses

__all__ = [
    "ConvNeXt",
    "DyMN",
    "DynamicNet",
    "EfficientNet",
    "FDYCNN",
    "MobileNetV2",
    "MobileNetV3",
    "ResNet",
    "create_model",
    "dymn04",
    "dymn10",
    "dymn20",
    "efficientnet_cc_b0_4e",
    "efficientnet_cc_b0_8e",
    "efficientnet_cc_b1_8e",
    "kw_convnext_tiny",
    "kw_mobilenet_v2",
    "kw_resnet18",
    "kw_resnet50",
    "list_convolutions",
    "list_models",
    "mobilenet_v2",
    "resnet101",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "resnet18",
    "resnet34",
    "resnet50",
    "set_grad_checkpointing",
    "tf_efficientnet_cc_b0_4e",
    "tf_efficientnet_cc_b0_8e",
    "tf_efficientnet_cc_b1_8e",
    "with_warehouses",
]
