"""What is this state dict of? From keys and shapes to a call of `create_model`.

The tables are in `networks/` and `members.py` (convolutions). What a row
answers is held against the checkpoint, key by key and shape by shape, by whoever can
build a network: each package has a function for that, which is handed in here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dynconv_jax.models.options import did_you_mean, option_names
from dynconv_jax.models.registry import GIVEN
from dynconv_jax.weights.member import Member
from dynconv_jax.weights.members import MEMBERS
from dynconv_jax.weights.networks import NETWORKS
from dynconv_jax.weights.shapes import Shapes, Unread
from dynconv_jax.weights.trunks import Call

# The largest of the published networks has a hundred million. A file may say of one
# number that it is an array of any shape, and a network of that shape would be built.
MOST_NUMBERS = 2**32

# The kinds of problems that shapes do not tell.
OF_VALUES = ("wrong dtype", "wrong value")

# What schedules write, and a checkpoint may lack.
SCHEDULED = ("temperature", "assignment")

# How deep networks lie in others, and layers in networks.
_DEPTH = 12

# What is wrong with an array, and in what words: as of `misfits` below.
Problem = tuple[str, str]


class Match(NamedTuple):
    """A network, and in what a checkpoint is not of it.

    Attributes:
        call: What builds it.
        problems: Each by its kind and in words that begin with the key; none, if the
            checkpoint is of this network.
    """

    call: Call
    problems: Sequence[Problem]


def shapes_of(state_dict: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of arrays of either framework.

    Example:
        >>> import numpy as np
        >>> shapes_of({"fc.bias": np.ones(10)})
        {'fc.bias': (10,)}
    """
    return {
        key: tuple(getattr(value, "shape", ())) for key, value in state_dict.items()
    }


def candidates(shapes: Shapes) -> list[Call]:
    """Returns the calls that a checkpoint may be of, the most likely first.

    Example:
        >>> candidates({"fc.weight": (10, 8), "fc.bias": (10,)})
        []
    """
    if sum(map(math.prod, shapes.values())) > MOST_NUMBERS:
        return []
    found: list[Call | None] = []
    for network in NETWORKS:
        if all(sign in shapes for sign in network.signs):
            try:
                found.append(network.call_of(shapes))
            except Unread:  # of what all of the family have
                continue
    return [call for call in found if call is not None]


def best_match(
    shapes: Shapes, misfits: Callable[[Call], Sequence[Problem]]
) -> Match | None:
    """Returns the network that a checkpoint is of, or the nearest; or None.

    Args:
        shapes: Of the checkpoint.
        misfits: Answers in what the checkpoint is not of what a call builds.
    """
    matches = []
    for call in candidates(shapes):
        matches.append(Match(call, misfits(call)))
        if not matches[-1].problems:
            return matches[-1]
    return min(matches, key=lambda match: len(match.problems), default=None)


def parts_of(shapes: Shapes) -> dict[str, dict[str, tuple[int, ...]]]:
    """Returns what is below each beginning of keys, up to a dot, and all below none.

    Example:
        >>> parts_of({"fc.bias": (10,)})
        {'': {'fc.bias': (10,)}, 'fc': {'bias': (10,)}}
    """
    parts: dict[str, dict[str, tuple[int, ...]]] = {"": dict(shapes)}
    for key, shape in shapes.items():
        names = key.split(".", _DEPTH)
        for depth in range(1, len(names)):
            below = parts.setdefault(".".join(names[:depth]), {})
            below[".".join(names[depth:])] = shape
    return parts


def members_in(shapes: Shapes) -> list[Member]:
    """Returns which members of the family have layers in a state dict.

    Example:
        >>> found = members_in({"weight": (4, 72), "routing_fn.weight": (4, 3)})
        >>> [member.title for member in found]
        ['CondConv']
    """
    parts = parts_of(shapes)
    return [
        member
        for member in MEMBERS
        if any(
            len(arrays.get(member.beside, ())) == 2
            if member.beside
            else member.holds(arrays)
            for arrays in parts.values()
        )
    ]


def check_size(shapes: Shapes) -> None:
    """Refuses arrays of more numbers than any network has.

    Raises:
        ValueError: If they have.

    Example:
        >>> check_size({"fc.weight": (1000, 512)})
    """
    numbers = sum(map(math.prod, shapes.values()))
    if numbers > MOST_NUMBERS:
        key = max(shapes, key=lambda each: math.prod(shapes[each]))
        raise ValueError(
            f"its arrays have {numbers} numbers, {key} alone the shape {shapes[key]}, "
            f"and no network that is known has more than {MOST_NUMBERS}"
        )


