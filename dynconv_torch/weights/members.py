"""The convolutions of the family, by the arrays that checkpoints have of them.

A row of `MEMBERS` says by which keys one of its layers is known, and how its options
are read off the shapes. It has the words of PyTorch, as the keys are PyTorch's, and the
same text in both packages.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dynconv_torch.models.convolutions import Role

# Of arrays by PyTorch key: those of a checkpoint, or of a layer by the key within it.
Shapes = Mapping[str, tuple[int, ...]]


class Unread(ValueError):
    """No options explain the arrays; the message says which arrays."""


class Place(NamedTuple):
    """Where a network has a convolution.

    Attributes:
        role: What it is to the network.
        stage: The stage that it is in, from 1.
        kernel_size: The side of its kernel.
        in_basic_block: Whether it is one of the two of a basic block.
    """

    role: Role
    stage: int = 0
    kernel_size: int = 3
    in_basic_block: bool = False


class Layer(NamedTuple):
    """A convolution of a checkpoint.

    Attributes:
        prefix: What its keys begin with, without the last dot.
        place: Where it is.
        arrays: The shapes of its arrays, by the rest of their keys.
    """

    prefix: str
    place: Place
    arrays: Shapes


class Member(NamedTuple):
    """How a member of the family is known.

    Attributes:
        conv: Its name for `create_model`.
        title: Its name in words.
        holds: Whether arrays are those of one of its layers.
        in_channels: The number of channels that a layer without groups takes.
        options: The options that its layers in a checkpoint have, those left out that
            are the defaults; it may raise `Unread`.
        beside: The end of a key that tells where a layer's own do not.
    """

    conv: str
    title: str
    holds: Callable[[Shapes], bool]
    in_channels: Callable[[Shapes], int]
    options: Callable[[Sequence[Layer], Shapes], dict[str, Any]]
    beside: str = ""


def shape_of(shapes: Shapes, key: str, *ranks: int) -> tuple[int, ...]:
    """Returns the shape of an array that must be there.

    Args:
        shapes: The shapes.
        key: The key.
        *ranks: The numbers of axes that it may have; one or more, if there are none.

    Raises:
        Unread: If it is not there, has other axes, or an axis of no length.

    Example:
        >>> shape_of({"fc.bias": (10,)}, "fc.bias", 1)
        (10,)
    """
    shape = shapes.get(key)
    if shape is None:
        raise Unread(f"{key} is missing")
    if 0 in shape or not shape or (ranks and len(shape) not in ranks):
        raise Unread(f"{key} has the shape {shape}")
    return shape


def one_of(what: str, values: Iterable[int]) -> int:
    """Returns the one value that all layers have.

    Raises:
        Unread: If they differ.

    Example:
        >>> one_of("experts", [4, 4])
        4
    """
    found = sorted(set(values))
    if len(found) != 1:
        raise Unread(f"its layers differ in the number of {what}: {found[:4]}")
    return found[0]


def reduction_of(
    pairs: Iterable[tuple[int, int]], *, floor: int, default: int
) -> int | None:
    """Returns r of H = max(C // r, floor); the default, or else a power of two, if any.

    Args:
        pairs: C and H of each layer.
        floor: The least H.
        default: The r that is preferred.

    Example:
        >>> reduction_of([(64, 16), (512, 32)], floor=16, default=4)
        16
    """
    low, high = 1, math.inf
    for channels, hidden in pairs:
        if hidden < floor:
            return None
        low = max(low, channels // (hidden + 1) + 1)
        if hidden > floor:
            high = min(high, channels // hidden)
    choices = (default, *(2**power for power in range(16)), low)
    return next((each for each in choices if low <= each <= high), None)


def without(defaults: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Returns options but those that are the defaults, or None.

    Example:
        >>> without({"num_experts": 4}, num_experts=4, reduction=2, norm=None)
        {'reduction': 2}
    """
    return {
        name: value
        for name, value in options.items()
        if value is not None and value != defaults.get(name)
    }


def _has(*keys: str) -> Callable[[Shapes], bool]:
    return lambda arrays: any(key in arrays for key in keys)


def _channels(key: str) -> Callable[[Shapes], int]:
    return lambda arrays: shape_of(arrays, key, 2, 3, 4, 5)[1]


def _experts(layers: Sequence[Layer]) -> int:
    return one_of("experts", (shape_of(each.arrays, "weight")[0] for each in layers))


def _hidden(layers: Sequence[Layer], key: str) -> list[tuple[int, int]]:
    """Returns the channels that a linear layer takes, and those that it gives."""
    found = (shape_of(each.arrays, key, 2, 4) for each in layers)
    return [(shape[1], shape[0]) for shape in found]


def _norm(layers: Sequence[Layer], batch: str, layer: str) -> str:
    """Returns what normalises in an attention, by the names of its two norms."""
    arrays = layers[0].arrays
    if f"{batch}.running_mean" in arrays:
        return "batch"
    return "layer" if f"{layer}.weight" in arrays else "none"


def _reduced(
    pairs: Sequence[tuple[int, int]],
    least: int,
    default: int,
    what: str = "the units of its attentions",
) -> tuple[int, int]:
    """Returns `reduction` and `min_hidden`, which is at most the least.

    Raises:
        Unread: If hidden units follow no `reduction`.
    """
    floor = min(least, *(hidden for _, hidden in pairs))
    reduction = reduction_of(pairs, floor=floor, default=default)
    if reduction is None:
        raise Unread(f"{what} follow no `reduction`")
    return reduction, floor


# DynamicConv, with keys of its own and with those of the port of Chen et al.


def _is_dynamic(arrays: Shapes) -> bool:
    experts, router = arrays.get("weight", ()), arrays.get("fc2.weight", ())
    return len(experts) > 3 and len(router) == 2 and router[0] == experts[0]


def _dynamic(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    pairs = _hidden(layers, "fc1.weight")
    has_bias = "fc1.bias" in layers[0].arrays
    options: dict[str, Any] = dict(num_experts=_experts(layers))
    reduction = reduction_of(pairs, floor=1, default=4)
    ports = [(channels, hidden - 1) for channels, hidden in pairs if channels != 3]
    if not has_bias and reduction_of(ports, floor=0, default=4):
        return without(dict(num_experts=4), **options) | _port(pairs)
    if reduction is None:
        options["router_hidden_channels"] = one_of(
            "hidden units", (h for _, h in pairs)
        )
    defaults = dict(num_experts=4, reduction=4, router_hidden_bias=True)
    options |= dict(reduction=reduction, router_hidden_bias=has_bias)
    return without(defaults, **options)


def _chen(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    pairs = _hidden(layers, "attention.fc1.weight")
    return without(dict(num_experts=4), num_experts=_experts(layers)) | _port(pairs)


def _port(pairs: Iterable[tuple[int, int]]) -> dict[str, Any]:
    """Returns the router of the port, of C // r + 1 units and K of three channels."""
    units = [(channels, hidden - 1) for channels, hidden in pairs if channels != 3]
    reduction = reduction_of(units, floor=0, default=4)
    if reduction is None:
        raise Unread("the hidden units of its routers follow no `reduction`")
    return dict(router="chen") | without(dict(reduction=4), reduction=reduction)


def _is_chen(arrays: Shapes) -> bool:
    return len(arrays.get("attention.fc1.weight", ())) in (3, 4, 5)


# The others.


def _odconv(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    reduction, floor = _reduced(_hidden(layers, "attention.fc.weight"), 16, 16)
    return without(
        dict(num_experts=4, reduction=16, min_hidden=16, norm="batch"),
        num_experts=_experts(layers),
        reduction=reduction,
        min_hidden=floor,
        norm=_norm(layers, "attention.bn", "attention.ln"),
    )


def _is_condconv(arrays: Shapes) -> bool:
    return len(arrays.get("weight", ())) == 2 and arrays.keys() <= {"weight", "bias"}


def _no_channels(arrays: Shapes) -> int:
    raise Unread("stem_routing_fn.weight is missing")


def _condconv(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    return without(dict(num_experts=4), num_experts=_experts(layers))


def _latent(arrays: Shapes) -> tuple[int, ...]:
    """Returns the shape of Q, which has another name in MobileNetV2."""
    is_other = "conv_q.weight" in arrays
    return shape_of(arrays, "conv_q.weight" if is_other else "q.weight", 4)


def _context(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    experts = (shape_of(each.arrays, "weight", 4)[2] for each in layers)
    return without(dict(num_experts=4), num_experts=one_of("experts", experts))


def _decomposed(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    pooled = _hidden(layers, "fc.0.weight")
    latent = [_latent(each.arrays)[:2] for each in layers]
    bins = [
        math.isqrt(features // channels)
        for (features, _), (_, channels) in zip(pooled, latent, strict=True)
    ]
    pairs = [
        (max(features, width**2), hidden)
        for (features, hidden), (width, _) in zip(pooled, latent, strict=True)
    ]
    usual = [2 if each.place.in_basic_block else 1 for each in layers]
    variant = "resnet"
    if any("conv_q.weight" in each.arrays for each in layers):
        variant = "mobilenet_v2"
        outputs = [shape_of(each.arrays, "conv.weight", 4)[0] for each in layers]
        usual = [
            2 if channels < out else 1
            for (_, channels), out in zip(latent, outputs, strict=True)
        ]
    squeezed = "the squeezed features of its layers"
    reduction, floor = _reduced(pairs, 4, 16, squeezed)
    return without(
        dict(variant="resnet", reduction=16, min_hidden=4),
        variant=variant,
        pool=None if bins == usual else one_of("bins", bins),
        reduction=reduction,
        min_hidden=floor,
    )


def _fdconv(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    spectra = one_of(
        "spectra", (shape_of(each.arrays, "dft_weight", 4)[0] for each in layers)
    )
    # Without a head there is one band.
    key = "KSM_Global.kernel_fc.weight"
    heads = (shape_of({key: (1,), **each.arrays}, key) for each in layers)
    reduction, floor = _reduced(_hidden(layers, "KSM_Global.fc.weight"), 16, 16)
    return without(
        dict(num_experts=64, num_spectra=1, reduction=16, min_hidden=16, norm="batch"),
        num_experts=one_of("bands", (head[0] // spectra for head in heads)),
        num_spectra=spectra,
        reduction=reduction,
        min_hidden=floor,
        norm=_norm(layers, "KSM_Global.bn", "KSM_Global.ln"),
    )


def _frequency_dynamic(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    found = [shape_of(each.arrays, "attention.conv1d1.weight", 3) for each in layers]
    pairs = [(channels, hidden) for hidden, channels, _ in found]
    reduction, floor = _reduced(pairs, 4, 4)
    return without(
        dict(num_experts=4, reduction=4, min_hidden=4, norm="batch"),
        num_experts=_experts(layers),
        reduction=reduction,
        min_hidden=floor,
        norm=_norm(layers, "attention.bn", "attention.ln"),
    )


def _is_tiled(arrays: Shapes) -> bool:
    linear = {"attention.fc1.weight", "attention.fc2.weight"}
    is_bare = "weight" not in arrays and linear <= arrays.keys()
    is_tiled = is_bare and all(len(arrays[key]) == 2 for key in linear)
    return is_tiled or "attention.norm1.running_mean" in arrays


def _warehouse(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    pairs = _hidden(layers, "attention.fc1.weight")
    reduction = reduction_of(pairs, floor=16, default=16)
    if reduction is None:
        raise Unread("the units of its attentions follow no `reduction`")
    groups: dict[tuple[str, int], list[Layer]] = {}
    for each in layers:
        groups.setdefault((stage_of(each.prefix), each.place.kernel_size), []).append(
            each
        )
    counts = []
    for index, group in enumerate(groups.values()):
        cells = shape_of(shapes, f"warehouses.{index}.cells", 5)[0]
        rows = (shape_of(each.arrays, "attention.fc2.weight", 2)[0] for each in group)
        counts.append((sum(count // (cells + 1) for count in rows), cells))
    return without(
        dict(ratio=1.0, reduction=16, norm="batch"),
        ratio=ratio_of(counts),
        reduction=reduction,
        norm=_norm(layers, "attention.norm1", "attention.norm1"),
    )


def stage_of(prefix: str) -> str:
    """Returns the beginning of a path, up to the first part with a digit in it.

    Example:
        >>> stage_of("layer1.0.conv2")
        'layer1'
    """
    parts = prefix.split(".")
    ends = [n for n, part in enumerate(parts, 1) if any(map(str.isdigit, part))]
    return ".".join(parts[: ends[0]] if ends else parts)


def ratio_of(counts: Sequence[tuple[int, int]]) -> float:
    """Returns the ratio of warehouses, a whole number or one over a whole number.

    Args:
        counts: Of each warehouse the tiles of its layers, and its cells.

    Raises:
        Unread: If there is none.

    Example:
        >>> ratio_of([(56, 14), (47, 11)])
        0.25
    """
    tiles, cells = max(counts)
    if cells >= tiles > 0:
        ratio, steps = float(cells // tiles), (cells // tiles, 1)
    else:
        # The most tiles tell the most: their cells are floor(tiles / m), or 1.
        blocks = range(1, 65)
        fitting = [m for m in blocks if all(max(1, t // m) == c for t, c in counts)]
        if not fitting:
            raise Unread(f"no ratio makes {cells} cells of {tiles} tiles")
        ratio, steps = 1 / fitting[0], (1, fitting[0])
    if any(max(1, each * steps[0] // steps[1]) != count for each, count in counts):
        raise Unread(f"its warehouses differ in their ratio, as of {counts[:4]}")
    return ratio


MEMBERS = (
    Member(
        "odconv",
        "ODConv",
        _has(
            "attention.channel_fc.weight",
            "attention.filter_fc.weight",
            "attention.spatial_fc.weight",
            "attention.kernel_fc.weight",
        ),
        _channels("attention.fc.weight"),
        _odconv,
    ),
    Member(
        "kernel_warehouse",
        "KernelWarehouse",
        _is_tiled,
        _channels("attention.fc1.weight"),
        _warehouse,
    ),
    Member(
        "dynamic",
        "Dynamic Convolution (Chen et al.) in the layout of its public PyTorch port",
        _is_chen,
        _channels("attention.fc1.weight"),
        _chen,
    ),
    Member(
        "decomposed",
        "Dynamic Convolution Decomposition",
        _has("fc_phi.weight", "fc_scale.weight"),
        lambda arrays: _latent(arrays)[1],
        _decomposed,
    ),
    Member(
        "fdconv",
        "FDConv",
        _has("KSM_Global.fc.weight"),
        _channels("KSM_Global.fc.weight"),
        _fdconv,
    ),
    Member(
        "frequency_dynamic",
        "FrequencyDynamicConv",
        _has("attention.conv1d1.weight"),
        _channels("attention.conv1d1.weight"),
        _frequency_dynamic,
    ),
    Member(
        "context",
        "ContextConv",
        _has("residuals.0.weight"),
        _no_channels,
        _context,
    ),
    Member(
        "condconv",
        "CondConv",
        _is_condconv,
        _no_channels,
        _condconv,
        beside="routing_fn.weight",
    ),
    Member(
        "dynamic",
        "DynamicConv",
        _is_dynamic,
        _channels("fc1.weight"),
        _dynamic,
    ),
)
