"""Whole models whose convolutions share warehouses of cells.

The size of cells follows from all layers that share them, so a model is built twice: at
first without arrays, to learn its layers, then with the warehouses made for them.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from dynconv_torch.functional.geometry import Geometry, PaddingLike
from dynconv_torch.layers.convolution import ConvolutionNd
from dynconv_torch.layers.kernel_warehouse import (
    KernelWarehouse,
    WarehouseConv1d,
    WarehouseConv2d,
    WarehouseConv3d,
)
from dynconv_torch.layers.same_conv import PaddedConv1d, PaddedConv2d, PaddedConv3d
from dynconv_torch.layers.warehouse_layout import from_warehouse_layout
from dynconv_torch.layers.warehouse_linear import WarehouseLinear, linear_geometry

# From the shapes of a state dict, and of the model that is to load it, to what the
# state dict is of, in words. Checkpoints are known in `weights`, above, which adds its
# function.
Teller = Callable[[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]], str]
TELLERS: list[Teller] = []


@dataclasses.dataclass(frozen=True)
class _Request:
    """A layer that a model asks for."""

    geometry: Geometry
    bias: bool
    device: torch.device | str | None
    dtype: torch.dtype | None
    is_linear: bool = False

    def static(self) -> nn.Module:
        """Builds the layer without cells."""
        geometry = self.geometry
        shared: dict[str, Any] = dict(
            bias=self.bias, device=self.device, dtype=self.dtype
        )
        if self.is_linear:
            return nn.Linear(geometry.in_channels, geometry.out_channels, **shared)
        padded = (PaddedConv1d, PaddedConv2d, PaddedConv3d)[geometry.rank - 1]
        conv = padded(geometry, **shared)
        fan_out = geometry.out_channels * math.prod(geometry.kernel_size)
        nn.init.normal_(conv.weight, std=(2 / fan_out) ** 0.5)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        return conv


class _Outline(ConvolutionNd):
    """What stands for a layer while the model is outlined."""

    def __init__(self, index: int, geometry: Geometry):
        super().__init__()
        self.index = index
        self.rank = geometry.rank
        self.take_geometry(geometry)


class _Conv:
    """What stands for `nn.Conv2d`, that `answer` answers."""

    def __init__(self, answer: Callable[[_Request], nn.Module], rank: int):
        self._answer = answer
        self._rank = rank

    def __call__(
        self,
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
            rank=self._rank,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
        return self._answer(_Request(geometry, bias, device, dtype))

    def linear(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        """Stands for `nn.Linear`."""
        geometry = linear_geometry(in_features, out_features)
        return self._answer(_Request(geometry, bias, device, dtype, is_linear=True))


def _outline(
    build: Callable[..., nn.Module], rank: int
) -> tuple[list[_Request], list[str]]:
    """Returns the layers that a model asks for, in order, and their paths in it."""
    requests: list[_Request] = []

    def record(request: _Request) -> _Outline:
        requests.append(request)
        return _Outline(len(requests) - 1, request.geometry)

    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = build(conv=_Conv(record, rank))
    if not requests:
        raise ValueError("`build` never called its `conv`; there is nothing to share")
    paths = [""] * len(requests)
    for path, part in model.named_modules():
        if isinstance(part, _Outline):
            paths[part.index] = path
    return requests, paths


def stage_and_kernel_size(index: int, geometry: Geometry, path: str) -> Hashable:
    """Groups the layers of a stage that have one kernel size.

    Published networks are grouped otherwise: `kw_resnet18` and its siblings are those.

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
    return stage_of(path), geometry.kernel_size


def stage_of(path: str) -> str:
    """Returns the beginning of a path, up to the first part with a digit in it.

    Example:
        >>> stage_of("layer1.0.conv2")
        'layer1'
    """
    parts = path.split(".")
    ends = [n for n, part in enumerate(parts, 1) if any(map(str.isdigit, part))]
    return ".".join(parts[: ends[0]] if ends else parts)


