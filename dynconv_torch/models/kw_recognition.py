"""Which of KernelWarehouse's networks are these weights of? Keys and shapes say it.

They are read in both layouts, that of published checkpoints and our own. The budget
shows in the cells of the first warehouse, and the grouping in how many there are.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dynconv_torch.models.mobilenet_v2 import make_divisible

Shapes = Mapping[str, tuple[int, ...]]


class _Network(NamedTuple):
    """How a network shows.

    Attributes:
        name: That of `create_model`.
        present: What keys begin with that it has.
        absent: What keys begin with that a deeper one has.
        budget: From the shape of the first warehouse to the budget.
        warehouses: How many there are, by the budgets published.
        head: What the keys of its classifier may begin with.
        stem: A key whose second axis is of the channels of images.
    """

    name: str
    present: str
    absent: str
    budget: Callable[[tuple[int, ...]], float]
    warehouses: Mapping[float, int]
    head: tuple[str, ...]
    stem: str


_CELLS = re.compile(r"warehouse_manager\.weights\.\d+|warehouses\.\d+\.cells")
_DYNAMIC_HEAD = "classifier.1.conv"

_NETWORKS = (
    _Network(
        name="kw_resnet18",
        present="layer3.1.conv2.attention.",
        absent="layer3.2.",
        budget=lambda cells: math.prod(cells) / (56 * 64 * 64),
        warehouses=dict.fromkeys((0.25, 0.5, 1, 2, 4), 4),
        head=("fc",),
        stem="conv1.weight",
    ),
    _Network(
        name="kw_resnet50",
        present="layer3.5.conv3.attention.",
        absent="layer3.6.",
        budget=lambda cells: math.prod(cells) / (87 * 64 * 64),
        warehouses=dict.fromkeys((0.5, 1, 4), 4),
        head=("fc",),
        stem="conv1.weight",
    ),
    _Network(
        name="kw_mobilenet_v2",
        present="features.17.conv.1.0.attention.",
        absent="features.19.",
        budget=lambda cells: cells[0] / 9,  # a cell for each tap of the stem
        warehouses={0.5: 10, 1: 13, 4: 19},
        head=("classifier", "classifier.1", _DYNAMIC_HEAD),
        stem="features.0.0.attention.fc1.weight",
    ),
    _Network(
        name="kw_convnext_tiny",
        present="stages.2.8.pwconv1.attention.",
        absent="stages.2.9.",
        budget=lambda cells: cells[0] / 16,
        warehouses={1: 12},
        head=("head",),
        stem="downsample_layers.0.0.attention.fc1.weight",
    ),
)


def recognize_kw_network(shapes: Shapes) -> tuple[str, dict[str, Any]] | None:
    """Returns the arguments of `create_model` for a network of these shapes.

    Args:
        shapes: Of the arrays of a state dict, by PyTorch key.

    Returns:
        The name, and the options that show, in the words of PyTorch: `num_classes`,
        `ratio`, of MobileNetV2 `width_mult`, and `in_channels` where it is not 3. None
        if it is none of these networks.

    Example:
        >>> from dynconv_torch.models.kw_networks import kw_resnet18
        >>> state = kw_resnet18(10, ratio=0.25, device="meta").state_dict()
        >>> shapes = {key: tuple(value.shape) for key, value in state.items()}
        >>> recognize_kw_network(shapes)
        ('kw_resnet18', {'num_classes': 10, 'ratio': 0.25})
    """
    warehouses = [shape for key, shape in shapes.items() if _CELLS.fullmatch(key)]
    if not warehouses or not warehouses[0]:
        return None

    def has(beginning: str) -> bool:
        return any(key.startswith(beginning) for key in shapes)

    for network in _NETWORKS:
        if not has(network.present) or has(network.absent):
            continue
        options: dict[str, Any] = {}
        for head in network.head:
            if classes := shapes.get(f"{head}.bias"):
                options["num_classes"] = classes[0]
        budget = 0.5 if has(f"{_DYNAMIC_HEAD}.") else network.budget(warehouses[0])
        if network.warehouses.get(budget) != len(warehouses):
            return None
        options["ratio"] = budget if budget < 1 else int(budget)
        if network.name == "kw_mobilenet_v2":
            options["width_mult"] = _width_mult(shapes)
        # What has no such axis is told as a wrong shape, by who builds the network.
        channels = shapes.get(network.stem, ())[1:2]
        if channels not in ((), (3,)):
            options["in_channels"] = channels[0]
        return network.name, options
    return None


def _width_mult(shapes: Shapes) -> float:
    """Returns by what the widths of a MobileNetV2 are multiplied, as users say it."""
    (width,) = shapes.get("features.17.conv.3.weight", ())[:1] or (320,)
    usual = 1.0, 0.5, 0.75, 0.35, 0.25, 1.4
    fits = [each for each in usual if make_divisible(320 * each) == width]
    return fits[0] if fits else width / 320


def call_of(name: str, options: Mapping[str, Any]) -> str:
    """Returns the call of `create_model` that has these arguments, as one writes it.

    Args:
        name: Of the network.
        options: Of the network.

    Example:
        >>> call_of("kw_resnet18", {"num_classes": 10, "ratio": 0.25})
        "create_model('kw_resnet18', 10, ratio=0.25)"
    """
    rest = dict(options)
    arguments = [repr(name)]
    if "num_classes" in rest:
        arguments.append(repr(rest.pop("num_classes")))
    arguments += [f"{option}={value!r}" for option, value in rest.items()]
    return f"create_model({', '.join(arguments)})"
