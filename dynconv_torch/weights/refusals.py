"""What is said of a checkpoint that a network does not take, and what would take it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dynconv_torch.weights.networks import NETWORKS
from dynconv_torch.weights.recognize import (
    OF_VALUES,
    Match,
    Problem,
    candidates,
    members_in,
    parts_of,
)
from dynconv_torch.weights.relatives import relative_of
from dynconv_torch.weights.shapes import Shapes
from dynconv_torch.weights.trunks import Call
from dynconv_torch.weights.wrappers import listed

# How many keys of each kind are named before the rest is counted.
_NAMED = 3


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
    given = [f"{name}={value!r}" for name, value in options.items()]
    return f"`create_model({', '.join([repr(call.name), *given])})`"


def told(match: Match) -> str:
    """Returns in what a checkpoint is not of a network, in one line.

    Example:
        >>> call = Call("resnet18", {}, "resnet18")
        >>> told(Match(call, [("missing key", "fc.bias, of shape (10,)")]))
        '1 missing key (fc.bias, of shape (10,))'
    """
    parts = [each for each in match.call.doubts if not each.endswith(" is missing")]
    for kind in dict.fromkeys(kind for kind, _ in match.problems):
        texts = [text for each, text in match.problems if each == kind]
        plural = "s" if len(texts) > 1 else ""
        parts.append(f"{len(texts)} {kind}{plural} ({listed(texts, _NAMED)})")
    return "; ".join(parts)


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
        >>> description({"attention.spatial_fc.weight": (9, 4)}, None, dict)
        'The state dict looks like a network or layer with ODConv.'
    """
    if match is None:
        layers = " and ".join(member.title for member in members_in(shapes))
        told_of = f"The state dict looks like a network or layer with {layers}."
        return told_of if layers else ""
    if match.problems:
        return f"The state dict looks like {match.call.title}."
    if problems and all(kind in OF_VALUES for kind, _ in problems):
        return ""  # it is the module's own
    call = words(match.call, renamed)
    told_of = f"The state dict is of {match.call.title}: {call} takes it."
    if problems and all(_is_of(match.call.head, text) for _, text in problems):
        told_of += f" `ignore=({match.call.head!r},)` loads all but its head."
    return told_of


def foreign(
    match: Match | None,
    renamed: Callable[[dict[str, Any]], dict[str, Any]],
    problems: Sequence[Problem] = (),
) -> str:
    """Returns what weights are of in whose place others should be, after a refusal.

    Args:
        match: What `best_match` answered.
        renamed: See `words`.
        problems: Of the module that was to load them.

    Example:
        >>> foreign(Match(Call("resnet18", {}, "resnet18"), ()), dict)
        "; it is of resnet18: `create_model('resnet18')` takes it"
    """
    is_own = problems and all(kind in OF_VALUES for kind, _ in problems)
    if match is None or match.problems or is_own:
        return ""
    return f"; it is of {match.call.title}: {words(match.call, renamed)} takes it"


def refusal(
    shapes: Shapes,
    match: Match | None,
    renamed: Callable[[dict[str, Any]], dict[str, Any]],
    without_head: Callable[[str], str],
) -> str:
    """Returns why no network is built, in one line.

    Args:
        shapes: Of the checkpoint.
        match: What `best_match` answered.
        renamed: See `words`.
        without_head: Answers how a network takes a checkpoint that lacks this head.

    Example:
        >>> refusal({"net.weight": (8, 3)}, None, dict, str).partition(";")[0]
        'it is of no network that is known'
    """
    if found := relative_of(shapes):
        return f"it is of {found.title}: {found.other}"
    if match is None:
        told_of = _part(shapes) or description(shapes, match, renamed)
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
    way_out = f"; {without_head(head)}" if lacks_head else ""
    return (
        f"it looks like {match.call.title}, but is not quite what "
        f"{words(match.call, renamed)} builds: {told(match)}{way_out}"
    )


def _part(shapes: Shapes) -> str:
    """Returns a sentence on a part that looks like a network, or an empty string."""
    for prefix, below in parts_of(shapes).items():
        for call in candidates(below):
            return (
                f"Its part {prefix!r} looks like {call.title}: give that alone, "
                f"`{{key.removeprefix('{prefix}.'): value for key, value in "
                f"state_dict.items() if key.startswith('{prefix}.')}}`"
            )
    return ""


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


def _is_of(head: str, problem: str) -> bool:
    """Whether words on an array, which begin with its key, are on one of the head."""
    return problem.startswith(f"{head}.")
