"""The networks whose checkpoints are known: one row a family.

A row of `NETWORKS` says by which keys a family is known, and which call of
`create_model` its checkpoints may be of: name and options are read off keys and shapes
alone, in the module of the name that the family has in `models/`. Nothing is built
there. Whoever asks builds what a call says without values, and holds it against the
checkpoint: a row need not be sure.
"""

from dynconv_torch.weights.networks import (
    dymn,
    dynamic_net,
    efficientnet_cc,
    fdy_cnn,
    kw_networks,
    mobilenet_v2,
    mobilenet_v3,
    published,
    resnet,
)
from dynconv_torch.weights.trunks import Network

NETWORKS = (
    Network("KernelWarehouse's networks", (), kw_networks.call_of),
    Network("DCD", (), published.decomposed),
    Network("DynamicNet", ("stem.1.weight", "stage1.bn.weight"), dynamic_net.call_of),
    Network(
        "ResNet",
        ("bn1.weight", "layer1.0.bn1.weight"),
        lambda shapes: published.with_odconv(resnet.call_of(shapes)),
    ),
    Network(
        "MobileNetV2",
        ("features.0.1.weight", "features.1.conv.2.weight"),
        lambda shapes: published.with_odconv(mobilenet_v2.call_of(shapes)),
    ),
    Network(
        "FDYCNN",
        ("cnn.batchnorm0.weight", "cnn.batchnorm6.weight"),
        fdy_cnn.call_of,
        outer="cnn.",
    ),
    Network(
        "MobileNetV3",
        ("features.0.1.weight", "features.1.block.0.1.weight"),
        mobilenet_v3.call_of,
    ),
    Network("DyMN", ("in_c.1.weight", "layers.0.depth_norm.weight"), dymn.call_of),
    Network(
        "DyMN with static blocks",
        ("in_c.1.weight", dymn.FIRST_OF_STATIC),
        dymn.call_of,
    ),
    Network(
        "EfficientNet", ("bn1.weight", "blocks.0.0.bn1.weight"), efficientnet_cc.call_of
    ),
)
