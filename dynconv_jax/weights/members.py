"""The convolutions of the family, by the arrays that checkpoints have of them.

A row of `MEMBERS` says by which keys one of its layers is known, and how its options
are read off the shapes. It has the words of PyTorch, as the keys are PyTorch's, and the
same text in both packages.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from dynconv_jax.models.convolutions import Role
from dynconv_jax.models.warehouses import stage_of
from dynconv_jax.weights.shapes import (
    Shapes,
    Unread,
    one_of,
    ratio_of,
    reduction_of,
    shape_of,
    without,
)

NONE: Mapping[str, tuple[object, str]] = MappingProxyType({})


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
        guesses: Options that no array tells, what they are taken to be, and why.
    """

    conv: str
    title: str
    holds: Callable[[Shapes], bool]
    in_channels: Callable[[Shapes], int]
    options: Callable[[Sequence[Layer], Shapes], dict[str, Any]]
    beside: str = ""
    guesses: Mapping[str, tuple[object, str]] = NONE


# What several members have in common.


def _has(*keys: str) -> Callable[[Shapes], bool]:
    return lambda arrays: any(key in arrays for key in keys)


def _channels(key: str) -> Callable[[Shapes], int]:
    return lambda arrays: shape_of(arrays, key, 2, 3, 4, 5)[1]


def _no_channels(arrays: Shapes) -> int:
    raise Unread("stem_routing_fn.weight is missing")


def _experts(layers: Sequence[Layer], axis: int = 0, *ranks: int) -> dict[str, Any]:
    """Returns the option of the experts, which lie along an axis of the weight."""
    counts = (shape_of(each.arrays, "weight", *ranks)[axis] for each in layers)
    return without(dict(num_experts=4), num_experts=one_of("experts", counts))


def _hidden(layers: Sequence[Layer], key: str) -> list[tuple[int, int]]:
    """Returns the channels that a layer of each attention takes, and gives."""
    found = (shape_of(each.arrays, key, 2, 3, 4) for each in layers)
    return [(shape[1], shape[0]) for shape in found]


def _reduced(
    pairs: Sequence[tuple[int, int]],
    least: int,
    default: int,
    what: str = "the units of its attentions",
) -> dict[str, Any]:
    """Returns `reduction`, and `min_hidden` where units are fewer than the least.

    Raises:
        Unread: If hidden units follow no `reduction`.
    """
    floor = min(least, *(hidden for _, hidden in pairs))
    reduction = reduction_of(pairs, floor=floor, default=default)
    if reduction is None:
        raise Unread(f"{what} follow no `reduction`")
    defaults = dict(reduction=default, min_hidden=least)
    return without(defaults, reduction=reduction, min_hidden=floor)


def _normalised(layers: Sequence[Layer], batch: str, layer: str) -> dict[str, Any]:
    """Returns what normalises in an attention, by the names of its two norms."""
    arrays = layers[0].arrays
    norm = "layer" if f"{layer}.weight" in arrays else "none"
    if f"{batch}.running_mean" in arrays:
        norm = "batch"
    return without(dict(norm="batch"), norm=norm)


# DynamicConv, with keys of its own and with those of the port of Chen et al.


def _is_dynamic(arrays: Shapes) -> bool:
    experts, router = arrays.get("weight", ()), arrays.get("fc2.weight", ())
    return len(experts) > 3 and len(router) == 2 and router[0] == experts[0]


