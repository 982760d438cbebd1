"""DynamicNet, by the keys and shapes of its checkpoints."""

import re

from dynconv_jax.models.dynamic_net import WIDTHS, scaled_widths
from dynconv_jax.weights.member import Place
from dynconv_jax.weights.shapes import Shapes
from dynconv_jax.weights.trunks import Call, Trunk, Widths, read

_DYNAMIC_NET = Trunk(
    re.compile(r"stem\.0|stage[123]\.dyn"),
    lambda match: Place("stem" if match[0] == "stem.0" else "body"),
    stem="stem.0",
    head="fc.weight",
    stages=3,
    dynamic=None,
    conv="dynamic",
    widths=Widths(
        ("stem.1", "stage1.bn", "stage2.bn", "stage3.bn"), WIDTHS, scaled_widths
    ),
)


def call_of(shapes: Shapes) -> Call:
    """Returns the call that a checkpoint may be of."""
    return read(shapes, _DYNAMIC_NET, "dynamic_net")
