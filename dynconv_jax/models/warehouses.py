"""Whole models whose convolutions share warehouses of cells.

The size of cells follows from all layers that share them, so a model is built twice: at
first without arrays, to learn its layers, then with the warehouses made for them.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dynconv_jax.checks import check_rngs
from dynconv_jax.functional.geometry import Geometry, PaddingLike
from dynconv_jax.initializers import kaiming_fan_out, torch_linear
from dynconv_jax.layers.convolution import Convolution
from dynconv_jax.layers.kernel_warehouse import KernelWarehouse, WarehouseConv
from dynconv_jax.layers.warehouse_linear import WarehouseLinear, linear_geometry
from dynconv_jax.models.abstract import abstract_module


@dataclasses.dataclass(frozen=True)
class _Request:
    """A layer that a model asks for."""

    geometry: Geometry
    use_bias: bool
    dtype: Any
    param_dtype: Any
    is_linear: bool = False

    def static(self, rngs: nnx.Rngs) -> nnx.Module:
        """Builds the layer without cells."""
        geometry = self.geometry
        shared: dict[str, Any] = dict(
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )
        if self.is_linear:
            return torch_linear(geometry.in_features, geometry.out_features, **shared)
        return nnx.Conv(
            geometry.in_features,
            geometry.out_features,
            geometry.kernel_size,
            geometry.strides,
            padding=geometry.padding,
            kernel_dilation=geometry.kernel_dilation,
            feature_group_count=geometry.feature_group_count,
            kernel_init=kaiming_fan_out,
            **shared,
        )


class _Outline(Convolution):
    """What stands for a layer while the model is outlined."""

    def __init__(self, index: int, geometry: Geometry):
        self.index = index
        self._take_geometry(geometry)


class _Conv:
    """What stands for `nnx.Conv`, that `answer` answers."""

    def __init__(self, answer: Callable[[_Request, nnx.Rngs], nnx.Module]):
        self._answer = answer

    def __call__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        padding: PaddingLike = "SAME",
        kernel_dilation: int | Sequence[int] | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> nnx.Module:
        geometry = Geometry.create(
            in_features,
            out_features,
            kernel_size,
            strides=strides,
            padding=padding,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
        )
        dtype = None if dtype is None else jnp.dtype(dtype)
        request = _Request(geometry, use_bias, dtype, jnp.dtype(param_dtype))
        return self._answer(request, rngs)

    def linear(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> nnx.Module:
        """Stands for `nnx.Linear`."""
        dtype = None if dtype is None else jnp.dtype(dtype)
        geometry = linear_geometry(in_features, out_features)
        param_dtype = jnp.dtype(param_dtype)
        request = _Request(geometry, use_bias, dtype, param_dtype, is_linear=True)
        return self._answer(request, rngs)


def _outline(build: Callable[..., Any]) -> tuple[list[_Request], list[str]]:
    """Returns the layers that a model asks for, in order, and their paths in it."""
    requests: list[_Request] = []

    def record(request: _Request, rngs: nnx.Rngs) -> _Outline:
        requests.append(request)
        return _Outline(len(requests) - 1, request.geometry)

    model = abstract_module(lambda rngs: build(conv=_Conv(record), rngs=rngs))
    if not requests:
        raise ValueError("`build` never called its `conv`; there is nothing to share")
    paths = [""] * len(requests)
    parts: dict[tuple[Any, ...], Any] = dict(nnx.iter_modules(model))
    for path, part in parts.items():
        if isinstance(part, _Outline):
            paths[part.index] = ".".join(_names(path, parts))
    return requests, paths


def _names(
    path: tuple[Any, ...], parts: Mapping[tuple[Any, ...], Any]
) -> Iterator[str]:
    """Yields the names of a path as PyTorch has them: a row of layers has numbers."""
    for depth, name in enumerate(path):
        is_row = isinstance(parts.get(path[:depth]), nnx.Sequential)
        if not (is_row and name == "layers"):
            yield str(name)


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
        >>> geometry = Geometry.create(8, 8, (3, 3))
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
    rngs: nnx.Rngs,
) -> Any:
    """Builds a model whose convolutions are tiled with cells that they share.

    Li & Yao, "KernelWarehouse", ICML 2024.

    Args:
        build: Builds the model, called as `build(conv=conv, rngs=rngs)`. It builds the
            convolutions with `conv`, which has the signature of `nnx.Conv`, and must
            build the same ones in the same order each time. A linear layer that is to
            share is `conv.linear(in_features, out_features, rngs=rngs)`.
        group_by: Answers a key for a layer, from its index, its geometry and its path
            in the model, such as `"layer1.0.conv2"`, the same as in `dynconv_torch`;
            layers with one key share a warehouse. None leaves a layer static.
        ratio: The parameter budget, see `KernelWarehouse`, as the next five are: one
            for all warehouses, or by the keys of `group_by` one for each that is named,
            and 1 for the others.
        in_ratio: The in-planes of a cell over the largest possible, likewise.
        out_ratio: The out-planes of a cell over the largest possible, likewise.
        spatial_partition: Whether a cell is one tap of a window.
        assignment: The initial τ.
        init: How the cells are drawn.
        reduction: Of the attention, see `WarehouseConv`, as the next three are.
        norm: What normalises inside of the attention.
        nonlocal_basis_ratio: Of how many numbers the attention for the cells of other
            layers is mixed.
        implementation: How to convolve.
        rngs: Where the initial parameters come from; `build` gets it too.

    Returns:
        What `build` returns, with the list of warehouses as its attribute `warehouses`.

    Raises:
        ValueError: If the layers of a group cannot share cells, or `build` builds other
            layers the second time, or none at all; or if there is a ratio for no group.

    Example:
        >>> def build(conv, rngs):
        ...     return nnx.Sequential(
        ...         conv(3, 8, (3, 3), padding=1, use_bias=False, rngs=rngs),
        ...         conv(8, 16, (3, 3), 2, padding=1, use_bias=False, rngs=rngs),
        ...     )
        >>> net = with_warehouses(
        ...     build, group_by=lambda index, geometry, path: "all", rngs=nnx.Rngs(0)
        ... )
        >>> net(jnp.ones((2, 9, 7, 3))).shape
        (2, 5, 4, 16)
        >>> [warehouse.cells.shape for warehouse in net.warehouses]
        [(171, 1, 1, 1, 8)]
    """
    check_rngs(rngs)
    requests, paths = _outline(build)
    groups: dict[Hashable, list[int]] = {}
    for index, (request, path) in enumerate(zip(requests, paths, strict=True)):
        key = group_by(index, request.geometry, path)
        if key is not None:
            groups.setdefault(key, []).append(index)
    ratios = dict(ratio=ratio, in_ratio=in_ratio, out_ratio=out_ratio)
    _check_groups(groups, ratios)

    def warehouse_of(key: Hashable, members: list[int]) -> KernelWarehouse:
        try:
            param_dtypes = {requests[index].param_dtype for index in members}
            if len(param_dtypes) > 1:
                names = ", ".join(sorted(map(str, param_dtypes)))
                raise ValueError(f"`param_dtype` must be one for all, not {names}")
            return KernelWarehouse(
                [requests[index].geometry for index in members],
                **{name: _of_group(given, key) for name, given in ratios.items()},
                spatial_partition=spatial_partition,
                assignment=assignment,
                init=init,
                param_dtype=param_dtypes.pop(),
                rngs=rngs,
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
    built: list[nnx.Module] = []

    def allocate(request: _Request, rngs: nnx.Rngs) -> nnx.Module:
        index = len(built)
        if index == len(requests) or request != requests[index]:
            first = requests[index] if index < len(requests) else "not at all"
            raise ValueError(
                f"`build` must build the same layers each time: layer {index} was "
                f"{first}, and is now {request}"
            )
        if index not in places:
            built.append(request.static(rngs))
            return built[-1]
        warehouse, place = places[index]
        layer_class = WarehouseLinear if request.is_linear else WarehouseConv
        layer = layer_class(
            warehouse,
            place,
            use_bias=request.use_bias,
            reduction=reduction,
            norm=norm,
            nonlocal_basis_ratio=nonlocal_basis_ratio,
            implementation=implementation,
            dtype=request.dtype,
            rngs=rngs,
        )
        built.append(layer)
        return layer

    model = build(conv=_Conv(allocate), rngs=rngs)
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
    model.warehouses = nnx.List(warehouses)
    return model


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