def _dynamic(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    pairs = _hidden(layers, "fc1.weight")
    has_bias = "fc1.bias" in layers[0].arrays
    if not has_bias and (port := _port(pairs)):
        return _experts(layers) | port
    reduction = reduction_of(pairs, floor=1, default=4)
    hidden = None
    if reduction is None:
        hidden = one_of("hidden units", (units for _, units in pairs))
    return _experts(layers) | without(
        dict(reduction=4, router_hidden_bias=True),
        router_hidden_channels=hidden,
        reduction=reduction,
        router_hidden_bias=has_bias,
    )


def _port(pairs: Sequence[tuple[int, int]]) -> dict[str, Any] | None:
    """Returns the router of the port, of C // r + 1 units and K of three channels."""
    units = [(channels, hidden - 1) for channels, hidden in pairs if channels != 3]
    reduction = reduction_of(units, floor=0, default=4)
    if reduction is None:
        return None
    return dict(router="chen") | without(dict(reduction=4), reduction=reduction)


def _chen(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    port = _port(_hidden(layers, "attention.fc1.weight"))
    if port is None:
        raise Unread("the hidden units of its routers follow no `reduction`")
    return _experts(layers) | port


def _is_chen(arrays: Shapes) -> bool:
    return len(arrays.get("attention.fc1.weight", ())) in (3, 4, 5)


# Those with an attention that has a floor of units, and a norm.


def _odconv(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    return (
        _experts(layers)
        | _reduced(_hidden(layers, "attention.fc.weight"), 16, 16)
        | _normalised(layers, "attention.bn", "attention.ln")
    )


def _frequency_dynamic(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    return (
        _experts(layers)
        | _reduced(_hidden(layers, "attention.conv1d1.weight"), 4, 4)
        | _normalised(layers, "attention.bn", "attention.ln")
    )


def _fdconv(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    spectra = one_of(
        "spectra", (shape_of(each.arrays, "dft_weight", 4)[0] for each in layers)
    )
    # Without a head there is one band.
    key = "KSM_Global.kernel_fc.weight"
    heads = (shape_of({key: (1,), **each.arrays}, key) for each in layers)
    bands = one_of("bands", (head[0] // spectra for head in heads))
    return (
        without(
            dict(num_experts=64, num_spectra=1), num_experts=bands, num_spectra=spectra
        )
        | _reduced(_hidden(layers, "KSM_Global.fc.weight"), 16, 16)
        | _normalised(layers, "KSM_Global.bn", "KSM_Global.ln")
    )


_LOW_PASS = (
    "no array tells, and the authors' code has had 'stretched' and, first, 'one_sided'"
)


def _is_tiled(arrays: Shapes) -> bool:
    linear = {"attention.fc1.weight", "attention.fc2.weight"}
    is_bare = "weight" not in arrays and linear <= arrays.keys()
    is_tiled = is_bare and all(len(arrays[key]) == 2 for key in linear)
    return is_tiled or "attention.norm1.running_mean" in arrays


def _warehouse(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    if any(key.startswith("warehouse_manager.") for key in shapes):
        raise Unread(
            "its layers share as the authors' code has them share, which the networks "
            "`kw_...` do, and none of them is this one; `with_warehouses` builds it by "
            "a `group_by` of `models.kw_grouping`"
        )
    reduced = _reduced(_hidden(layers, "attention.fc1.weight"), 16, 16)
    if "min_hidden" in reduced:
        raise Unread("the units of its attentions follow no `reduction`")
    groups: dict[tuple[str, int], list[Layer]] = {}
    for each in layers:
        key = stage_of(each.prefix), each.place.kernel_size
        groups.setdefault(key, []).append(each)
    counts = []
    for index, group in enumerate(groups.values()):
        cells = shape_of(shapes, f"warehouses.{index}.cells", 5)[0]
        rows = (shape_of(each.arrays, "attention.fc2.weight", 2)[0] for each in group)
        counts.append((sum(count // (cells + 1) for count in rows), cells))
    return (
        without(dict(ratio=1.0), ratio=ratio_of(counts))
        | reduced
        | _normalised(layers, "attention.norm1", "attention.norm1")
    )


# Those of which little or much is their own.


def _is_condconv(arrays: Shapes) -> bool:
    return len(arrays.get("weight", ())) == 2 and arrays.keys() <= {"weight", "bias"}


def _latent(arrays: Shapes) -> tuple[int, ...]:
    """Returns the shape of Q, which has another name in MobileNetV2."""
    is_other = "conv_q.weight" in arrays
    return shape_of(arrays, "conv_q.weight" if is_other else "q.weight", 4)


def _decomposed(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    pooled = _hidden(layers, "fc.0.weight")
    latent = [_latent(each.arrays)[:2] for each in layers]
    bins = [
        math.isqrt(features // channels)
        for (features, _), (_, channels) in zip(pooled, latent, strict=True)
    ]
    squeezed = [
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
    pool = None if bins == usual else one_of("bins", bins)
    return without(dict(variant="resnet"), variant=variant, pool=pool) | _reduced(
        squeezed, 4, 16, "the squeezed features of its layers"
    )


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
        guesses={"low_pass": ("ideal", _LOW_PASS)},
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
        lambda layers, shapes: _experts(layers, 2, 4),
    ),
    Member(
        "condconv",
        "CondConv",
        _is_condconv,
        _no_channels,
        lambda layers, shapes: _experts(layers),
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
