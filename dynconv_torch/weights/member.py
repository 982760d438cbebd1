"""What is known of a member of the family, and how options are read off shapes."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from dynconv_torch.models.convolutions import Role
from dynconv_torch.weights.shapes import (
    Shapes,
    Unread,
    one_of,
    reduction_of,
    shape_of,
    without,
)

NONE: Mapping[str, tuple[object, str]] = MappingProxyType({})


class Place(NamedTuple):
    """Where a network has a convolution.

    Attributes:
        role: What it is to the network.
        stage: The stage that it is in, from 1.
        kernel_size: The side of its kernel.
        in_basic_block: Whether it is one of the two of a basic block.
    """

    role: Role
    stage: int = 0
    kernel_size: int = 3
    in_basic_block: bool = False


class Layer(NamedTuple):
    """A convolution of a checkpoint.

    Attributes:
        prefix: What its keys begin with, without the last dot.
        place: Where it is.
        arrays: The shapes of its arrays, by the rest of their keys.
    """

    prefix: str
    place: Place
    arrays: Shapes


class Member(NamedTuple):
    """How a member of the family is known.

    Attributes:
        conv: Its name for `create_model`.
        title: Its name in words.
        holds: Whether arrays are those of one of its layers.
        in_channels: The number of channels that a layer without groups takes.
        options: The options that its layers in a checkpoint have, those left out that
            are the defaults; it may raise `Unread`.
        beside: The end of a key that tells where a layer's own do not.
        guesses: Options that no array tells, what they are taken to be, and why.
        plain: Which of the layers that have no such arrays, the first argument, may be
            layers of it that are static, beside those that have them, the second.
    """

    conv: str
    title: str
    holds: Callable[[Shapes], bool]
    in_channels: Callable[[Shapes], int]
    options: Callable[[Sequence[Layer], Shapes], dict[str, Any]]
    beside: str = ""
    guesses: Mapping[str, tuple[object, str]] = NONE
    plain: Callable[[Sequence[Layer], Sequence[Layer]], Sequence[Layer]] = (
        lambda static, layers: ()
    )


def has_any(*keys: str) -> Callable[[Shapes], bool]:
    """Returns a `holds` of layers that have one of these arrays."""
    return lambda arrays: any(key in arrays for key in keys)


def channels_of(key: str) -> Callable[[Shapes], int]:
    """Returns an `in_channels` by the array that the channels go into."""
    return lambda arrays: shape_of(arrays, key, 2, 3, 4, 5)[1]


def no_channels(arrays: Shapes) -> int:
    """Is the `in_channels` of layers whose attention comes from outside."""
    raise Unread("stem_routing_fn.weight is missing")


def experts_of(layers: Sequence[Layer], axis: int = 0, *ranks: int) -> dict[str, Any]:
    """Returns the option of the experts, which lie along an axis of the weight."""
    counts = (shape_of(each.arrays, "weight", *ranks)[axis] for each in layers)
    return without(dict(num_experts=4), num_experts=one_of("experts", counts))


def hidden_units(layers: Sequence[Layer], key: str) -> list[tuple[int, int]]:
    """Returns the channels that a layer of each attention takes, and gives."""
    found = (shape_of(each.arrays, key, 2, 3, 4) for each in layers)
    return [(shape[1], shape[0]) for shape in found]


def reduced(
    pairs: Sequence[tuple[int, int]],
    least: int,
    default: int,
    what: str = "the units of its attentions",
) -> dict[str, Any]:
    """Returns `reduction`, and `min_hidden` where it is not the usual least.

    Raises:
        Unread: If hidden units follow no `reduction`.
    """
    fewest = min(hidden for _, hidden in pairs)
    floor = min(least, fewest)
    reduction = reduction_of(pairs, floor=floor, default=default)
    if reduction is None:
        floor = fewest
        reduction = reduction_of(pairs, floor=floor, default=default)
    if reduction is None:
        raise Unread(f"{what} follow no `reduction`")
    defaults = dict(reduction=default, min_hidden=least)
    return without(defaults, reduction=reduction, min_hidden=floor)


def normalised(layers: Sequence[Layer], batch: str, layer: str) -> dict[str, Any]:
    """Returns what normalises in an attention, by the names of its two norms."""
    arrays = layers[0].arrays
    norm = "layer" if f"{layer}.weight" in arrays else "none"
    if f"{batch}.running_mean" in arrays:
        norm = "batch"
    return without(dict(norm="batch"), norm=norm)
