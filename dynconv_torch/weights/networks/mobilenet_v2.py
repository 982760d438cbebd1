"""MobileNetV2, by the keys and shapes of its checkpoints."""

import re

from dynconv_torch.models.mobilenet_v2 import STAGES
from dynconv_torch.weights.member import Place
from dynconv_torch.weights.shapes import Shapes
from dynconv_torch.weights.trunks import Call, Trunk, Widths, divisible, read


def stage_of_block(block: int) -> int:
    """Returns the stage, from 1, of a block of MobileNetV2, from 1; 0 behind them."""
    depths = [depth for _, _, depth, _ in STAGES]
    ends = [sum(depths[: stage + 1]) for stage in range(len(depths))]
    return next((n for n, end in enumerate(ends, 1) if block <= end), 0)


def _mobilenet_place(match: re.Match[str]) -> Place:
    index = int(match["index"])
    if index == 0:
        return Place("stem")
    if match["inner"] is None:
        return Place("head", kernel_size=1)
    # The first block has nothing before its depthwise convolution.
    is_depthwise = match["inner"] == (".conv.0.0" if index == 1 else ".conv.1.0")
    return Place("body", stage_of_block(index), 3 if is_depthwise else 1)


def widths(first: str, others: str) -> Widths:
    """Returns what tells the widths.

    Args:
        first: The last norm of the first block.
        others: That of other blocks.
    """
    channels = [each for _, each, depth, _ in STAGES for _ in range(depth)]
    norms = ["features.0.1", f"features.1.{first}"]
    norms += [f"features.{index}.{others}" for index in range(2, len(channels) + 1)]
    return Widths(norms, [32, *channels], divisible)


WIDTHS = widths("conv.2", "conv.3")

_MOBILENET = Trunk(
    re.compile(
        r"(?!features\.1\.conv\.2\.)features\.(?P<index>\d{1,3})"
        r"(?:\.0(?=\.)|(?P<inner>\.conv\.(?:[01]\.0(?=\.)|[12](?=\.\D))))"
    ),
    _mobilenet_place,
    stem="features.0.0",
    head="classifier.1.weight",
    stages=len(STAGES),
    dynamic="paper",
    widths=WIDTHS,
)


def call_of(shapes: Shapes, trunk: Trunk = _MOBILENET) -> Call:
    """Returns the call that a checkpoint may be of.

    Args:
        shapes: Of the checkpoint.
        trunk: What its network is.
    """
    return read(shapes, trunk, "mobilenet_v2")
