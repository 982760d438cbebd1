"""The networks whose checkpoints are known: one row a family.

A row of `NETWORKS` says by which keys a family is known, and which calls of
`create_model` its checkpoints may be of, the most likely first: name and options are
read off keys and shapes alone. Nothing is built here. Whoever asks builds what a call
says without values, and holds it against the checkpoint: a row need not be sure.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from dynconv_torch.models.convolutions import is_dynamic
from dynconv_torch.models.dynamic_net import WIDTHS, scaled_widths
from dynconv_torch.models.efficientnet_cc import STAGES as EFFICIENT_STAGES
from dynconv_torch.models.mobilenet_v2 import STAGES as MOBILE_STAGES
from dynconv_torch.models.mobilenet_v2 import make_divisible
from dynconv_torch.weights.members import (
    MEMBERS,
    Layer,
    Member,
    Place,
    Shapes,
    Unread,
    shape_of,
    without,
)

NONE: Mapping[str, str] = MappingProxyType({})


class Call(NamedTuple):
    """A call of `create_model`, in the words of PyTorch.

    Attributes:
        name: The name of the network.
        options: The other arguments.
        title: What it builds, in words.
        head: What the keys of the linear head begin with, without the last dot.
        guesses: Options that no array tells, and why they were chosen.
        doubts: What no option explains.
    """

    name: str
    options: dict[str, Any]
    title: str
    head: str = "fc"
    guesses: Mapping[str, str] = NONE
    doubts: tuple[str, ...] = ()

    def guessed(self, options: Mapping[str, Any]) -> list[str]:
        """Returns what to warn of, which options do not say."""
        return [
            f"`{name}` is taken to be {self.options[name]}: {reason}"
            for name, reason in self.guesses.items()
            if name not in options
        ]


class Network(NamedTuple):
    """How a family of networks is known.

    Attributes:
        title: Its name in words.
        signs: Keys that each of its checkpoints has, whatever its convolutions are.
        calls: The calls that the shapes may be of, the most likely first; it may raise
            `Unread`.
    """

    title: str
    signs: tuple[str, ...]
    calls: Callable[[Shapes], Iterator[Call]]


class Trunk(NamedTuple):
    """What the networks of a family have in common, whatever their convolutions are.

    Attributes:
        convolution: What the keys of a convolution begin with, without the last dot.
        place: Where the network has it, from the match.
        stem: The first convolution.
        head: The weight of the linear head.
        stages: How many stages there are.
        dynamic: The default of `dynamic`; None where there is no such option.
        conv: The default of `conv`.
    """

    convolution: re.Pattern[str]
    place: Callable[[re.Match[str]], Place]
    stem: str
    head: str
    stages: int
    dynamic: str | int | None
    conv: str = "static"


def layers_of(shapes: Shapes, trunk: Trunk) -> list[Layer]:
    """Returns the convolutions of a network, in the order of their keys."""
    found: dict[str, Layer] = {}
    for key, shape in shapes.items():
        if match := trunk.convolution.match(key):
            prefix = match[0]
            rest = key.removeprefix(f"{prefix}.")
            if rest != key:
                layer = found.get(prefix) or Layer(prefix, trunk.place(match), {})
                found[prefix] = layer
                layer.arrays[rest] = shape  # pyright: ignore[reportIndexIssue]
    return list(found.values())


def member_of(layers: Sequence[Layer]) -> tuple[Member | None, list[Layer]]:
    """Returns which member of the family is among layers, and which of them it is.

    Raises:
        Unread: If there are several members.
    """
    held = [
        (layer, next((each for each in MEMBERS if each.holds(layer.arrays)), None))
        for layer in layers
    ]
    titles = sorted({member.title for _, member in held if member is not None})
    if len(titles) > 1:
        raise Unread(f"it has layers of {' and of '.join(titles)}")
    members = [member for _, member in held if member is not None]
    return (members or [None])[0], [layer for layer, member in held if member]


def read(
    shapes: Shapes,
    trunk: Trunk,
    name: str,
    **options: Any,
) -> Call:
    """Returns the call that builds a network with the convolutions of a checkpoint.

    What no option explains is left out, and told as a doubt: the call is then that of
    the nearest network.

    Args:
        shapes: Of a checkpoint.
        trunk: What its network is.
        name: Its name.
        **options: Options that were read already.
    """
    doubts: list[str] = []

    def unless_unread(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Unread as error:
            doubts.append(str(error))

    layers = layers_of(shapes, trunk)
    member, dynamic = unless_unread(member_of, layers) or (None, [])
    in_channels = unless_unread(_in_channels, shapes, trunk, layers, member, dynamic)
    options |= without(dict(in_channels=3), in_channels=in_channels)
    linear = unless_unread(shape_of, shapes, trunk.head, 2)
    options |= without({}, num_classes=linear and linear[0])
    conv = "static" if member is None else member.conv
    conv_options = unless_unread(member.options, dynamic, shapes) if member else {}
    if conv != trunk.conv or conv_options:
        options["conv"] = conv
    if conv_options:
        options["conv_options"] = conv_options
    if member is not None and trunk.dynamic is not None:
        chosen = unless_unread(_dynamic, layers, dynamic, trunk)
        options |= without(dict(dynamic=trunk.dynamic), dynamic=chosen)
    title = name if member is None else f"{name} with {member.title}"
    head = trunk.head.removesuffix(".weight")
    return Call(name, options, title, head, doubts=tuple(doubts))


def _in_channels(
    shapes: Shapes,
    trunk: Trunk,
    layers: Sequence[Layer],
    member: Member | None,
    dynamic: Sequence[Layer],
) -> int:
    stem = next((each for each in layers if each.prefix == trunk.stem), None)
    if stem is None:
        raise Unread(f"{trunk.stem}.weight is missing")
    if member is None or stem not in dynamic:
        return shape_of(stem.arrays, "weight", 4)[1]
    if "stem_routing_fn.weight" in shapes:
        return shape_of(shapes, "stem_routing_fn.weight", 2)[1]
    return member.in_channels(stem.arrays)


def _dynamic(
    layers: Sequence[Layer], dynamic: Sequence[Layer], trunk: Trunk
) -> str | int:
    """Returns the `dynamic` by which just these layers are dynamic."""
    found = {each.prefix for each in dynamic}
    choices = [trunk.dynamic, "paper", "all", "pointwise", *range(1, trunk.stages + 1)]
    for choice in choices:
        assert choice is not None
        told = {
            each.prefix
            for each in layers
            if is_dynamic(
                choice,
                kernel_size=each.place.kernel_size,
                role=each.place.role,
                stage=each.place.stage,
                stages=trunk.stages,
            )
        }
        if told == found:
            return choice
    raise Unread(
        f"{len(found)} of {len(layers)} convolutions are dynamic, such as "
        f"{min(found)}, and no `dynamic` says just these"
    )


def multiplier(fits: Callable[[float], bool], given: int, usual: int) -> float:
    """Returns the number of the fewest decimals by which widths are multiplied.

    Args:
        fits: Whether a number gives all widths.
        given: The largest of the widths.
        usual: What it is with 1.

    Returns:
        A number that fits; or, if none of four decimals does, about the nearest.

    Example:
        >>> multiplier(lambda number: round(256 * number) == 64, 64, 256)
        0.25
    """
    nearest = given / usual
    reach = 8 / usual + nearest / 10  # by how much widths are rounded
    for decimals in range(5):
        scale = 10**decimals
        first = max(1, math.ceil((nearest - reach) * scale))
        last = math.floor((nearest + reach) * scale)
        steps = range(first, min(last, first + 5000) + 1)
        found = [step / scale for step in steps if fits(step / scale)]
        if found:
            return min(found, key=lambda each: abs(each - nearest))
    return round(nearest, 4)


def count(shapes: Shapes, pattern: str) -> int:
    """Returns how many there are of what keys number from 0.

    Args:
        shapes: Of a checkpoint.
        pattern: A key, with `{}` for the number.

    Example:
        >>> count({"0.weight": (8,), "1.weight": (8,)}, "{}.weight")
        2
    """
    number = 0
    while pattern.format(number) in shapes:
        number += 1
    return number


# DynamicNet

_DYNAMIC_NET = Trunk(
    re.compile(r"stem\.0|stage[123]\.dyn"),
    lambda match: Place("stem" if match[0] == "stem.0" else "body"),
    stem="stem.0",
    head="fc.weight",
    stages=3,
    dynamic=None,
    conv="dynamic",
)


def _dynamic_nets(shapes: Shapes) -> Iterator[Call]:
    norms = ("stem.1", "stage1.bn", "stage2.bn", "stage3.bn")
    widths = [shape_of(shapes, f"{norm}.weight", 1)[0] for norm in norms]
    width_mult = multiplier(
        lambda number: scaled_widths(WIDTHS, number) == widths, widths[-1], WIDTHS[-1]
    )
    mult = without(dict(width_mult=1.0), width_mult=width_mult)
    yield read(shapes, _DYNAMIC_NET, "dynamic_net", **mult)


# ResNet

# Whether the blocks are basic ones, and how many there are in each stage.
_RESNETS = {
    (True, (2, 2, 2, 2)): "resnet18",
    (True, (3, 4, 6, 3)): "resnet34",
    (False, (3, 4, 6, 3)): "resnet50",
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


def _resnets(shapes: Shapes) -> Iterator[Call]:
    is_basic = "layer1.0.bn3.weight" not in shapes
    depths = tuple(
        count(shapes, f"layer{stage}.{{}}.bn1.weight") for stage in (1, 2, 3, 4)
    )
    known = [each for each in _RESNETS if each[0] == is_basic]
    nearest = min(known, key=lambda each: math.dist(each[1], depths))
    trunk = _RESNET if is_basic else _RESNET._replace(place=_bottleneck_place)
    yield read(shapes, trunk, _RESNETS[nearest])


# MobileNetV2


def _mobilenet_place(match: re.Match[str]) -> Place:
    index = int(match["index"])
    if index == 0:
        return Place("stem")
    depths = [depth for _, _, depth, _ in MOBILE_STAGES]
    ends = [sum(depths[: stage + 1]) for stage in range(len(depths))]
    stage = next((n for n, end in enumerate(ends, 1) if index <= end), 0)
    if match["inner"] is None:
        return Place("head", kernel_size=1)
    # The first block has nothing before its depthwise convolution.
    is_depthwise = match["inner"] == (".conv.0.0" if index == 1 else ".conv.1.0")
    return Place("body", stage, 3 if is_depthwise else 1)


_MOBILENET = Trunk(
    re.compile(
        r"(?!features\.1\.conv\.2\.)features\.(?P<index>\d{1,3})"
        r"(?:\.0(?=\.)|(?P<inner>\.conv\.(?:[01]\.0(?=\.)|[12](?=\.\D))))"
    ),
    _mobilenet_place,
    stem="features.0.0",
    head="classifier.1.weight",
    stages=len(MOBILE_STAGES),
    dynamic="paper",
)


def _mobilenets(shapes: Shapes) -> Iterator[Call]:
    depths = [depth for _, _, depth, _ in MOBILE_STAGES]
    channels = [each for _, each, depth, _ in MOBILE_STAGES for _ in range(depth)]
    norms = ["features.1.conv.2"]
    norms += [f"features.{index}.conv.3" for index in range(2, sum(depths) + 1)]
    widths = [
        shape_of(shapes, f"{norm}.weight", 1)[0] for norm in ("features.0.1", *norms)
    ]
    width_mult = multiplier(
        lambda number: (
            [make_divisible(each * number) for each in (32, *channels)] == widths
        ),
        widths[-1],
        channels[-1],
    )
    mult = without(dict(width_mult=1.0), width_mult=width_mult)
    yield read(shapes, _MOBILENET, "mobilenet_v2", **mult)


# EfficientNet

_EFFICIENT_PARTS = {"conv_pw": 1, "conv_pwl": 1}


def _efficientnet_place(match: re.Match[str]) -> Place:
    if match["stage"] is None:
        is_stem = match[0] == "conv_stem"
        return Place("stem") if is_stem else Place("head", kernel_size=1)
    stage = int(match["stage"])
    side = EFFICIENT_STAGES[stage].kernel_size
    return Place("body", stage + 1, _EFFICIENT_PARTS.get(match["part"], side))


_EFFICIENTNET = Trunk(
    re.compile(
        r"conv_stem|conv_head"
        r"|blocks\.(?P<stage>[0-6])\.\d+\.(?P<part>conv_pwl|conv_pw|conv_dw)"
    ),
    _efficientnet_place,
    stem="conv_stem",
    head="classifier.weight",
    stages=len(EFFICIENT_STAGES),
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


def _efficientnets(shapes: Shapes) -> Iterator[Call]:
    depths = [
        count(shapes, f"blocks.{stage}.{{}}.bn1.weight")
        for stage in range(len(EFFICIENT_STAGES))
    ]
    of_size = {
        name: [math.ceil(each.depth * mult) for each in EFFICIENT_STAGES]
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
    guesses = {"tensorflow": _OF_TENSORFLOW if is_condconv else _PERHAPS_TENSORFLOW}
    yield call._replace(options=options, guesses=guesses)


NETWORKS = (
    Network("DynamicNet", ("stem.1.weight", "stage1.bn.weight"), _dynamic_nets),
    Network("ResNet", ("bn1.weight", "layer1.0.bn1.weight"), _resnets),
    Network(
        "MobileNetV2", ("features.0.1.weight", "features.1.conv.2.weight"), _mobilenets
    ),
    Network("EfficientNet", ("bn1.weight", "blocks.0.0.bn1.weight"), _efficientnets),
)
