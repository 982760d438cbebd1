"""The networks that KernelWarehouse was published with, by their parameter budgets.

Li & Yao, "KernelWarehouse: Rethinking the Design of Dynamic Convolution", ICML 2024.
Which layers share a warehouse, which are static, and the shapes of cells are those of
the authors' code, so that its checkpoints load. Layers of a stage share, whatever the
kernel size, and with them those that lead to the next stage.
"""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, TypedDict, Unpack

import torch

from dynconv_torch.functional.geometry import Geometry
from dynconv_torch.models.convnext import ConvNeXt
from dynconv_torch.models.mobilenet_v2 import MobileNetV2, mobilenet_v2
from dynconv_torch.models.options import check_options
from dynconv_torch.models.resnet import ResNet, resnet18, resnet50
from dynconv_torch.models.warehouses import with_warehouses

GroupBy = Callable[[int, Geometry, str], Hashable]


class WarehouseOptions(TypedDict, total=False):
    """What networks pass on to `with_warehouses`, which explains it."""

    assignment: float
    init: Literal["default", "published"]
    norm: str
    implementation: str


class _NetworkOptions(WarehouseOptions, total=False):
    in_channels: int
    drop_path_rate: float
    device: torch.device | str | None
    dtype: torch.dtype | None


class ResNetOptions(_NetworkOptions, total=False):
    """Options of a ResNet of warehouses: those of `ResNet`, and `WarehouseOptions`."""

    dropout: float


class MobileNetV2Options(_NetworkOptions, total=False):
    """Options of a MobileNetV2 of warehouses, likewise."""

    dropout: float
    width_mult: float


class ConvNeXtOptions(_NetworkOptions, total=False):
    """Options of a ConvNeXt of warehouses, likewise."""

    layer_scale: float


# The options of `with_warehouses` by budget. Of half the cells and fewer, each is half
# as wide, so that a layer of one tile still has a cell of its own.
_HALVED = dict(in_ratio=0.5, out_ratio=0.5)
RESNET18: Mapping[float, Mapping[str, Any]] = {
    0.25: dict(ratio=0.25, **_HALVED),
    0.5: dict(ratio=0.5, **_HALVED),
    1: {},
    2: dict(ratio=2),
    4: dict(ratio=4),
}
RESNET50: Mapping[float, Mapping[str, Any]] = {
    0.5: dict(ratio=0.5, nonlocal_basis_ratio=1 / 16, **_HALVED),
    1: {},
    4: dict(ratio=4),
}
# The keys are those of `mobilenet_stage`.
_LAST_STAGE = dict.fromkeys([(6, "expand"), (6, "project")], 0.5)
MOBILENET_V2: Mapping[float, Mapping[str, Any]] = {
    0.5: dict(
        ratio={**_LAST_STAGE, "classifier": 0.5},
        in_ratio={**_LAST_STAGE, "classifier": 0.025},
        out_ratio=_LAST_STAGE,
        reduction=32,
    ),
    1: {},
    4: dict(ratio=4),
}

CONVNEXT_TINY: Mapping[float, Mapping[str, Any]] = {1: dict(norm="layer")}


def resnet_stage(
    index: int, geometry: Geometry, path: str, *, first: int | None = 1
) -> int | None:
    """Groups the layers of a ResNet by stage, as published.

    The first convolution of a stage and the shortcut beside it, which take their inputs
    from the stage before, belong to the warehouse of that one. The stem is static.

    Args:
        index: The layer's place in the order of building.
        geometry: The layer's convolution.
        path: The layer's path in the model.
        first: What takes the place of a stage before the first; None, static layers.

    Example:
        >>> geometry = Geometry.create(64, 128, 3, rank=2)
        >>> paths = "conv1", "layer2.0.conv1", "layer2.0.downsample.0", "layer2.0.conv2"
        >>> [resnet_stage(0, geometry, path) for path in paths]
        [None, 1, 1, 2]
    """
    stage, *inner = path.split(".")
    if not inner:
        return None
    number = int(stage.removeprefix("layer"))
    if inner[0] == "0" and inner[1] in ("conv1", "downsample"):
        number -= 1
    return number or first