def with_warehouses(
    build: Callable[..., Any],
    *,
    rank: int = 2,
    group_by: Callable[[int, Geometry, str], Hashable] = stage_and_kernel_size,
    ratio: float | Mapping[Any, float] = 1.0,
    in_ratio: float | Mapping[Any, float] = 1.0,
    out_ratio: float | Mapping[Any, float] = 1.0,
    spatial_partition: bool = True,
    assignment: float = 0.0,
    init: Literal["default", "published"] = "default",
    reduction: int = 16,
    norm: str = "batch",
    nonlocal_basis_ratio: float = 1.0,
    implementation: str = "auto",
) -> Any:
    """Builds a model whose convolutions are tiled with cells that they share.

    Li & Yao, "KernelWarehouse", ICML 2024.

    Args:
        build: Builds the model, called as `build(conv=conv)`. It builds the
            convolutions with `conv`, which has the signature of `torch.nn.Conv2d`, and
            must build the same ones in the same order each time. A linear layer that is
            to share is `conv.linear(in_features, out_features)`.
        rank: The number of spatial dimensions of the convolutions.
        group_by: Answers a key for a layer, from its index, its geometry and its path
            in the model, such as `"layer1.0.conv2"`, the same as in `dynconv_jax`;
            layers with one key share a warehouse. None leaves a layer static.
        ratio: The parameter budget, see `KernelWarehouse`, as the next five are: one
            for all warehouses, or by the keys of `group_by` one for each that is named,
            and 1 for the others.
        in_ratio: The in-planes of a cell over the largest possible, likewise.
        out_ratio: The out-planes of a cell over the largest possible, likewise.
        spatial_partition: Whether a cell is one tap of a window.
        assignment: The initial τ.
        init: How the cells are drawn.
        reduction: Of the attention, see `WarehouseConv2d`, as the next three are.
        norm: What normalises inside of the attention.
        nonlocal_basis_ratio: Of how many numbers the attention for the cells of other
            layers is mixed.
        implementation: How to convolve.

    Returns:
        What `build` returns, with the list of warehouses as its attribute `warehouses`.
        Its `load_state_dict` takes published checkpoints too, whose cells have other
        keys; `to_warehouse_layout` makes one of its `state_dict`.

    Raises:
        ValueError: If the layers of a group cannot share cells, or `build` builds other
            layers the second time, or none at all, or a value is out of range; or if
            there is a ratio for no group.

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
        key = group_by(index, request.geometry, path)
        if key is not None:
            groups.setdefault(key, []).append(index)
    ratios = dict(ratio=ratio, in_ratio=in_ratio, out_ratio=out_ratio)
    _check_groups(groups, ratios)

    def warehouse_of(key: Hashable, members: list[int]) -> KernelWarehouse:
        try:
            where = {(requests[i].device, requests[i].dtype) for i in members}
            if len(where) > 1:
                raise ValueError(f"device and dtype must be one for all, not {where}")
            device, dtype = where.pop()
            return KernelWarehouse(
                [requests[index].geometry for index in members],
                **{name: _of_group(given, key) for name, given in ratios.items()},
                spatial_partition=spatial_partition,
                assignment=assignment,
                init=init,
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
    conv_class = (WarehouseConv1d, WarehouseConv2d, WarehouseConv3d)[rank - 1]
    built: list[nn.Module] = []

    def allocate(request: _Request) -> nn.Module:
        index = len(built)
        if index == len(requests) or request != requests[index]:
            first = requests[index] if index < len(requests) else "not at all"
            raise ValueError(
                f"`build` must build the same layers each time: layer {index} was "
                f"{first}, and is now {request}"
            )
        if index not in places:
            built.append(request.static())
            return built[-1]
        warehouse, place = places[index]
        layer_class = WarehouseLinear if request.is_linear else conv_class
        layer = layer_class(
            warehouse,
            place,
            bias=request.bias,
            reduction=reduction,
            norm=norm,
            nonlocal_basis_ratio=nonlocal_basis_ratio,
            implementation=implementation,
        )
        built.append(layer)
        return layer

    model = build(conv=_Conv(allocate, rank))
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
    model.register_load_state_dict_pre_hook(_load_published)
    return model


def _load_published(
    model: nn.Module, state_dict: dict[str, Any], prefix: str, *reports: Any
) -> None:
    """Loads also what is in the layout of `warehouse_layout.py`.

    Of a published network with other options it says which.
    """
    own = {prefix + key: value for key, value in model.state_dict().items()}
    renamed = from_warehouse_layout(state_dict, own)
    state_dict.clear()
    state_dict.update(renamed)
    _, is_strict, *_, errors = reports
    if is_strict:
        given, ours = (
            {
                key.removeprefix(prefix): tuple(getattr(value, "shape", ()))
                for key, value in each.items()
                if key.startswith(prefix)
            }
            for each in (renamed, own)
        )
        # Of what is refused in any case.
        errors.extend(filter(None, (tell(given, ours) for tell in TELLERS)))


def _of_group(given: float | Mapping[Any, float], key: Hashable) -> float:
    """Returns the ratio of one group."""
    return given.get(key, 1.0) if isinstance(given, Mapping) else given


def _check_groups(
    groups: Mapping[Hashable, Any], ratios: Mapping[str, float | Mapping[Any, float]]
) -> None:
    """Refuses a model without groups, and a ratio of a group that there is not."""
    if not groups:
        raise ValueError(
            "`group_by` answers None for every layer, and then all are static; answer "
            "a key for those that are to share cells"
        )
    for name, given in ratios.items():
        for key in given if isinstance(given, Mapping) else ():
            if key not in groups:
                raise ValueError(
                    f"`{name}` is given for {key!r}, which `group_by` answers for no "
                    f"layer; it answers {list(groups)}"
                )
