"""Options by name, and what is said of one that nobody knows."""

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, Unpack, get_args, get_origin


def option_names(build: Callable[..., Any]) -> list[str] | None:
    """Returns the names of the arguments of a class or function, in its order.

    Those that it passes on are among them, where it says which by `Unpack` of a
    `TypedDict`. None where it does not say.

    Example:
        >>> from dynconv_torch.models import resnet18
        >>> option_names(resnet18)[:3]
        ['num_classes', 'conv', 'dynamic']
    """
    if isinstance(build, functools.partial):
        return option_names(build.func)
    # Not of the class, whose metaclass may hide it.
    function = build.__init__ if isinstance(build, type) else build
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of what is not written in Python
        return None
    names = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            if get_origin(parameter.annotation) is not Unpack:
                return None
            names += get_args(parameter.annotation)[0].__annotations__
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            names.append(parameter.name)
    return [name for name in names if name != "self"]


def check_options(
    options: Mapping[str, Any],
    build: Callable[..., Any],
    *,
    argument: str | None = None,
    given: Collection[str] = (),
) -> None:
    """Refuses options that `build` does not take, and those that others give it.

    Args:
        options: The options by name.
        build: The class or function that is to take them.
        argument: The argument that the options are in, if they are in one.
        given: The names of arguments that `build` is given in any case.

    Raises:
        TypeError: If an option is unknown; the message lists those that are known.
        ValueError: If an option is among `given`.

    Example:
        >>> check_options({"num_classes": 5}, lambda num_classes: None)
    """
    where = f" in `{argument}`" if argument else ""
    for name in options:
        if name in given:
            raise ValueError(
                f"`{argument or name}` must leave {name!r} out, which is set already; "
                "what holds for a whole model, as a dtype, is an option of the model"
            )
    known = option_names(build)
    if known is None:
        return
    known = [name for name in known if name not in given]
    for name in options:
        if name not in known:
            function = getattr(build, "func", build)  # of a partial
            build_name = getattr(function, "__name__", repr(build))
            guess = did_you_mean(name, known)
            raise TypeError(
                f"{build_name}() got an unexpected keyword argument {name!r}{where}; "
                f"{guess}{'It' if guess else 'it'} takes {known}"
            )


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Returns a question for the names that are near to one, or nothing.

    Example:
        >>> did_you_mean("experts", ["num_experts", "padding"])
        "did you mean 'num_experts'? "
    """
    near = difflib.get_close_matches(str(name), known, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, near))}? " if near else ""
