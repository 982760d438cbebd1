"""DyMN, by the keys and shapes of its checkpoints."""

import re

from dynconv_torch.models.dymn import CONTEXT_BOUNDS, WIDTHS
from dynconv_torch.models.mobilenet_v3 import LARGE
from dynconv_torch.weights.member import Place
from dynconv_torch.weights.shapes import Shapes, without
from dynconv_torch.weights.trunks import (
    Call,
    Trunk,
    Widths,
    divisible,
    read,
    with_whole_head,
)


def _dymn_place(match: re.Match[str]) -> Place:
    if match["index"] is None:
        return Place("stem")
    side = 3 if match["part"] == "depth" else 1
    return Place("body", int(match["index"]) + 1, side)


# The norm of the first convolution, where the first block is static.
FIRST_OF_STATIC = "layers.0.block.0.1.weight"


def _widths(shapes: Shapes) -> Widths:
    """Returns what tells the width, also where blocks without squeeze are static."""
    has_static = FIRST_OF_STATIC in shapes
    parts, usual = ["in_c.1"], [16]
    for index, (_, expanded, width, *_, has_squeeze) in enumerate(LARGE):
        is_static = has_static and not has_squeeze
        last = f"block.{(expanded != usual[-1]) + 1}.1"
        names = ("block.0.1", last) if is_static else ("depth_norm", "proj_norm")
        parts += [f"layers.{index}.{name}" for name in names]
        usual += [expanded, width]
    # The contexts of these blocks have the least and the most channels. As the head,
    # they may be missing as a whole.
    ends = (f"layers.{index}.context_gen.joint_norm" for index in (3, len(LARGE) - 1))
    others = zip((*ends, "classifier.2"), (*CONTEXT_BOUNDS, 1280), strict=True)
    for part, width in others:
        if f"{part}.weight" in shapes:
            parts.append(part)
            usual.append(width)
    return Widths(parts, usual, divisible)


_DYMN = Trunk(
    # Not the last one, which is static whatever is dynamic.
    re.compile(r"in_c\.0|layers\.(?P<index>\d{1,3})\.(?P<part>exp|depth|proj)_conv"),
    _dymn_place,
    stem="in_c.0",
    head="classifier.5.weight",
    stages=len(LARGE),
    dynamic="paper",
    conv="context",
)


def call_of(shapes: Shapes) -> Call:
    """Returns the call that a checkpoint may be of."""
    trunk = _DYMN._replace(widths=_widths(shapes))
    call = read(shapes, trunk, "dymn10")
    mult = call.options.pop("width_mult", WIDTHS["dymn10"])
    name = next((name for name, each in WIDTHS.items() if each == mult), "dymn10")
    # Images have three channels, and sounds one, which is the default.
    found = {"in_channels": 3, "width_mult": mult, **call.options}
    options = without(dict(in_channels=1, width_mult=WIDTHS[name]), **found)
    if FIRST_OF_STATIC in shapes:  # as in those that the authors call replace_se
        options["context_in"] = "squeeze"
    title = call.title.replace("dymn10", name)
    call = call._replace(name=name, title=title, options=options)
    return with_whole_head(call, shapes, "classifier.2.weight")
