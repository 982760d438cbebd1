"""KernelWarehouse's own networks, by the keys and shapes of their checkpoints.

They are read in both layouts, that of published checkpoints and our own. How many
warehouses there are says how layers share them; cells and tiles say the budget, and the
attentions the rest of what one may train otherwise than published.
"""

import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from dynconv_jax.models.kw_grouping import (
    convnext_stage,
    mobilenet_stage,
    resnet_stage,
)
from dynconv_jax.models.kw_networks import (
    CONVNEXT_TINY,
    MOBILENET_V2,
    RESNET18,
    RESNET50,
)
from dynconv_jax.weights.networks import mobilenet_v2
from dynconv_jax.weights.shapes import (
    Shapes,
    Unread,
    ratio_of,
    reduction_of,
    shape_of,
    without,
)
from dynconv_jax.weights.trunks import Call, width_mult

# Of the warehouses of a checkpoint: cells, out-planes, in-planes, taps.
_Cells = Sequence[tuple[int, ...]]


class _Network(NamedTuple):
    """How a network shows.

    Attributes:
        name: That of `create_model`.
        present: What keys begin with that it has.
        absent: What keys begin with that a deeper one has.
        published: The settings of the budgets published.
        budget: From the cells to the budget, published or not.
        head: What the keys of its classifier may begin with, that which is missing
            where there is none first.
        stem: A key whose second axis is of the channels of images.
        group_by: How its layers share warehouses.
        warehouses: How many there are, and with which ratios.
        widest: The index of a warehouse, and the largest common divisor of the out- as
            of the in-planes of its layers; None where the width changes it.
    """

    name: str
    present: str
    absent: str
    published: Mapping[float, Mapping[str, Any]]
    budget: Callable[[_Cells], float]
    head: tuple[str, ...]
    stem: str
    group_by: Callable[..., Hashable]
    warehouses: Mapping[int, Callable[[float], bool]]
    widest: tuple[int, int] | None


def _over(numbers: int) -> Callable[[_Cells], float]:
    """Returns the budget of a network whose cells have so many numbers with 1."""
    return lambda cells: sum(map(math.prod, cells)) / numbers


def _by_warehouses(cells: _Cells) -> float:
    """Returns the budget of a MobileNetV2, which groups its layers by it."""
    counts = {10: 0.5, 13: 1, 19: 4}
    return counts[min(counts, key=lambda each: abs(each - len(cells)))]


def _any(ratio: float) -> bool:
    return True


_CELLS = re.compile(
    r"warehouse_manager\.weights\.(\d{1,9})|warehouses\.(\d{1,9})\.cells"
)
_FC1 = ".attention.fc1.weight"
_DYNAMIC_HEAD = "classifier.1.conv"
_HUNDREDTHS = tuple(part / 100 for part in range(1, 100))

_NETWORKS = (
    _Network(
        name="kw_resnet18",
        present="layer3.1.conv2.attention.",
        absent="layer3.2.",
        published=RESNET18,
        budget=_over(11_157_504),
        head=("fc",),
        stem="conv1.weight",
        group_by=resnet_stage,
        warehouses={4: _any},
        widest=(0, 64),
    ),
    _Network(
        name="kw_resnet50",
        present="layer3.5.conv3.attention.",
        absent="layer3.6.",
        published=RESNET50,
        budget=_over(23_425_024),
        head=("fc",),
        stem="conv1.weight",
        group_by=resnet_stage,
        warehouses={4: _any},
        widest=(0, 64),
    ),
    _Network(
        name="kw_mobilenet_v2",
        present="features.17.conv.1.0.attention.",
        absent="features.19.",
        published=MOBILENET_V2,
        budget=_by_warehouses,
        head=("classifier", "classifier.1", _DYNAMIC_HEAD),
        stem="features.0.0.attention.fc1.weight",
        group_by=mobilenet_stage,
        warehouses={
            10: lambda ratio: ratio < 1,
            13: lambda ratio: ratio == 1,
            19: lambda ratio: ratio > 1,
        },
        widest=None,
    ),
    _Network(
        name="kw_convnext_tiny",
        present="stages.2.8.pwconv1.attention.",
        absent="stages.2.9.",
        published=CONVNEXT_TINY,
        budget=lambda cells: 1,
        head=("head",),
        stem="downsample_layers.0.0.attention.fc1.weight",
        group_by=convnext_stage,
        warehouses={12: _any},
        widest=(-1, 768),
    ),
)


def call_of(shapes: Shapes) -> Call | None:
    """Returns the call that a checkpoint may be of; None if it is of none of these.

    Example:
        >>> cells = (56, 32, 32), (47, 64, 64), (47, 128, 128), (27, 256, 256)
        >>> shapes = {f"warehouses.{n}.cells": each for n, each in enumerate(cells)}
        >>> shapes |= {"layer3.1.conv2.attention.fc1.weight": (16, 256)}
        >>> call = call_of(shapes | {"fc.bias": (10,)})
        >>> call.name, call.options
        ('kw_resnet18', {'num_classes': 10, 'ratio': 0.25})
    """
    matches = [match for key in shapes if (match := _CELLS.fullmatch(key))]
    matches.sort(
        key=lambda match: int(match[1] or match[2])
    )  # files may have any order
    cells = [shapes[match.string] for match in matches]

    def has(beginning: str) -> bool:
        return any(key.startswith(beginning) for key in shapes)

    known = (each for each in _NETWORKS if has(each.present) and not has(each.absent))
    network = next(known, None)
    if not cells or network is None:
        return None
    options: dict[str, Any] = {}
    for head in network.head:
        if classes := shapes.get(f"{head}.bias"):
            options["num_classes"] = classes[0]
    doubts: tuple[str, ...] = ()
    try:
        options |= _settings(network, shapes, cells)
    except Unread as error:  # the nearest
        given = network.budget(cells) or 1
        settings = network.published
        nearest = min(settings, key=lambda each: abs(math.log(each / given)))
        options["ratio"] = nearest
        doubts = (str(error),)
    if network.name == "kw_mobilenet_v2":
        mult = width_mult(shapes, mobilenet_v2.WIDTHS)
        options |= without(dict(width_mult=1.0), width_mult=mult)
    # What has no such axis is told as a wrong shape, by who builds the network.
    channels = shapes.get(network.stem, ())[1:2]
    if channels not in ((), (3,)):
        options["in_channels"] = channels[0]
    return Call(network.name, options, network.name, network.head[0], doubts=doubts)