def kw_resnet18(
    num_classes: int = 1000, *, ratio: float = 1.0, **options: Unpack[ResNetOptions]
) -> ResNet:
    """Returns a ResNet of 18 layers, whose convolutions share warehouses.

    Args:
        num_classes: The number of logits.
        ratio: The parameter budget: 0.25, 0.5, 1, 2 or 4.
        **options: Those of `ResNet` and of `with_warehouses`.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If there is no such network, or a value is out of range.

    Example:
        >>> net = kw_resnet18(10, ratio=0.25, device="meta")
        >>> [warehouse.cells.shape for warehouse in net.warehouses][0]
        torch.Size([56, 32, 32, 1, 1])
    """
    settings = published(kw_resnet18, RESNET18, ratio, options)
    build = functools.partial(resnet18, num_classes, dynamic="all")
    return build_shared(build, resnet_stage, settings, options)


def kw_resnet50(
    num_classes: int = 1000, *, ratio: float = 1.0, **options: Unpack[ResNetOptions]
) -> ResNet:
    """Returns a ResNet of 50 layers, whose convolutions share warehouses.

    The first convolution and the shortcut of the first block are static, as the stem.
    At half the parameters the attention has a basis.

    Args:
        num_classes: The number of logits.
        ratio: The parameter budget: 0.5, 1 or 4.
        **options: Those of `ResNet` and of `with_warehouses`.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If there is no such network, or a value is out of range.

    Example:
        >>> net = kw_resnet50(10, device="meta")
        >>> [warehouse.cells.shape for warehouse in net.warehouses][0]
        torch.Size([87, 64, 64, 1, 1])
    """
    settings = published(kw_resnet50, RESNET50, ratio, options)
    build = functools.partial(resnet50, num_classes, dynamic="all")
    group_by = functools.partial(resnet_stage, first=None)
    return build_shared(build, group_by, settings, options)


# Which warehouse the layers of a block belong to, the stem first, the last convolution
# last: a block that leads to the next stage belongs to its own, and the last two stages
# are one.
_STAGE_OF_BLOCK = (0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 6, 6, 6, 6)


def mobilenet_stage(
    index: int, geometry: Geometry, path: str, *, ratio: float = 1
) -> Hashable:
    """Groups the layers of a MobileNetV2 by stage and kind, as published.

    Of a stage the depthwise convolutions share; and so do its 1×1 convolutions, or at
    other ratios than 1 those that expand and those that project apart. At half the
    parameters those of all stages but the last are static.

    Args:
        index: The layer's place in the order of building.
        geometry: The layer's convolution.
        path: The layer's path in the model.
        ratio: The parameter budget.

    Example:
        >>> geometry = Geometry.create(16, 96, 1, rank=2)
        >>> paths = [f"features.2.conv.{layer}" for layer in ("0.0", "1.0", "2")]
        >>> [mobilenet_stage(0, geometry, path)[1] for path in paths]
        ['pointwise', 'depthwise', 'pointwise']
    """
    part, number, *inner = path.split(".")
    if part == "classifier":
        return "classifier"
    block = int(number)
    stage = _STAGE_OF_BLOCK[block]
    if block == 0:
        return stage, "stem"
    if len(inner) == 3 and (block == 1 or inner[1] == "1"):
        return stage, "depthwise"
    if ratio == 1:
        return stage, "pointwise"
    if ratio < 1 and stage < 6:
        return None
    return stage, "expand" if len(inner) == 3 else "project"


def kw_mobilenet_v2(
    num_classes: int = 1000,
    *,
    ratio: float = 1.0,
    **options: Unpack[MobileNetV2Options],
) -> MobileNetV2:
    """Returns a MobileNetV2, whose convolutions share warehouses.

    At half the parameters the classifier is dynamic, and most 1×1 convolutions are not.

    Args:
        num_classes: The number of logits.
        ratio: The parameter budget: 0.5, 1 or 4.
        **options: Those of `MobileNetV2`, without dropout by default, and of
            `with_warehouses`. Published are networks of `width_mult` 0.5 and 1.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If there is no such network, or a value is out of range.

    Example:
        >>> net = kw_mobilenet_v2(10, ratio=0.5, device="meta")
        >>> [warehouse.cells.shape for warehouse in net.warehouses][-1]
        torch.Size([20, 10, 32, 1])
    """
    settings = published(kw_mobilenet_v2, MOBILENET_V2, ratio, options)
    group_by = functools.partial(mobilenet_stage, ratio=ratio)
    build = _with_dynamic_classifier if ratio < 1 else mobilenet_v2
    build = functools.partial(build, num_classes, dynamic="all")
    return build_shared(build, group_by, settings, {"dropout": 0.0, **options})


