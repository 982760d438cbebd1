"""From the keys and shapes of a state dict to the published network that has them.

Pure functions of `{key: shape}`, as PyTorch has it, for the networks of `PUBLISHED`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dynconv_torch.models.mobilenet_v2 import STAGES, make_divisible
from dynconv_torch.models.published import PUBLISHED

Shapes = Mapping[str, tuple[int, ...]]

# Whether its blocks are bottlenecks, and how many each stage has.
RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
}

# What MobileNetV2's widths were multiplied by.
WIDTHS = (1.0, 0.25, 0.35, 0.5, 0.75, 1.3, 1.4)

# How many times fewer hidden features there may be; the first is as published.
REDUCTIONS = (16, 8, 4, 32)


def read_published(shapes: Shapes) -> dict[str, Any] | None:
    """Returns the arguments of `create_model` for a published network's state dict.

    Whether it fits is left to who loads it, strictly.

    Args:
        shapes: The shapes of the arrays by PyTorch key.

    Returns:
        `name` and `num_classes`, and what is not as the name has it; None if the keys
        are of no network of Dynamic Convolution Decomposition or of ODConv.

    Example:
        >>> shapes = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (10, 512)}
        >>> blocks = [f"layer{stage}.{i}" for stage in (1, 2, 3, 4) for i in (0, 1)]
        >>> for block in blocks:
        ...     shapes[f"{block}.conv1.weight"] = (4, 64, 64, 3, 3)
        ...     shapes[f"{block}.conv1.attention.fc.weight"] = (16, 64, 1, 1)
        >>> read_published(shapes)
        {'name': 'od_resnet18', 'num_classes': 10, 'conv_options': {'num_experts': 4}}
    """
    options: dict[str, Any] = {}
    if classifier := dynamic_classifier_of(shapes):
        family, head = "dcd", f"{classifier}.cls.weight"
        if classifier == "classifier.0":
            options["dropout"] = 0.0
        conv_options = _options_of_decomposition(shapes)
    else:
        family = "od"
        head = "fc.weight" if "fc.weight" in shapes else "classifier.1.weight"
        conv_options = _options_of_od_conv(shapes)
    architecture = resnet_of(shapes)
    stem = "conv1.weight"
    if architecture is None:
        architecture, stem = "mobilenet_v2", "features.0.0.weight"
        width_mult = width_mult_of(shapes)
        if width_mult is None:
            return None
        if width_mult != 1:
            options["width_mult"] = width_mult
    name = f"{family}_{architecture}"
    is_whole = {head, stem} <= shapes.keys()
    if name not in PUBLISHED or conv_options is None or not is_whole:
        return None
    in_channels = shapes[stem][1]
    if in_channels != 3:
        options["in_channels"] = in_channels
    if conv_options:
        options["conv_options"] = conv_options
    return {"name": name, "num_classes": shapes[head][0], **options}


def dynamic_classifier_of(shapes: Shapes) -> str | None:
    """Returns the key of a published `DynamicClassifier`, or None.

    Args:
        shapes: The shapes of the arrays by PyTorch key.

    Example:
        >>> dynamic_classifier_of({"classifier.1.cls_q.weight": (32, 512)})
        'classifier.1'
    """
    for name in ("classifier.0", "classifier.1"):
        if f"{name}.cls_q.weight" in shapes:
            return name
    return None


def resnet_of(shapes: Shapes) -> str | None:
    """Returns which ResNet has such blocks; None if none has.

    Args:
        shapes: The shapes of the arrays by PyTorch key.

    Example:
        >>> blocks = [f"layer{stage}.{i}" for stage in (1, 2, 3, 4) for i in (0, 1)]
        >>> resnet_of({f"{block}.conv1.weight": (64, 64, 3, 3) for block in blocks})
        'resnet18'
    """
    matches = (re.match(r"layer[1-4]\.\d+", key) for key in shapes)
    blocks = {found[0] for found in matches if found}
    depths = tuple(
        sum(block.startswith(f"layer{stage}.") for block in blocks)
        for stage in (1, 2, 3, 4)
    )
    is_deep = any(key.startswith("layer1.0.conv3.") for key in shapes)
    return RESNETS.get((is_deep, depths))


def width_mult_of(shapes: Shapes, candidates: Sequence[float] = WIDTHS) -> float | None:
    """Returns what MobileNetV2's widths are multiplied by; None if by no candidate.

    Args:
        shapes: The shapes of the arrays by PyTorch key.
        candidates: What it may be.

    Example:
        >>> widths = [16, *[24] * 2, *[24] * 3, *[48] * 4, *[72] * 3, *[120] * 3, 240]
        >>> blocks = {f"features.{i}.conv.3": (n,) for i, n in enumerate(widths, 1)}
        >>> shapes = {f"{key}.running_mean": shape for key, shape in blocks.items()}
        >>> width_mult_of(shapes | {"features.0.1.running_mean": (24,)})
        0.75
    """
    last: dict[int, tuple[int, int]] = {0: (0, 0)}  # norm of a block, and its width
    for key, shape in shapes.items():
        if found := re.fullmatch(r"features\.(\d+)\.conv\.(\d+)\.running_mean", key):
            block, place = int(found[1]), int(found[2])
            last[block] = max(last.get(block, (0, 0)), (place, shape[0]))
    (stem,) = shapes.get("features.0.1.running_mean", (0,))
    widths = [stem, *(last[block][1] for block in sorted(last.keys() - {0}))]
    usual = [32, *(width for _, width, depth, _ in STAGES for _ in range(depth))]
    for candidate in candidates:
        if widths == [make_divisible(width * candidate) for width in usual]:
            return candidate
    return None


def _options_of_decomposition(shapes: Shapes) -> dict[str, Any] | None:
    """Returns the options of the `DecomposedConv`s that are not as published."""
    ending = ".fc_phi.weight"  # (L², s)
    layers = [key.removesuffix(ending) for key in shapes if key.endswith(ending)]
    sizes = []
    for layer in layers:
        if not layer.startswith("classifier."):
            squares, hidden = shapes[f"{layer}{ending}"]
            sizes.append((hidden, max(shapes[f"{layer}.fc.0.weight"][1], squares)))
    return _with_reduction(sizes, 4) if sizes else None


def _options_of_od_conv(shapes: Shapes) -> dict[str, Any] | None:
    """Returns the options of the `ODConv`s that are not as published."""
    ending = ".attention.fc.weight"
    layers = [key.removesuffix(ending) for key in shapes if key.endswith(ending)]
    convolutions = {
        key.removesuffix(".weight")
        for key, shape in shapes.items()
        if key.endswith(".weight")
        and len(shape) >= 4
        and not re.search(r"^(conv1|features\.0\.0)\.|\.(attention|downsample)\.", key)
    }
    if convolutions != {*layers}:
        return None
    counts = {shapes.get(f"{layer}.weight", (0,))[0] for layer in layers}
    if len(counts) != 1:
        return None
    sizes = [shapes[f"{layer}{ending}"] for layer in layers]
    options = _with_reduction([(hidden, wide) for hidden, wide, *_ in sizes], 16)
    if options is not None and counts != {1}:
        options["num_experts"] = counts.pop()
    return options


def _with_reduction(
    sizes: Sequence[tuple[int, int]], floor: int
) -> dict[str, Any] | None:
    """Returns the reduction that gives so many hidden of so many features, if any."""
    for reduction in REDUCTIONS:
        if all(hidden == max(wide // reduction, floor) for hidden, wide in sizes):
            return {} if reduction == REDUCTIONS[0] else {"reduction": reduction}
    return None
