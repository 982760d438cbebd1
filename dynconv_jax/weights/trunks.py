"""How a network is read off a checkpoint, whatever its convolutions are.

The rows of `published.py` say with these what a family of networks is.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from dynconv_jax.models.convolutions import Dynamic, is_dynamic
from dynconv_jax.weights.members import (
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
    dynamic: Dynamic | None
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
        return shape_of(shapes, f"{trunk.stem}.weight", 4)[1]
    if "stem_routing_fn.weight" in shapes:
        return shape_of(shapes, "stem_routing_fn.weight", 2)[1]
    return member.in_channels(stem.arrays)


def _dynamic(
    layers: Sequence[Layer], dynamic: Sequence[Layer], trunk: Trunk
) -> Dynamic:
    """Returns the `dynamic` by which just these layers are dynamic."""
    found = {each.prefix for each in dynamic}
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
