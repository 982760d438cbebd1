"""Whole models whose convolutions share warehouses of cells.

The size of cells follows from all layers that share them, so a model is built twice: at
first without arrays, to learn its layers, then with the warehouses made for them.
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import nn

from dynconv_torch.functional.geometry import Geometry, PaddingLike
from dynconv_torch.layers.convolution import ConvolutionNd
from dynconv_torch.layers.kernel_warehouse import (
    KernelWarehouse,
    WarehouseConv1d,
    WarehouseConv2d,
    WarehouseConv3d,
    WarehouseConvNd,
)


@dataclasses.dataclass(frozen=True)
class _Request:
    """A layer that a model asks for."""

    geometry: Geometry
    bias: bool
    device: torch.device | str | None
    dtype: torch.dtype | None


class _Outline(ConvolutionNd):
    """What stands for a layer while the model is outlined."""

    def __init__(self, index: int, geometry: Geometry):
        super().__init__()
        self.index = index
        self.rank = geometry.rank
        self.take_geometry(geometry)


def _conv(answer: Callable[[_Request], nn.Module], rank: int) -> Callable:
    """Returns a function with the signature of `nn.Conv2d`, that `answer` answers."""

    def conv(
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: PaddingLike = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        geometry = Geometry.create(
            in_channels,
            out_channels,
            kernel_size,
            rank=rank,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
        return answer(_Request(geometry, bias, device, dtype))

    return conv


def _outline(
    build: Callable[..., nn.Module], rank: int
) -> tuple[list[_Request], list[str]]:
    """Returns the layers that a model asks for, in order, and their paths in it."""
    requests: list[_Request] = []

    def record(request: _Request) -> _Outline:
        requests.append(request)
        return _Outline(len(requests) - 1, request.geometry)

    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = build(conv=_conv(record, rank))
    if not requests:
        raise ValueError("`build` never called its `conv`; there is nothing to share")
    paths = [""] * len(requests)
    for path, part in model.named_modules():
        if isinstance(part, _Outline):
            paths[part.index] = path
    return requests, paths


def stage_and_kernel_size(index: int, geometry: Geometry, path: str) -> Hashable:
    """Groups the layers of a stage that have one kernel size.

    The stage is the beginning of the path, up to the first part with a digit in it. In
    networks that number their blocks in one row, as MobileNetV2 does, that is a single
    block; where larger groups are wanted, group by something else.

    Args:
        index: The layer's place in the order of building.
        geometry: The layer's convolution.
        path: The layer's path in the model.

    Example:
        >>> geometry = Geometry.create(8, 8, 3, rank=2)
        >>> stage_and_kernel_size(4, geometry, "layer1.0.conv2")
        ('layer1', (3, 3))
    """
    stage = []
    for part in path.split("."):
        stage.append(part)
        if any(letter.isdigit() for letter in part):
            break
    return ".".join(stage), geometry.kernel_size


def with_warehouses(
    build: Callable[..., Any],
    *,
    rank: int = 2,
    group_by: Callable[[int, Geometry, str], Hashable] = stage_and_kernel_size,
    ratio: float = 1.0,
    in_ratio: float = 1.0,
    out_ratio: float = 1.0,
    spatial_partition: bool = True,
    assignment: float = 0.0,
    reduction: int = 16,
    norm: str = "batch",
    implementation: str = "auto",
) -> Any:
    """Builds a model whose convolutions are tiled with cells that they share.

    Li & Yao, "KernelWarehouse", ICML 2024.

    Args:
        build: Builds the model, called as `build(conv=conv)`. It builds the
            convolutions with `conv`, which has the signature of `torch.nn.Conv2d`, and
            must build the same ones in the same order each time.
        rank: The number of spatial dimensions of the convolutions.
        group_by: Answers a key for a layer, from its index, its geometry and its path
            in the model; layers with one key share a warehouse.
        ratio: The parameter budget, see `KernelWarehouse`, as the next four are.
        in_ratio: The in-planes of a cell over the largest possible.
        out_ratio: The out-planes of a cell over the largest possible.
        spatial_partition: Whether a cell is one tap of a window.
        assignment: The initial τ.
        reduction: Of the attention, see `WarehouseConv2d`, as the next two are.
        norm: What normalises inside of the attention.
        implementation: How to convolve.

    Returns:
        What `build` returns, with the list of warehouses as its attribute `warehouses`.

    Raises:
        ValueError: If the layers of a group cannot share cells, or `build` builds other
            layers the second time, or none at all, or a value is out of range.

    Example:
        >>> def build(conv):
        ...     return nn.Sequential(
        ...         conv(3, 8, 3, padding=1, bias=False),
        ...         conv(8, 16, 3, stride=2, padding=1, bias=False),
        ...     )
        >>> net = with_warehouses(build, group_by=lambda index, geometry, path: "all")
        >>> [warehouse.cells.shape for warehouse in net.warehouses]
        [torch.Size([171, 8, 1, 1, 1])]
    """
    if rank not in (1, 2, 3):
        raise ValueError(f"`rank` (={rank!r}) must be 1, 2 or 3")
    requests, paths = _outline(build, rank)
    groups: dict[Hashable, list[int]] = {}
    for index, (request, path) in enumerate(zip(requests, paths, strict=True)):
        groups.setdefault(group_by(index, request.geometry, path), []).append(index)

    def warehouse_of(key: Hashable, members: list[int]) -> KernelWarehouse:
        try:
            where = {(requests[i].device, requests[i].dtype) for i in members}
            if len(where) > 1:
                raise ValueError(f"device and dtype must be one for all, not {where}")
            device, dtype = where.pop()
            return KernelWarehouse(
                [requests[index].geometry for index in members],
                ratio=ratio,
                in_ratio=in_ratio,
                out_ratio=out_ratio,
                spatial_partition=spatial_partition,
                assignment=assignment,
                device=device,
                dtype=dtype,
            )
        except ValueError as error:
            names = ", ".join(paths[index] or str(index) for index in members)
            raise ValueError(
                f"the layers {names}, for which `group_by` answers {key!r}: {error}"
            ) from None

    warehouses = [warehouse_of(key, members) for key, members in groups.items()]
    places = {
        index: (warehouse, place)
        for warehouse, members in zip(warehouses, groups.values(), strict=True)
        for place, index in enumerate(members)
    }
    layer_class = (WarehouseConv1d, WarehouseConv2d, WarehouseConv3d)[rank - 1]
    built: list[WarehouseConvNd] = []

    def allocate(request: _Request) -> WarehouseConvNd:
        index = len(built)
        if index == len(requests) or request != requests[index]:
            first = requests[index] if index < len(requests) else "not at all"
            raise ValueError(
                f"`build` must build the same layers each time: layer {index} was "
                f"{first}, and is now {request}"
            )
        warehouse, place = places[index]
        layer = layer_class(
            warehouse,
            place,
            bias=request.bias,
            reduction=reduction,
            norm=norm,
            implementation=implementation,
        )
        built.append(layer)
        return layer

    model = build(conv=_conv(allocate, rank))
    if len(built) < len(requests):
        raise ValueError(
            "`build` must build the same layers each time: at first it built "
            f"{len(requests)}, then {len(built)}"
        )
    if hasattr(model, "warehouses"):
        raise ValueError(
            f"the model (a {type(model).__name__}) has an attribute `warehouses`; "
            "rename that, the warehouses are kept there"
        )
    model.warehouses = nn.ModuleList(warehouses)
    return model
