"""What `create_model` was called with, which a model keeps so that it can be saved."""

import dataclasses
import functools
import json
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

# The parameters themselves tell.
LEFT_OUT = ("device", "dtype")

# Where a model has it: a plain attribute, which copies have too.
_ATTRIBUTE = "_description"


@dataclasses.dataclass(frozen=True)
class Description:
    """The arguments of `create_model`, as text, or why there can be none.

    Attributes:
        text: JSON of the arguments by name, without device and dtype.
        problem: What cannot be written, in words; empty if all can.
    """

    text: str = ""
    problem: str = ""


def describe(
    name: str,
    conv: str | Callable[..., Any] | None,
    conv_options: Mapping[str, Any],
    options: Mapping[str, Any],
    convolutions: Mapping[str, Any],
) -> Description:
    """Describes a model by the arguments of `create_model`.

    Args:
        name: The name of the model.
        conv: As given to `create_model`.
        conv_options: As given to `create_model`.
        options: The options of the model, the number of classes among them.
        convolutions: The convolutions by name.

    Example:
        >>> describe("resnet18", None, {}, {"num_classes": 10}, {}).text
        '{"name": "resnet18", "num_classes": 10}'
        >>> describe("resnet18", print, {}, {}, {}).problem
        "`conv` (=print) is none of the library's"
    """
    arguments: dict[str, Any] = {"name": name}
    if isinstance(conv, functools.partial) and not conv.args:
        conv, conv_options = conv.func, conv.keywords | dict(conv_options)
    if conv is not None:
        names = [each for each in convolutions if conv in (each, convolutions[each])]
        if not names:
            shown = getattr(conv, "__name__", repr(conv))
            return Description(problem=f"`conv` (={shown}) is none of the library's")
        arguments["conv"] = names[0]
    try:
        if conv_options:
            arguments["conv_options"] = _plain("conv_options", conv_options)
        arguments |= _plain("", options)
    except ValueError as error:
        return Description(problem=str(error))
    return Description(json.dumps(arguments, sort_keys=True))


def attach(model: Any, description: Description) -> None:
    """Notes on a model how it was made."""
    setattr(model, _ATTRIBUTE, description)


def description_of(model: Any) -> Description | None:
    """Returns what a model was made with; None if `create_model` did not make it."""
    return getattr(model, _ATTRIBUTE, None)


def _plain(where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options as JSON has them; numbers of NumPy are those of Python.

    Raises:
        ValueError: If one is nothing that JSON has.
    """
    found = {}
    for name, value in options.items():
        if name in LEFT_OUT:
            continue
        value = plain(value)
        if not is_plain(value):
            argument = f"`{name}` in `{where}`" if where else f"`{name}`"
            raise ValueError(
                f"{argument} (={value!r}) is no plain number, word or list"
            )
        found[name] = value
    return found


def plain(value: Any) -> Any:
    """Returns numbers, as of NumPy, as those of Python, and lists as tuples.

    Example:
        >>> from fractions import Fraction
        >>> plain(["same", Fraction(1, 2)])
        ('same', 0.5)
    """
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    if isinstance(value, (int, float)) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def is_plain(value: Any) -> bool:
    """Whether a value is one that JSON has, objects apart.

    Example:
        >>> is_plain(("same", 3)), is_plain(print)
        (True, False)
    """
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (bool, int, str))
