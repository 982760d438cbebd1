"""The networks that KernelWarehouse was published with, by their parameter budgets.

Li & Yao, "KernelWarehouse: Rethinking the Design of Dynamic Convolution", ICML 2024.
Which layers share a warehouse, which are static, and the shapes of cells are those of
the authors' code, so that its checkpoints load. Layers of a stage share, whatever the
kernel size, and with them those that lead to the next stage.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict, Unpack

from dynconv_torch.models.convnext import ConvNeXt, ConvNeXtOptions
from dynconv_torch.models.kw_grouping import (
    GroupBy,
    convnext_stage,
    mobilenet_stage,
    resnet_stage,
)
from dynconv_torch.models.mobilenet_v2 import (
    MobileNetV2,
    MobileNetV2Options,
    mobilenet_v2,
)
from dynconv_torch.models.resnet import ResNet, ResNetOptions, resnet18, resnet50
from dynconv_torch.models.warehouses import with_warehouses

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
CONVNEXT_TINY: Mapping[float, Mapping[str, Any]] = {1: {}}

# Options of the networks without `kw_` in their names that these must leave out.
SETTLED = ("conv", "dynamic")


class SharedOptions(TypedDict, total=False):
    """The options that all of these networks have; `KernelWarehouse` explains them.

    Attributes:
        assignment: The initial τ.
        init: How the cells are drawn.
        implementation: How to convolve.
        in_ratio: The in-planes of a cell over the largest possible. This and what
            follows is as published with this ratio, if it is left out.
        out_ratio: The out-planes, likewise. With both the ratio may be any.
        reduction: Of the attention.
        nonlocal_basis_ratio: Of how many numbers attention is mixed.
    """

    assignment: float
    init: Literal["default", "published"]
    implementation: str
    in_ratio: float
    out_ratio: float
    reduction: int
    nonlocal_basis_ratio: float


class SharedResNetOptions(SharedOptions, ResNetOptions, total=False):
    """The options of `kw_resnet18` and `kw_resnet50`."""


class SharedMobileNetV2Options(SharedOptions, MobileNetV2Options, total=False):
    """The options of `kw_mobilenet_v2`."""


class SharedConvNeXtOptions(SharedOptions, ConvNeXtOptions, total=False):
    """The options of `kw_convnext_tiny`."""


def kw_resnet18(
    num_classes: int = 1000,
    *,
    ratio: float = 1.0,
    norm: str = "batch",
    **options: Unpack[SharedResNetOptions],
) -> ResNet:
    """Returns a ResNet of 18 layers, whose convolutions share warehouses.

    Args:
        num_classes: The number of logits.
        ratio: The parameter budget: 0.25, 0.5, 1, 2 or 4.
        norm: What normalises inside of the attention.
        **options: Those of `ResNet`, without `dynamic`, and those that all of these
            networks have for their warehouses, see `SharedOptions`. `conv=None` makes
            the static network, for which those and the options above count nothing.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If there is no network of this budget, or a value is out of range.

    Example:
        >>> net = kw_resnet18(10, ratio=0.25, device="meta")
        >>> [warehouse.cells.shape for warehouse in net.warehouses][0]
        torch.Size([56, 32, 32, 1, 1])
    """
    settings = published("kw_resnet18", RESNET18, ratio, options)
    build = functools.partial(resnet18, num_classes)
    return build_shared(build, resnet_stage, options, norm=norm, **settings)


def kw_resnet50(
    num_classes: int = 1000,
    *,
    ratio: float = 1.0,
    norm: str = "batch",
    **options: Unpack[SharedResNetOptions],
) -> ResNet:
    """Returns a ResNet of 50 layers, whose convolutions share warehouses.

    The first convolution and the shortcut of the first block are static, as the stem.
    At half the parameters the attention has a basis.

    Args:
        num_classes: The number of logits.
        ratio: The parameter budget: 0.5, 1 or 4.
        norm: What normalises inside of the attention.
        **options: Those of `ResNet`, without `dynamic`, and those that all of these
            networks have for their warehouses, see `SharedOptions`. `conv=None` makes
            the static network, for which those and the options above count nothing.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If there is no network of this budget, or a value is out of range.

    Example:
        >>> net = kw_resnet50(10, device="meta")
        >>> [warehouse.cells.shape for warehouse in net.warehouses][0]
        torch.Size([87, 64, 64, 1, 1])
    """
    settings = published("kw_resnet50", RESNET50, ratio, options)
    build = functools.partial(resnet50, num_classes)
    group_by = functools.partial(resnet_stage, first=None)
    return build_shared(build, group_by, options, norm=norm, **settings)


def kw_mobilenet_v2(
    num_classes: int = 1000,
    *,
    ratio: float = 1.0,
    norm: str = "batch",
    **options: Unpack[SharedMobileNetV2Options],
) -> MobileNetV2:
    """Returns a MobileNetV2, whose convolutions share warehouses.

    At half the parameters the classifier is dynamic, and most 1×1 convolutions are not.

    Args:
        num_classes: The number of logits.
        ratio: The parameter budget: 0.5, 1 or 4.
        norm: What normalises inside of the attention.
        **options: Those of `MobileNetV2`, as of `kw_resnet18`; without dropout by
            default. Published are networks of `width_mult` 0.5 and 1.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If there is no network of this budget, or a value is out of range.

    Example:
        >>> net = kw_mobilenet_v2(10, ratio=0.5, device="meta")
        >>> [warehouse.cells.shape for warehouse in net.warehouses][-1]
        torch.Size([20, 10, 32, 1])
    """
    settings = published("kw_mobilenet_v2", MOBILENET_V2, ratio, options)
    group_by = functools.partial(mobilenet_stage, ratio=ratio)
    build = _with_dynamic_classifier if ratio < 1 else mobilenet_v2
    build = functools.partial(build, num_classes)
    return build_shared(
        build, group_by, {"dropout": 0.0, **options}, norm=norm, **settings
    )


def _with_dynamic_classifier(num_classes: int, *, conv: Any, **options) -> MobileNetV2:
    """Builds a MobileNetV2 whose classifier `conv`, if any, builds too."""
    net = mobilenet_v2(num_classes, conv=conv, **options)
    if conv is None:
        return net
    shared = {name: options[name] for name in ("device", "dtype") if name in options}
    features = net.classifier[1].in_features
    net.classifier[1] = conv.linear(features, num_classes, **shared)
    return net


def kw_convnext_tiny(
    num_classes: int = 1000,
    *,
    ratio: float = 1.0,
    norm: str = "layer",
    **options: Unpack[SharedConvNeXtOptions],
) -> ConvNeXt:
    """Returns a ConvNeXt-T, whose convolutions share warehouses, the stem too.

    Args:
        num_classes: The number of logits.
        ratio: The parameter budget: 1.
        norm: What normalises inside of the attention.
        **options: Those of `ConvNeXt`, as of `kw_resnet18`.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If there is no network of this budget, or a value is out of range.

    Example:
        >>> net = kw_convnext_tiny(10, device="meta")
        >>> [warehouse.cells.shape for warehouse in net.warehouses][-1]
        torch.Size([24, 768, 768, 1, 1])
    """
    settings = published("kw_convnext_tiny", CONVNEXT_TINY, ratio, options)
    depths, widths = (3, 3, 9, 3), (96, 192, 384, 768)
    build = functools.partial(ConvNeXt, depths, widths, num_classes)
    return build_shared(build, convnext_stage, options, norm=norm, **settings)


def published(
    name: str,
    table: Mapping[float, Mapping[str, Any]],
    ratio: float,
    options: Mapping[str, Any],
) -> Mapping[str, Any]:
    """Returns the settings of a budget, but for what is given.

    Args:
        name: Of the network.
        table: Its settings by budget.
        ratio: The budget.
        options: What is given. It must say of a budget that was not published what its
            cells are.

    Raises:
        ValueError: If there is no network of this budget.

    Example:
        >>> published("kw_resnet18", RESNET18, 4, {})
        {'ratio': 4}
        >>> published("kw_resnet18", RESNET18, 3, {"in_ratio": 1.0, "out_ratio": 1.0})
        {'ratio': 3}
    """
    if not isinstance(ratio, bool):
        if ratio in table:
            return table[ratio]
        if {"in_ratio", "out_ratio"} <= options.keys():
            return {"ratio": ratio}
    raise ValueError(
        f"`ratio` (={ratio!r}) of {name} must be one of {list(table)}, the budgets "
        "that were published; for another, give `in_ratio` and `out_ratio`, which say "
        "what its cells are"
    )


def build_shared(
    build: Callable[..., Any],
    group_by: GroupBy,
    options: Mapping[str, Any],
    **settings: Any,
) -> Any:
    """Builds a network with warehouses, or the static one where `conv` is None.

    Args:
        build: Builds it by `conv`, `dynamic` and further options.
        group_by: As of `with_warehouses`.
        options: Those of the network, and `SharedOptions`.
        **settings: Further options of `with_warehouses`.

    Raises:
        ValueError: If the options say which convolutions are dynamic, or what they are.
    """
    options = dict(options)
    for name in SharedOptions.__annotations__:
        if name in options:
            settings[name] = options.pop(name)
    if options.get("conv", "warehouses") is None:
        return build(**options)
    for name in SETTLED:
        if name in options:
            raise ValueError(
                f"`{name}` (={options[name]!r}) must be left out: which convolutions "
                "share warehouses is as published; the network without `kw_` in its "
                "name takes others, and `conv=None` makes this one static"
            )
    build = functools.partial(build, dynamic="all", **options)
    return with_warehouses(build, group_by=group_by, **settings)