def inner_state_dict(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Takes off one prefix of all keys, where a known network is behind it.

    Where one that a network has is missing, it is put before them.

    Returns:
        The state dict, and notes of what was done to it, if anything.

    Example:
        >>> inner_state_dict({"net.fc.bias": 0})
        ({'net.fc.bias': 0}, [])
    """
    split = [key.split(".")[:-1] for key in values]
    prefix, outer = "", ["", *(each.outer for each in NETWORKS if each.outer)]
    for level in [()] if not split else [(), *zip(*split, strict=False)][:_DEPTH]:
        if len(set(level)) > 1:
            break
        prefix += "".join(f"{name}." for name in level[:1])
        for other in outer:
            inner = {f"{other}{k.removeprefix(prefix)}": v for k, v in values.items()}
            if candidates(shapes_of(inner)):
                taken = f"the prefix {prefix!r} was taken off all keys"
                put = f"the prefix {other!r} was put before all keys"
                return inner, [taken] * bool(prefix) + [put] * bool(other)
    return dict(values), []


def in_words(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Returns in code what `inner_state_dict` made of a state dict.

    Example:
        >>> in_words({"fc.bias": 0}, {"fc.bias": 0})
        'state_dict'
        >>> in_words({"net.fc.bias": 0}, {"fc.bias": 0})
        "{key.removeprefix('net.'): value for key, value in state_dict.items()}"
    """
    for old, new in zip(before, after, strict=True):
        if old != new:
            # What both end in, up to a dot.
            names = len(new.split("."))
            rests = (new.split(".", first)[-1] for first in range(names))
            rest = next((each for each in rests if old.endswith(each)), "")
            taken, put = old.removesuffix(rest), new.removesuffix(rest)
            key = f"key.removeprefix({taken!r})" if taken else "key"
            key = f"{put!r} + {key}" if put else key
            return f"{{{key}: value for key, value in state_dict.items()}}"
    return "state_dict"


def without_scheduled(
    values: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Leaves out what schedules write and the caller gives.

    Args:
        values: A state dict.
        options: Those of the caller.

    Example:
        >>> without_scheduled({"conv1.temperature": 30.0}, {"temperature": 1.0})
        {}
    """
    conv_options = options.get("conv_options")
    inside = conv_options if isinstance(conv_options, Mapping) else {}
    given = {name for name in SCHEDULED if name in options or name in inside}
    return {k: v for k, v in values.items() if k.rpartition(".")[2] not in given}


def without_redundant(
    options: Mapping[str, Any], read: Mapping[str, Any], shapes: Shapes
) -> dict[str, Any]:
    """Leaves out a `conv` that a network has anyway, with settings of its own.

    Args:
        options: Those of the caller.
        read: Those that were read off the checkpoint.
        shapes: Of the checkpoint.

    Example:
        >>> shapes = {"conv1.attention.channel_fc.weight": (8, 16, 1, 1)}
        >>> without_redundant({"conv": "odconv", "dropout": 0.1}, {}, shapes)
        {'dropout': 0.1}
    """
    is_own = "conv" not in read and any(
        member.conv == options.get("conv") for member in members_in(shapes)
    )
    return {k: v for k, v in options.items() if k != "conv" or not is_own}


def merged(
    arguments: Mapping[str, Any],
    options: Mapping[str, Any],
    build: Callable[..., Any],
    layer: Callable[..., Any] | None,
) -> dict[str, Any]:
    """Returns arguments of `create_model`, with options where they belong.

    Args:
        arguments: What was read off a checkpoint.
        options: Those of the caller, which win: of the network, or of its convolutions.
        build: Builds the network.
        layer: Builds its convolutions; None if they are static.

    Raises:
        TypeError: If neither takes an option.

    Example:
        >>> def layer(temperature): ...
        >>> merged({"name": "resnet18"}, {"temperature": 2.0}, lambda: None, layer)
        {'name': 'resnet18', 'conv_options': {'temperature': 2.0}}
    """
    of_layer = set(option_names(layer) or () if layer else ()) - {*GIVEN}
    of_model = {*(option_names(build) or options), "conv_options"}
    found = dict(arguments)
    inside = dict(found.get("conv_options", {}))
    for name, value in options.items():
        if name == "conv_options" and isinstance(value, Mapping):
            inside |= value
        elif name in of_layer:
            inside[name] = value
        elif name in of_model:
            found[name] = value
        else:
            known = sorted(of_model | of_layer)
            raise TypeError(
                "create_model_from_checkpoint() got an unexpected keyword argument "
                f"{name!r}; {did_you_mean(name, known)}{found['name']} and its "
                f"convolutions take {known}"
            )
    return found | ({"conv_options": inside} if inside else {})
