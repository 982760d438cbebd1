"""EfficientNets, by the keys and shapes of their checkpoints."""

import math
import re

from dynconv_torch.models.efficientnet_cc import STAGES
from dynconv_torch.weights.member import Place
from dynconv_torch.weights.shapes import Shapes, count, shape_of, without
from dynconv_torch.weights.trunks import Call, Trunk, read

_PARTS = {"conv_pw": 1, "conv_pwl": 1}


def _efficientnet_place(match: re.Match[str]) -> Place:
    if match["stage"] is None:
        is_stem = match[0] == "conv_stem"
        return Place("stem") if is_stem else Place("head", kernel_size=1)
    stage = int(match["stage"])
    side = STAGES[stage].kernel_size
    return Place("body", stage + 1, _PARTS.get(match["part"], side))


_EFFICIENTNET = Trunk(
    re.compile(
        r"conv_stem|conv_head"
        r"|blocks\.(?P<stage>[0-6])\.\d+\.(?P<part>conv_pwl|conv_pw|conv_dw)"
    ),
    _efficientnet_place,
    stem="conv_stem",
    head="classifier.weight",
    stages=len(STAGES),
    dynamic=3,
    conv="condconv",
)
_SIZES = {"b0": "efficientnet_cc_b0_4e", "b1": "efficientnet_cc_b1_8e"}
# By the depth of the stages and the number of experts.
_EFFICIENTNETS = {
    ("b0", 4): "efficientnet_cc_b0_4e",
    ("b0", 8): "efficientnet_cc_b0_8e",
    ("b1", 8): "efficientnet_cc_b1_8e",
}
_OF_TENSORFLOW = (
    "no array tells padding and epsilon, and the weights that timm has published of "
    "EfficientNets with CondConv were all trained in TensorFlow"
)
_PERHAPS_TENSORFLOW = (
    "no array tells padding and epsilon; for weights that were trained in TensorFlow, "
    "such as the `tf_` ones of timm, give `tensorflow=True`"
)


def call_of(shapes: Shapes) -> Call:
    """Returns the call that a checkpoint may be of."""
    depths = [
        count(shapes, f"blocks.{stage}.{{}}.bn1.weight") for stage in range(len(STAGES))
    ]
    of_size = {
        name: [math.ceil(each.depth * mult) for each in STAGES]
        for name, mult in (("b0", 1.0), ("b1", 1.1))
    }
    size = min(of_size, key=lambda each: math.dist(of_size[each], depths))
    widths = without(
        dict(stem_channels=32, head_channels=1280),
        stem_channels=shape_of(shapes, "bn1.weight", 1)[0],
        head_channels=shape_of(shapes, "bn2.weight", 1)[0],
    )
    call = read(shapes, _EFFICIENTNET, _SIZES[size], **widths)
    options = dict(call.options)
    is_condconv = options.get("conv", "condconv") == "condconv"
    if is_condconv:
        experts = options.get("conv_options", {}).get("num_experts", 4)
        if name := _EFFICIENTNETS.get((size, experts)):  # which says so
            options.pop("conv", None)
            options.pop("conv_options", None)
            call = call._replace(name=name, title=name)
        else:
            options["conv"] = "condconv"
    options["tensorflow"] = is_condconv
    reason = _OF_TENSORFLOW if is_condconv else _PERHAPS_TENSORFLOW
    guesses = {**call.guesses, "tensorflow": (is_condconv, reason)}
    return call._replace(options=options, guesses=guesses)
