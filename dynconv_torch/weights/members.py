"""The convolutions of the family, by the arrays that checkpoints have of them.

A row of `MEMBERS` says by which keys one of its layers is known, and how its options
are read off the shapes. It has the words of PyTorch, as the keys are PyTorch's, and the
same text in both packages.
"""

import math
from collections.abc import Sequence
from typing import Any

from dynconv_torch.models.warehouses import stage_of
from dynconv_torch.weights.member import (
    Layer,
    Member,
    channels_of,
    experts_of,
    has_any,
    hidden_units,
    no_channels,
    normalised,
    reduced,
)
from dynconv_torch.weights.shapes import (
    Shapes,
    Unread,
    one_of,
    ratio_of,
    reduction_of,
    shape_of,
    without,
)

# DynamicConv, with keys of its own and with those of the port of Chen et al.


def _is_dynamic(arrays: Shapes) -> bool:
    experts, router = arrays.get("weight", ()), arrays.get("fc2.weight", ())
    return len(experts) > 3 and len(router) == 2 and router[0] == experts[0]


def _dynamic(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    pairs = hidden_units(layers, "fc1.weight")
    has_bias = "fc1.bias" in layers[0].arrays
    if not has_bias and (port := _port(pairs)):
        return experts_of(layers) | port
    reduction = reduction_of(pairs, floor=1, default=4)
    hidden = None
    if reduction is None:
        hidden = one_of("hidden units", (units for _, units in pairs))
    return experts_of(layers) | without(
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
    port = _port(hidden_units(layers, "attention.fc1.weight"))
    if port is None:
        raise Unread("the hidden units of its routers follow no `reduction`")
    return experts_of(layers) | port


def _is_chen(arrays: Shapes) -> bool:
    return len(arrays.get("attention.fc1.weight", ())) in (3, 4, 5)


# Those with an attention that has a floor of units, and a norm.


def _odconv(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    return (
        experts_of(layers)
        | reduced(hidden_units(layers, "attention.fc.weight"), 16, 16)
        | normalised(layers, "attention.bn", "attention.ln")
    )


def _frequency_dynamic(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    return (
        experts_of(layers)
        | reduced(hidden_units(layers, "attention.conv1d1.weight"), 4, 4)
        | normalised(layers, "attention.bn", "attention.ln")
    )


# With fewer channels, in or out, a layer of FDConv is a plain one.
_MIN_CHANNELS = 17


def _min_channels(layers: Sequence[Layer]) -> int:
    """Returns `min_channels`, so low that none of these layers is plain."""
    heads = (
        layer.arrays.get(f"KSM_Global.{name}_fc.weight")
        for layer in layers
        for name in ("channel", "filter")  # of which a depthwise one has the first
    )
    return min(_MIN_CHANNELS, *(shape[0] for shape in heads if shape))


def _plain_fdconv(static: Sequence[Layer], layers: Sequence[Layer]) -> list[Layer]:
    least = _min_channels(layers)

    def is_plain(layer: Layer) -> bool:
        outputs, inputs, *kernel = layer.arrays.get("weight", (least, least))
        # Networks have no groups but those of depthwise convolutions.
        channels = outputs if inputs == 1 else min(outputs, inputs)
        return channels < least or kernel not in ([1, 1], [3, 3])

    return [layer for layer in static if is_plain(layer)]


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
            dict(num_experts=64, num_spectra=1, min_channels=_MIN_CHANNELS),
            num_experts=bands,
            num_spectra=spectra,
            min_channels=_min_channels(layers),
        )
        | reduced(hidden_units(layers, "KSM_Global.fc.weight"), 16, 16)
        | normalised(layers, "KSM_Global.bn", "KSM_Global.ln")
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
    found = reduced(hidden_units(layers, "attention.fc1.weight"), 16, 16)
    if "min_hidden" in found:
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
        | found
        | normalised(layers, "attention.norm1", "attention.norm1")
    )


# Those of which little or much is their own.


def _is_condconv(arrays: Shapes) -> bool:
    return len(arrays.get("weight", ())) == 2 and arrays.keys() <= {"weight", "bias"}


def _latent(arrays: Shapes) -> tuple[int, ...]:
    """Returns the shape of Q, which has another name in MobileNetV2."""
    is_other = "conv_q.weight" in arrays
    return shape_of(arrays, "conv_q.weight" if is_other else "q.weight", 4)


def _decomposed(layers: Sequence[Layer], shapes: Shapes) -> dict[str, Any]:
    pooled = hidden_units(layers, "fc.0.weight")
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
    return without(dict(variant="resnet"), variant=variant, pool=pool) | reduced(
        squeezed, 4, 16, "the squeezed features of its layers"
    )


MEMBERS = (
    Member(
        "odconv",
        "ODConv",
        has_any(
            "attention.channel_fc.weight",
            "attention.filter_fc.weight",
            "attention.spatial_fc.weight",
            "attention.kernel_fc.weight",
        ),
        channels_of("attention.fc.weight"),
        _odconv,
    ),
    Member(
        "kernel_warehouse",
        "KernelWarehouse",
        _is_tiled,
        channels_of("attention.fc1.weight"),
        _warehouse,
    ),
    Member(
        "dynamic",
        "Dynamic Convolution (Chen et al.) in the layout of its public PyTorch port",
        _is_chen,
        channels_of("attention.fc1.weight"),
        _chen,
    ),
    Member(
        "decomposed",
        "Dynamic Convolution Decomposition",
        has_any("fc_phi.weight", "fc_scale.weight"),
        lambda arrays: _latent(arrays)[1],
        _decomposed,
    ),
    Member(
        "fdconv",
        "FDConv",
        has_any("KSM_Global.fc.weight"),
        channels_of("KSM_Global.fc.weight"),
        _fdconv,
        guesses={"low_pass": ("ideal", _LOW_PASS)},
        plain=_plain_fdconv,
    ),
    Member(
        "frequency_dynamic",
        "FrequencyDynamicConv",
        has_any("attention.conv1d1.weight"),
        channels_of("attention.conv1d1.weight"),
        _frequency_dynamic,
    ),
    Member(
        "context",
        "ContextConv",
        has_any("residuals.0.weight"),
        no_channels,
        lambda layers, shapes: experts_of(layers, 2, 4),
    ),
    Member(
        "condconv",
        "CondConv",
        _is_condconv,
        no_channels,
        lambda layers, shapes: experts_of(layers),
        beside="routing_fn.weight",
    ),
    Member(
        "dynamic",
        "DynamicConv",
        _is_dynamic,
        channels_of("fc1.weight"),
        _dynamic,
    ),
)