def _settings(network: _Network, shapes: Shapes, cells: _Cells) -> dict[str, Any]:
    """Returns the ratio, and what differs from what was published with it.

    Raises:
        Unread: If no options have these shapes.
    """
    elsewise = (
        "the authors' code had another `sharing_range`; give `with_warehouses` a "
        "`group_by` that shares so"
    )
    if len(cells) not in network.warehouses:
        expected = " or ".join(map(str, network.warehouses))
        raise Unread(f"its warehouses are {len(cells)} and not {expected}: {elsewise}")
    is_dynamic_head = f"{_DYNAMIC_HEAD}{_FC1}" in shapes  # with ratios of their own
    ratio = 0.5 if is_dynamic_head else _ratio(network, shapes, cells)
    if not network.warehouses[len(cells)](ratio):
        raise Unread(
            f"its warehouses are {len(cells)}, which a `ratio` of {ratio} does not "
            f"make: {elsewise}"
        )
    usual: dict[str, Any] = dict(in_ratio=1.0, out_ratio=1.0)
    usual |= dict(reduction=16, nonlocal_basis_ratio=1.0)
    usual |= network.published.get(ratio, {})
    found: dict[str, Any] = dict(
        reduction=_reduction(shapes, usual["reduction"]),
        nonlocal_basis_ratio=_basis_ratio(shapes, usual["nonlocal_basis_ratio"]),
    )
    if network.widest is not None:
        index, planes = network.widest
        for name, each in zip(
            ("out_ratio", "in_ratio"), cells[index][1:], strict=False
        ):
            if not each or planes % each:
                raise Unread(
                    f"the cells of a warehouse have the shape {cells[index]}, and "
                    f"{each} is no part of {planes} planes"
                )
            found[name] = each / planes
    own = {name: value for name, value in found.items() if value != usual[name]}
    if ratio not in network.published:  # then it is to be said what cells are
        own = dict(in_ratio=1.0, out_ratio=1.0) | own
    return {"ratio": ratio, **own}


def _layers(shapes: Shapes) -> list[str]:
    """Returns the paths of the layers with an attention over cells, in their order."""
    found = [key.removesuffix(_FC1) for key in shapes if key.endswith(_FC1)]

    def place(path: str) -> list[tuple[int, str]]:
        parts = re.findall(r"\d+|\D+", path)
        return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]

    return sorted(found, key=place)


def _ratio(network: _Network, shapes: Shapes, cells: _Cells) -> float:
    """Returns the cells over the tiles, which must be one for all warehouses."""
    tiles: dict[Hashable, int] = {}
    several = network.group_by is mobilenet_stage and len(cells) > 13
    options = dict(ratio=4) if several else {}
    if not all(cells):
        raise Unread("a warehouse has cells without a shape")
    for path in _layers(shapes):
        group = network.group_by(0, None, path, **options)
        key = f"{path}.attention.basis_bias"
        if key not in shapes:
            key = f"{path}.attention.fc2.bias"
        index = list(tiles).index(group) if group in tiles else len(tiles)
        if index == len(cells):
            raise Unread(f"its layers share more warehouses than {len(cells)}")
        size = shape_of(shapes, key, 1)[0] // (cells[index][0] + 1)
        tiles[group] = tiles.get(group, 0) + size
    counts = [
        (count, shape[0]) for count, shape in zip(tiles.values(), cells, strict=False)
    ]
    try:
        ratio = ratio_of(counts)
    except Unread as error:
        raise Unread(
            "its warehouses differ in their `cell_num_ratio`, as the authors call it "
            f"({error}); give `with_warehouses` a `ratio` for each"
        ) from None
    return ratio if ratio < 1 else int(ratio)


def _reduction(shapes: Shapes, usual: int) -> int:
    """Returns what divides the channels in attentions."""
    found = [shape_of(shapes, f"{path}{_FC1}", 2) for path in _layers(shapes)]
    pairs = [(channels, hidden) for hidden, channels in found]
    reduction = reduction_of(pairs, floor=16, default=usual)
    if reduction is None:
        raise Unread("the units of its attentions follow no `reduction`")
    return reduction


def _basis_ratio(shapes: Shapes, usual: float) -> float:
    """Returns the size of a basis over the number of other layers' cells."""
    keys = [key for key in shapes if key.endswith(".attention.fc3.weight")]
    if not keys:
        return 1.0
    if alone := [key for key in keys if shapes[key][:1] == (0,)]:
        raise Unread(
            f"{alone[0]} has the shape {shapes[alone[0]]}: of a layer that shares with "
            "no other nothing is mixed from a basis, and here it has none"
        )
    found = [shape_of(shapes, key, 2) for key in keys]
    choices = (usual, 1 / 16, *(1 / part for part in range(2, 257)), *_HUNDREDTHS)
    for ratio in choices:
        if ratio < 1 and all(max(16, int(n * ratio)) == basis for n, basis in found):
            return ratio
    raise Unread("the bases of its attentions follow no `nonlocal_basis_ratio`")
