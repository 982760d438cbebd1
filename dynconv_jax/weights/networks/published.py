"""Networks as they were published, which have names of their own."""

import re

from dynconv_jax.models.mobilenet_v2 import STAGES
from dynconv_jax.weights.member import Place
from dynconv_jax.weights.networks import mobilenet_v2, resnet
from dynconv_jax.weights.shapes import Shapes, without
from dynconv_jax.weights.trunks import Call, Trunk


def with_odconv(call: Call) -> Call:
    """Returns a call by the name that the authors of ODConv have for its network."""
    options = dict(call.options)
    inside = {"num_experts": 4, **options.pop("conv_options", {})}
    is_odconv = options.pop("conv", "static") == "odconv"
    has_odconv = is_odconv and inside.keys() <= {"num_experts", "reduction"}
    is_read = {*call.doubts} <= {f"{call.head}.weight is missing"}
    if not (has_odconv and is_read) or "dynamic" in options:
        return call
    if inside := without(dict(num_experts=1), **inside):
        options["conv_options"] = inside
    name = f"od_{call.name}"
    return call._replace(name=name, title=name, options=options)


# Dynamic Convolution Decomposition


def _flat_place(match: re.Match[str]) -> Place:
    if match["block"] is None:
        is_stem = match["index"] is not None
        return Place("stem") if is_stem else Place("head", kernel_size=1)
    block = int(match["block"])
    # The first block has nothing before its depthwise convolution.
    is_depthwise = match["part"] == ("0" if block == 1 else "3")
    return Place("body", mobilenet_v2.stage_of_block(block), 3 if is_depthwise else 1)


_FLAT = Trunk(
    re.compile(
        r"features\.(?P<index>0)\.0(?=\.)|conv\.0(?=\.)"
        r"|features\.(?P<block>[1-9]\d?)\.conv\.(?P<part>[036])(?=\.)"
    ),
    _flat_place,
    stem="features.0.0",
    head="",
    stages=len(STAGES),
    dynamic=("pointwise", 6),
    conv="decomposed",
    widths=mobilenet_v2.widths("conv.4", "conv.7"),
)


def decomposed(shapes: Shapes) -> Call | None:
    """Returns the call that a checkpoint of Li et al. may be of, or None.

    The classifier is 0 where no dropout is before it. Where it is missing, the layout
    tells a MobileNetV2; a ResNet is then one of those that have this convolution.
    """
    without_dropout = "classifier.0.cls.weight" in shapes
    classifier = "classifier.0" if without_dropout else "classifier.1"
    own = dict(head=f"{classifier}.cls.weight", conv="decomposed")
    has_head = own["head"] in shapes
    if has_head and "layer1.0.bn1.weight" in shapes:
        call = resnet.call_of(shapes, **own)
    elif has_head or {"features.1.conv.4.weight", "conv.1.weight"} <= shapes.keys():
        call = mobilenet_v2.call_of(shapes, _FLAT._replace(**own))
    else:
        return None
    options = dict(call.options)
    if options.get("conv") == "decomposed":  # with options, and as it is anyway
        del options["conv"]
        inside = options.pop("conv_options", {})
        usual = "mobilenet_v2" if call.name == "mobilenet_v2" else "resnet"
        inside = without(dict(variant=usual), **inside)
        options |= {"conv_options": inside} if inside else {}
    if without_dropout:
        options["dropout"] = 0.0
    name = f"dcd_{call.name}"
    return call._replace(name=name, title=name, options=options, head="classifier")
