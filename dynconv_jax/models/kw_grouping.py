"""Which layers of KernelWarehouse's networks share a warehouse, and which are static.

Layers of a stage share, and with them those that lead to the next stage. Each function
is a `group_by` of `with_warehouses`.
"""

from collections.abc import Callable, Hashable

from dynconv_jax.functional.geometry import Geometry

GroupBy = Callable[[int, Geometry, str], Hashable]


def resnet_stage(
    index: int, geometry: Geometry, path: str, *, first: int | None = 1
) -> int | None:
    """Groups the layers of a ResNet by stage, as published.

    The first convolution of a stage and the shortcut beside it, which take their inputs
    from the stage before, belong to the warehouse of that one. The stem is static.

    Args:
        index: The layer's place in the order of building.
        geometry: The layer's convolution.
        path: The layer's path in the model.
        first: What takes the place of a stage before the first; None, static layers.

    Example:
        >>> geometry = Geometry.create(64, 128, (3, 3))
        >>> paths = "conv1", "layer2.0.conv1", "layer2.0.downsample.0", "layer2.0.conv2"
        >>> [resnet_stage(0, geometry, path) for path in paths]
        [None, 1, 1, 2]
    """
    stage, *inner = path.split(".")
    if not inner:
        return None
    number = int(stage.removeprefix("layer"))
    if inner[0] == "0" and inner[1] in ("conv1", "downsample"):
        number -= 1
    return number or first


# Which warehouse the layers of a block belong to, the stem first, the last convolution
# last: a block that leads to the next stage belongs to its own, and the last two stages
# are one.
_STAGE_OF_BLOCK = (0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 6, 6, 6, 6)


def mobilenet_stage(
    index: int, geometry: Geometry, path: str, *, ratio: float = 1
) -> Hashable:
    """Groups the layers of a MobileNetV2 by stage and kind, as published.

    Of a stage the depthwise convolutions share; and so do its 1×1 convolutions, or at
    other ratios than 1 those that expand and those that project apart. At half the
    parameters those of all stages but the last are static.

    Args:
        index: The layer's place in the order of building.
        geometry: The layer's convolution.
        path: The layer's path in the model.
        ratio: The parameter budget.

    Example:
        >>> geometry = Geometry.create(16, 96, (1, 1))
        >>> paths = [f"features.2.conv.{layer}" for layer in ("0.0", "1.0", "2")]
        >>> [mobilenet_stage(0, geometry, path)[1] for path in paths]
        ['pointwise', 'depthwise', 'pointwise']
    """
    part, number, *inner = path.split(".")
    if part == "classifier":
        return "classifier"
    block = int(number)
    stage = _STAGE_OF_BLOCK[block]
    if block == 0:
        return stage, "stem"
    if len(inner) == 3 and (block == 1 or inner[1] == "1"):
        return stage, "depthwise"
    if ratio == 1:
        return stage, "pointwise"
    if ratio < 1 and stage < 6:
        return None
    return stage, "expand" if len(inner) == 3 else "project"


def convnext_stage(index: int, geometry: Geometry, path: str) -> Hashable:
    """Groups the layers of a ConvNeXt by stage and kind, as published.

    Of a stage the depthwise convolutions share, and so do its 1×1 convolutions. What is
    before a stage has a warehouse of its own.

    Args:
        index: The layer's place in the order of building.
        geometry: The layer's convolution.
        path: The layer's path in the model.

    Example:
        >>> geometry = Geometry.create(96, 384, (1, 1))
        >>> convnext_stage(0, geometry, "stages.0.2.pwconv1")
        ('stages', '0', 'pwconv')
        >>> convnext_stage(0, geometry, "downsample_layers.1.1")
        ('downsample_layers', '1')
    """
    part, number, *inner = path.split(".")
    if part == "downsample_layers":
        return part, number
    return part, number, inner[1].rstrip("12")
