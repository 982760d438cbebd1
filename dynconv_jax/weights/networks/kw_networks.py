"""KernelWarehouse's own networks, by the keys and shapes of their checkpoints.

They are read in both layouts, that of published checkpoints and our own. The budget
shows in how many numbers the cells have, or in how many warehouses there are.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dynconv_jax.models.kw_networks import (
    CONVNEXT_TINY,
    MOBILENET_V2,
    RESNET18,
    RESNET50,
)
from dynconv_jax.weights.networks import mobilenet_v2
from dynconv_jax.weights.shapes import Shapes, without
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
        planes: How wide the cells of the first warehouse are with `ratio` 1, where each
            has cells twice as wide as the one before.
    """

    name: str
    present: str
    absent: str
    published: Mapping[float, Mapping[str, Any]]
    budget: Callable[[_Cells], float]
    head: tuple[str, ...]
    stem: str
    planes: int | None = None


def _over(numbers: int) -> Callable[[_Cells], float]:
    """Returns the budget of a network whose cells have so many numbers with 1."""
    return lambda cells: sum(map(math.prod, cells)) / numbers


def _by_warehouses(cells: _Cells) -> float:
    """Returns the budget of a MobileNetV2, which groups its layers by it."""
    counts = {10: 0.5, 13: 1, 19: 4}
    return counts[min(counts, key=lambda each: abs(each - len(cells)))]


_CELLS = re.compile(r"warehouse_manager\.weights\.\d+|warehouses\.\d+\.cells")

_NETWORKS = (
    _Network(
        name="kw_resnet18",
        present="layer3.1.conv2.attention.",
        absent="layer3.2.",
        published=RESNET18,
        budget=_over(11_157_504),
        head=("fc",),
        stem="conv1.weight",
        planes=64,
    ),
    _Network(
        name="kw_resnet50",
        present="layer3.5.conv3.attention.",
        absent="layer3.6.",
        published=RESNET50,
        budget=_over(23_425_024),
        head=("fc",),
        stem="conv1.weight",
        planes=64,
    ),
    _Network(
        name="kw_mobilenet_v2",
        present="features.17.conv.1.0.attention.",
        absent="features.19.",
        published=MOBILENET_V2,
        budget=_by_warehouses,
        head=("classifier", "classifier.1", "classifier.1.conv"),
        stem="features.0.0.attention.fc1.weight",
    ),
    _Network(
        name="kw_convnext_tiny",
        present="stages.2.8.pwconv1.attention.",
        absent="stages.2.9.",
        published=CONVNEXT_TINY,
        budget=lambda cells: 1,
        head=("head",),
        stem="downsample_layers.0.0.attention.fc1.weight",
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
    cells = [shape for key, shape in shapes.items() if _CELLS.fullmatch(key)]

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
    given = network.budget(cells) or 1
    ratio = min(network.published, key=lambda each: abs(math.log(each / given)))
    options["ratio"] = ratio
    if network.name == "kw_mobilenet_v2":
        mult = width_mult(shapes, mobilenet_v2.WIDTHS)
        options |= without(dict(width_mult=1.0), width_mult=mult)
    # What has no such axis is told as a wrong shape, by who builds the network.
    channels = shapes.get(network.stem, ())[1:2]
    if channels not in ((), (3,)):
        options["in_channels"] = channels[0]
    doubts = _doubts(network, cells, given, ratio)
    return Call(network.name, options, network.name, network.head[0], doubts=doubts)


def _doubts(
    network: _Network, cells: _Cells, given: float, ratio: float
) -> tuple[str, ...]:
    """Returns in what cells are of another budget than published, or cut otherwise."""
    if network.planes is None:
        return ()
    settings = network.published[ratio]
    halves = [settings.get(name, 1) for name in ("out_ratio", "in_ratio")]
    usual = [int(network.planes * half) for half in halves]
    found = list(cells[0][1:3])
    if len(found) == 2 and found != usual:
        out, into = (each / network.planes for each in found)
        how = f"cells of the planes {found}, and not {usual}: an `out_ratio` of {out:g}"
        how += f" and an `in_ratio` of {into:g}"
    elif abs(given / ratio - 1) > 0.01:
        how = f"cells for a `ratio` of {given:.3g}"
    else:
        return ()
    remedy = "`with_warehouses` builds networks of any ratios"
    return (f"its first warehouse has {how}; {remedy}",)
