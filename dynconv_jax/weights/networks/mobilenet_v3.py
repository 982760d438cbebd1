"""MobileNetV3, by the keys and shapes of its checkpoints."""

import re

from dynconv_jax.models.mobilenet_v3 import LARGE, SMALL
from dynconv_jax.weights.member import Place
from dynconv_jax.weights.shapes import Shapes, count
from dynconv_jax.weights.trunks import (
    Call,
    Trunk,
    Widths,
    divisible,
    read,
    with_whole_head,
)


def _mobilenet_v3_place(match: re.Match[str]) -> Place:
    index = int(match["index"])
    if index == 0:
        return Place("stem")
    if match["part"] is None:
        return Place("head", kernel_size=1)
    # The first block has nothing before its depthwise convolution.
    is_depthwise = match["part"] == ("0" if index == 1 else "1")
    return Place("body", index, 3 if is_depthwise else 1)


_MOBILENET_V3 = Trunk(
    re.compile(
        r"features\.(?P<index>\d{1,3})(?:\.0(?=\.)|\.block\.(?P<part>\d)\.0(?=\.))"
    ),
    _mobilenet_v3_place,
    stem="features.0.0",
    head="classifier.3.weight",
    stages=len(LARGE),
    dynamic="paper",
)


def call_of(shapes: Shapes) -> Call:
    """Returns the call that a checkpoint may be of."""
    blocks = count(shapes, "features.{}.block.0.1.weight", first=1)
    is_large = blocks > (len(SMALL) + len(LARGE)) // 2
    blocks, name = (LARGE, "large") if is_large else (SMALL, "small")
    norms, widths = ["features.0.1"], [16]
    # By position: the two frameworks have names of their own for widths.
    for index, (_, expanded, after, *_, has_squeeze) in enumerate(blocks, start=1):
        last = (expanded != widths[-1]) + 1 + has_squeeze
        norms += [f"features.{index}.block.{part}.1" for part in (0, last)]
        widths += [expanded, after]
    if "classifier.0.weight" in shapes:
        norms.append("classifier.0")
        widths.append(1280 if is_large else 1024)
    trunk = _MOBILENET_V3._replace(
        stages=len(blocks), widths=Widths(norms, widths, divisible)
    )
    call = read(shapes, trunk, f"mobilenet_v3_{name}")
    return with_whole_head(call, shapes, "classifier.0.weight")
