"""The networks that KernelWarehouse was published with, by their parameter budgets.

Li & Yao, "KernelWarehouse: Rethinking the Design of Dynamic Convolution", ICML 2024.
Which layers share a warehouse, which are static, and the shapes of cells are those of
the authors' code, so that its checkpoints load. Layers of a stage share, whatever the
kernel size, and with them those that lead to the next stage.
"""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, TypedDict, Unpack

from jax.typing import DTypeLike

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.models.options import check_options
from dynconv_jax.models.resnet import ResNet, resnet18, resnet50
from dynconv_jax.models.warehouses import with_warehouses

GroupBy = Callable[[int, Geometry, str], Hashable]


class WarehouseOptions(TypedDict, total=False):
    """What networks pass on to `with_warehouses`, which explains it."""

    assignment: float
    init: Literal["default", "published"]
    norm: str
    implementation: str


class _NetworkOptions(WarehouseOptions, total=False):
    in_features: int
    dropout: float
    drop_path_rate: float
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    rngs: Any


class ResNetOptions(_NetworkOptions, total=False):
    """Options of a ResNet of warehouses: those of `ResNet`, and `WarehouseOptions`."""


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
        >>> geometry = Geometry.create(64, 128, (3, 3))
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
        >>> from dynconv_jax.models.abstract import abstract_module
        >>> net = abstract_module(lambda rngs: kw_resnet18(10, ratio=0.25, rngs=rngs))
        >>> [warehouse.cells.shape for warehouse in net.warehouses][0]
        (56, 1, 1, 32, 32)
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
        >>> from dynconv_jax.models.abstract import abstract_module
        >>> net = abstract_module(lambda rngs: kw_resnet50(10, rngs=rngs))
        >>> [warehouse.cells.shape for warehouse in net.warehouses][0]
        (87, 1, 1, 64, 64)
    """
    settings = published(kw_resnet50, RESNET50, ratio, options)
    build = functools.partial(resnet50, num_classes, dynamic="all")
    group_by = functools.partial(resnet_stage, first=None)
    return build_shared(build, group_by, settings, options)


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
    rngs = options.pop("rngs", None)
    return with_warehouses(
        functools.partial(build, **options),
        group_by=group_by,
        rngs=rngs,
        **{**settings, **shared},
    )
