"""What is this state dict of? From keys and shapes to a call of `create_model`.

The tables are in `published.py` (networks) and `members.py` (convolutions). What a row
answers is held against the checkpoint, key by key and shape by shape, by whoever can
build a network: each package has a function for that, which is handed in here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dynconv_torch.models.options import option_names
from dynconv_torch.weights.members import MEMBERS, Shapes, Unread
from dynconv_torch.weights.published import NETWORKS, Call
from dynconv_torch.weights.wrappers import listed

# The largest of the published networks has a hundred million. A file may say of one
# number that it is an array of any shape, and a network of that shape would be built.
MOST_NUMBERS = 2**32

# What schedules write, and a checkpoint may lack.
SCHEDULED = ("temperature", "assignment")

# How deep networks lie in others, and layers in networks.
_DEPTH = 12

# How many keys a refusal names of each kind before it counts the rest.
_NAMED = 3

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
    found: list[Call] = []
    for network in NETWORKS:
        if all(sign in shapes for sign in network.signs):
            try:
                found += network.calls(shapes)
            except Unread:  # of what all of the family have
                continue
    return found


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


def recognize_layers(shapes: Shapes) -> list[str]:
    """Returns which members of the family have layers in a state dict.

    Example:
        >>> recognize_layers({"weight": (4, 72), "routing_fn.weight": (4, 3)})
        ['CondConv']
    """
    owned: dict[str, dict[str, tuple[int, ...]]] = {"": dict(shapes)}
    for key, shape in shapes.items():
        parts = key.split(".", _DEPTH)
        for depth in range(1, len(parts)):
            prefix = ".".join(parts[:depth])
            owned.setdefault(prefix, {})[".".join(parts[depth:])] = shape
    return [
        member.title
        for member in MEMBERS
        if any(
            len(arrays.get(member.beside, ())) == 2
            if member.beside
            else member.holds(arrays)
            for arrays in owned.values()
        )
    ]


def words(call: Call, renamed: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
    """Returns a call as one writes it.

    Args:
        call: The call.
        renamed: Answers options in the words of the package.

    Example:
        >>> call = Call("resnet18", {"num_classes": 10}, "resnet18")
        >>> words(call, dict)
        "`create_model('resnet18', num_classes=10)`"
    """
    options = renamed(call.options)
    if options.get("num_classes") == 1000 and call.name != "dynamic_net":
        del options["num_classes"]  # the default of the others
    given = [f"{name}={value!r}" for name, value in options.items()]
    return f"`create_model({', '.join([repr(call.name), *given])})`"


def description(
    shapes: Shapes,
    match: Match | None,
    renamed: Callable[[dict[str, Any]], dict[str, Any]],
    problems: Sequence[Problem] = (),
) -> str:
    """Returns a sentence on what a state dict is of, or an empty string.

    Args:
        shapes: Of its arrays.
        match: What `best_match` answered.
        renamed: See `words`.
        problems: Of a module that was to load it.

    Example:
        >>> description({"net.0.fc_phi.weight": (16, 4)}, None, dict)
        'It looks like a network or layer with Dynamic Convolution Decomposition.'
    """
    if match is not None and not match.problems:
        told_of = f"It is of {match.call.title}: {words(match.call, renamed)} takes it."
        if problems and all(_is_of(match.call.head, text) for _, text in problems):
            told_of += f" `ignore=({match.call.head!r},)` loads all but its head."
        return told_of
    layers = recognize_layers(shapes)
    if match is not None:
        return (
            f"It looks like {match.call.title}, but does not fit "
            f"{words(match.call, renamed)}: {told(match)}."
        )
    if layers:
        return f"It looks like a network or layer with {' and '.join(layers)}."
    return ""


def told(match: Match) -> str:
    """Returns in what a checkpoint is not of a network, in one line.

    Example:
        >>> call = Call("resnet18", {}, "resnet18")
        >>> told(Match(call, [("missing key", "fc.bias, of shape (10,)")]))
        '1 missing key (fc.bias, of shape (10,))'
    """
    parts = list(match.call.doubts)
    for kind in dict.fromkeys(kind for kind, _ in match.problems):
        texts = [text for each, text in match.problems if each == kind]
        plural = "s" if len(texts) > 1 else ""
        parts.append(f"{len(texts)} {kind}{plural} ({listed(texts, _NAMED)})")
    return "; ".join(parts)


def _is_of(head: str, problem: str) -> bool:
    """Whether words on an array, which begin with its key, are on one of the head."""
    return problem.startswith(f"{head}.")


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

    Returns:
        The state dict, and a note of what was taken off, if anything.

    Example:
        >>> inner_state_dict({"net.fc.bias": 0})
        ({'net.fc.bias': 0}, [])
    """
    split = [key.split(".")[:-1] for key in values]
    prefix = ""
    for level in [()] if not split else [(), *zip(*split, strict=False)][:_DEPTH]:
        if len(set(level)) > 1:
            break
        prefix += "".join(f"{name}." for name in level[:1])
        inner = {key.removeprefix(prefix): value for key, value in values.items()}
        if candidates(shapes_of(inner)):
            note = f"the prefix {prefix!r} was taken off all keys"
            return inner, [note] if prefix else []
    return dict(values), []


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

    Example:
        >>> def layer(temperature): ...
        >>> merged({"name": "resnet18"}, {"temperature": 2.0}, lambda: None, layer)
        {'name': 'resnet18', 'conv_options': {'temperature': 2.0}}
    """
    of_model = option_names(build) or ()
    of_layer = () if layer is None else option_names(layer) or ()
    found = dict(arguments)
    inside = dict(found.get("conv_options", {}))
    for name, value in options.items():
        if name == "conv_options" and isinstance(value, Mapping):
            inside |= value
        elif name in of_layer and name not in of_model:
            inside[name] = value
        else:
            found[name] = value
    return found | ({"conv_options": inside} if inside else {})


def refusal(
    shapes: Shapes,
    match: Match | None,
    renamed: Callable[[dict[str, Any]], dict[str, Any]],
    without_head: str,
) -> str:
    """Returns why no network is built, in one line.

    Args:
        shapes: Of the checkpoint.
        match: What `best_match` answered.
        renamed: See `words`.
        without_head: How a network takes a checkpoint without `{head}`.

    Example:
        >>> refusal({"net.weight": (8, 3)}, None, dict, "").partition(";")[0]
        'it is of no network that is known'
    """
    told_of = description(shapes, match, renamed)
    if match is None:
        titles = ", ".join(network.title for network in NETWORKS)
        keys = listed(sorted(shapes), _NAMED) or "none at all"
        return (
            f"it is of no network that is known; its keys are {keys}, and known are: "
            f"{titles}. {told_of}".rstrip()
        )
    head = match.call.head
    lacks_head = all(
        kind == "missing key" and _is_of(head, text) for kind, text in match.problems
    )
    way_out = f" {without_head.format(head=head)}" if lacks_head else ""
    return f"it is only nearly of a network that is known. {told_of}{way_out}"


def contradiction(
    read: Mapping[str, Any], options: Mapping[str, Any], problems: Sequence[Problem]
) -> str:
    """Returns what is wrong with options by which a checkpoint does not fit.

    Args:
        read: The options that were read off the checkpoint.
        options: Those of the caller.
        problems: In what the checkpoint is not of what both build.

    Example:
        >>> problem = "wrong shape", "fc.bias has (9,)"
        >>> contradiction({"num_classes": 9}, {"num_classes": 7}, [problem])
        '`num_classes` (=7) contradicts it, which says 9: fc.bias has (9,)'
    """
    first = problems[0][1]
    for name, value in options.items():
        if name in read and read[name] != value:
            told_of = f"`{name}` (={value!r}) contradicts it, which says {read[name]!r}"
            return f"{told_of}: {first}"
    given = ", ".join(f"`{name}` (={value!r})" for name, value in options.items())
    return f"with {given} it does not fit: {first}" if given else first
