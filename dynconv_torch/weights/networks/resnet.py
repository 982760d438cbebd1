"""ResNets, by the keys and shapes of their checkpoints."""

import math
import re

from dynconv_torch.weights.member import Place
from dynconv_torch.weights.shapes import Shapes, count
from dynconv_torch.weights.trunks import Call, Trunk, read

# Whether the blocks are basic ones, and how many there are in each stage.
_RESNETS = {
    (True, (2, 2, 2, 2)): "resnet18",
    (True, (3, 4, 6, 3)): "resnet34",
    (False, (3, 4, 6, 3)): "resnet50",
    (False, (3, 4, 23, 3)): "resnet101",
}


def _resnet_place(match: re.Match[str]) -> Place:
    if match["stage"] is None:
        return Place("stem", kernel_size=7)
    stage, part = int(match["stage"]), match["part"]
    if part == "downsample.0":
        return Place("downsample", stage, 1)
    # Of a basic block until the keys say otherwise, see `_bottleneck_place`.
    return Place("body", stage, 3, True)


def _bottleneck_place(match: re.Match[str]) -> Place:
    place = _resnet_place(match)
    if place.role != "body":
        return place
    return Place("body", place.stage, 3 if match["part"] == "conv2" else 1)


_RESNET = Trunk(
    re.compile(
        r"conv1(?=\.)|layer(?P<stage>[1-4])\.\d+\.(?P<part>conv[123]|downsample\.0)"
    ),
    _resnet_place,
    stem="conv1",
    head="fc.weight",
    stages=4,
    dynamic="paper",
)


def call_of(shapes: Shapes, **own: str) -> Call:
    """Returns the call that a checkpoint may be of.

    Args:
        shapes: Of the checkpoint.
        **own: What its trunk has otherwise.
    """
    is_basic = "layer1.0.bn3.weight" not in shapes
    depths = tuple(
        count(shapes, f"layer{stage}.{{}}.bn1.weight") for stage in (1, 2, 3, 4)
    )
    known = [each for each in _RESNETS if each[0] == is_basic]
    nearest = min(known, key=lambda each: math.dist(each[1], depths))
    trunk = _RESNET if is_basic else _RESNET._replace(place=_bottleneck_place)
    return read(shapes, trunk._replace(**own), _RESNETS[nearest])
