"""How a network is read off a checkpoint, whatever its convolutions are.

The modules of `networks/` say with these what a family of networks is.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dynconv_torch.models.convolutions import Dynamic, is_dynamic
from dynconv_torch.models.mobilenet_v2 import make_divisible
from dynconv_torch.weights.member import NONE, Layer, Member, Place
from dynconv_torch.weights.members import MEMBERS
from dynconv_torch.weights.shapes import Shapes, Unread, multiplier, shape_of, without


class Call(NamedTuple):
    """A call of `create_model`, in the words of PyTorch.

    Attributes:
        name: The name of the network.
        options: The other arguments.
        title: What it builds, in words.
        head: What the keys of the linear head begin with, without the last dot.
        guesses: Options that no array tells, what they are taken to be, and why.
        doubts: What no option explains.
    """

    name: str
    options: dict[str, Any]
    title: str
    head: str = "fc"
    guesses: Mapping[str, tuple[object, str]] = NONE
    doubts: tuple[str, ...] = ()

    def guessed(self, options: Mapping[str, Any]) -> list[str]:
        """Returns what to warn of, which options do not say."""
        said = {**options, **options.get("conv_options", {})}
        return [
            f"`{name}` is taken to be {value!r}: {reason}"
            for name, (value, reason) in self.guesses.items()
            if name not in said
        ]


class Network(NamedTuple):
    """How a family of networks is known.

    Attributes:
        title: Its name in words.
        signs: Keys that each of its checkpoints has, whatever its convolutions are.
        call_of: The call that the shapes may be of; it may raise `Unread`.
        outer: A prefix of keys that some checkpoints lack.
    """

    title: str
    signs: tuple[str, ...]
    call_of: Callable[[Shapes], Call | None]
    outer: str = ""


class Widths(NamedTuple):
    """How wide the networks of a family are, which multiply all widths by a number.

    Attributes:
        parts: The norms, and linear layers, whose outputs tell the widths.
        usual: Their widths with 1.
        scaled: The widths that a network has with a number.
    """

    parts: Sequence[str]
    usual: Sequence[int]
    scaled: Callable[[Sequence[int], float], Sequence[int]]


def divisible(widths: Sequence[int], width_mult: float) -> list[int]:
    """Returns widths times a number, as MobileNets round them.

    Example:
        >>> divisible([32, 64], 0.25)
        [8, 16]
    """
    return [make_divisible(each * width_mult) for each in widths]


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
        widths: What tells `width_mult`; None where there is no such option.
        stem_router: The router of the stem, where one is outside of it.
    """

    convolution: re.Pattern[str]
    place: Callable[[re.Match[str]], Place]
    stem: str
    head: str
    stages: int
    dynamic: Dynamic | None
    conv: str = "static"
    widths: Widths | None = None
    stem_router: str = "stem_routing_fn"


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

    if trunk.widths is not None:
        mult = width_mult(shapes, trunk.widths)
        options |= without(dict(width_mult=1.0), width_mult=mult)
        unless_unread(_check_widths, shapes, trunk.widths, mult)
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
        chosen = unless_unread(_dynamic, layers, dynamic, trunk, member)
        options |= without(dict(dynamic=trunk.dynamic), dynamic=chosen)
    title = name if member is None else f"{name} with {member.title}"
    head = trunk.head.removesuffix(".weight")
    guesses = NONE if member is None else member.guesses
    return Call(name, options, title, head, guesses, tuple(doubts))


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
        return shape_of(shapes, f"{trunk.stem}.weight", 4)[1]
    if f"{trunk.stem_router}.weight" in shapes:
        return shape_of(shapes, f"{trunk.stem_router}.weight", 2)[1]
    return member.in_channels(stem.arrays)


def _dynamic(
    layers: Sequence[Layer], dynamic: Sequence[Layer], trunk: Trunk, member: Member
) -> Dynamic:
    """Returns the `dynamic` by which just these layers are dynamic."""
    found = {each.prefix for each in dynamic}
    static = [each for each in layers if each.prefix not in found]
    plain = {each.prefix for each in member.plain(static, dynamic)}
    last = range(1, trunk.stages + 1)
    choices = [trunk.dynamic, "paper", "all", "pointwise", *last]
    choices += [("pointwise", count) for count in last]
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
        if told - plain == found:
            return choice
    raise Unread(
        f"{len(found)} of {len(layers)} convolutions are dynamic, such as "
        f"{min(found)}, and no `dynamic` says just these"
    )


def with_whole_head(call: Call, shapes: Shapes, first: str) -> Call:
    """Returns a call of a head of several layers, which is missing as a whole.

    Args:
        call: The call, whose head is the last layer.
        shapes: Of the checkpoint.
        first: A key of the first layer of the head, below `classifier`.
    """
    return call if first in shapes else call._replace(head="classifier")


def width_mult(shapes: Shapes, widths: Widths) -> float:
    """Returns by what widths are multiplied: all, or else as many as possible.

    Raises:
        Unread: If none of the parts is there.

    Example:
        >>> shapes = {"bn1.weight": (16,), "bn2.weight": (32,)}
        >>> width_mult(shapes, Widths(["bn1", "bn2"], [32, 64], divisible))
        0.5
    """
    found = [shapes.get(f"{part}.weight", ()) for part in widths.parts]
    pairs = [
        (shape[0], usual)
        for shape, usual in zip(found, widths.usual, strict=True)
        if shape and shape[0] > 0
    ]
    if not pairs:
        raise Unread(f"{widths.parts[0]}.weight is missing")

    def fitting(number: float, among: Sequence[tuple[int, int]]) -> int:
        told = widths.scaled([usual for _, usual in among], number)
        return sum(width == each for (width, _), each in zip(among, told, strict=True))

    def fits(among: Sequence[tuple[int, int]]) -> Callable[[float], bool]:
        return lambda number: fitting(number, among) == len(among)

    mult = multiplier(fits(pairs), *pairs[-1])
    if fits(pairs)(mult):
        return mult
    alone = {multiplier(fits([pair]), *pair) for pair in pairs}
    nearest_first = sorted(alone, key=lambda each: abs(math.log(each)))
    return max(nearest_first, key=lambda each: fitting(each, pairs))


def _check_widths(shapes: Shapes, widths: Widths, mult: float) -> None:
    """Raises `Unread` for the first of the parts that is not as wide as `mult` says."""
    told = widths.scaled(widths.usual, mult)
    for part, width in zip(widths.parts, told, strict=True):
        given, *_ = shape_of(shapes, f"{part}.weight", 1, 2)
        if given != width:
            raise Unread(f"{part} has {given} channels, and not {width}")
