"""The networks that KernelWarehouse was published with, by their parameter budgets.

Li & Yao, "KernelWarehouse: Rethinking the Design of Dynamic Convolution", ICML 2024.
Which layers share a warehouse, which are static, and the shapes of cells are those of
the authors' code, so that its checkpoints load. Layers of a stage share, whatever the
kernel size, and with them those that lead to the next stage.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict, Unpack

import torch

from dynconv_torch.models.convnext import ConvNeXt
from dynconv_torch.models.kw_grouping import (
    GroupBy,
    convnext_stage,
    mobilenet_stage,
    resnet_stage,
)
from dynconv_torch.models.mobilenet_v2 import MobileNetV2, mobilenet_v2
from dynconv_torch.models.options import check_options
from dynconv_torch.models.resnet import ResNet, resnet18, resnet50
from dynconv_torch.models.warehouses import with_warehouses


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