def _with_dynamic_classifier(num_classes: int, *, conv: Any, **options) -> MobileNetV2:
    """Builds a MobileNetV2 whose classifier `conv` builds too."""
    net = mobilenet_v2(num_classes, conv=conv, **options)
    shared = {name: options[name] for name in ("device", "dtype") if name in options}
    features = net.classifier[1].in_features
    net.classifier[1] = conv.linear(features, num_classes, **shared)
    return net


def convnext_stage(index: int, geometry: Geometry, path: str) -> Hashable:
    """Groups the layers of a ConvNeXt by stage and kind, as published.

    Of a stage the depthwise convolutions share, and so do its 1×1 convolutions. What is
    before a stage has a warehouse of its own.

    Args:
        index: The layer's place in the order of building.
        geometry: The layer's convolution.
        path: The layer's path in the model.

    Example:
        >>> geometry = Geometry.create(96, 384, 1, rank=2)
        >>> convnext_stage(0, geometry, "stages.0.2.pwconv1")
        ('stages', '0', 'pwconv')
        >>> convnext_stage(0, geometry, "downsample_layers.1.1")
        ('downsample_layers', '1')
    """
    part, number, *inner = path.split(".")
    if part == "downsample_layers":
        return part, number
    return part, number, inner[1].rstrip("12")


def kw_convnext_tiny(
    num_classes: int = 1000, *, ratio: float = 1.0, **options: Unpack[ConvNeXtOptions]
) -> ConvNeXt:
    """Returns a ConvNeXt-T, whose convolutions share warehouses, the stem too.

    Args:
        num_classes: The number of logits.
        ratio: The parameter budget: 1.
        **options: Those of `ConvNeXt` and of `with_warehouses`; `norm` is `"layer"` by
            default.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If there is no such network, or a value is out of range.

    Example:
        >>> net = kw_convnext_tiny(10, device="meta")
        >>> [warehouse.cells.shape for warehouse in net.warehouses][-1]
        torch.Size([24, 768, 768, 1, 1])
    """
    settings = published(kw_convnext_tiny, CONVNEXT_TINY, ratio, options)
    build = functools.partial(
        ConvNeXt, (3, 3, 9, 3), (96, 192, 384, 768), num_classes, dynamic="all"
    )
    return build_shared(build, convnext_stage, settings, options)


def published(
    network: Callable[..., Any],
    table: Mapping[float, Mapping[str, Any]],
    ratio: float,
    options: Mapping[str, Any],
) -> Mapping[str, Any]:
    """Returns the settings of a published budget.

    Args:
        network: The function that was called.
        table: Its settings by budget.
        ratio: The budget.
        options: What the function was given beside.

    Raises:
        TypeError: If it does not take an option.
        ValueError: If there is no network of this budget.

    Example:
        >>> published(kw_resnet18, RESNET18, 4, {})
        {'ratio': 4}
    """
    check_options(options, network)
    if isinstance(ratio, bool) or ratio not in table:
        name = network.__name__
        raise ValueError(
            f"`ratio` (={ratio!r}) of {name} must be one of {list(table)}, the budgets "
            "that were published; for another, give `with_warehouses` the network"
        )
    return table[ratio]


def build_shared(
    build: Callable[..., Any],
    group_by: GroupBy,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Any:
    """Builds a network with warehouses.

    Args:
        build: Builds it by `conv` and the options of a network.
        group_by: As of `with_warehouses`.
        settings: Further options of `with_warehouses`.
        options: Those of the network, and `WarehouseOptions`.
    """
    options = dict(options)
    own = WarehouseOptions.__annotations__
    shared = {name: options.pop(name) for name in own if name in options}
    return with_warehouses(
        functools.partial(build, **options),
        group_by=group_by,
        **{**settings, **shared},
    )
