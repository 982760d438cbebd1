"""A state dict held against networks that it may be of, which have no values."""

from collections.abc import Callable, Mapping
from typing import Any

from dynconv_jax.models.abstract import abstract_module
from dynconv_jax.models.registry import create_model
from dynconv_jax.weights.recognize import (
    Match,
    Problem,
    best_match,
    shapes_of,
)
from dynconv_jax.weights.trunks import Call
from dynconv_jax.weights.words import IN_FLAX, renamed

# What checks a state dict against a module, as `prepare` of `loading.py`.
Prepare = Callable[..., Any]


def in_flax(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options of a call in the words of flax, those of its layers among them.

    Example:
        >>> in_flax({"conv_options": {"router_hidden_channels": 5}})
        {'conv_options': {'router_hidden_features': 5}}
    """
    found = renamed(options, IN_FLAX)
    if "conv_options" in found:
        found["conv_options"] = renamed(found["conv_options"], IN_FLAX)
    return found


def outline(arguments: Mapping[str, Any]) -> Any:
    """Returns a network without values, from the arguments of `create_model`.

    Example:
        >>> outline({"name": "dynamic_net", "num_classes": 7}).fc.kernel.shape
        (256, 7)
    """
    return abstract_module(lambda rngs: create_model(**arguments, rngs=rngs))


def misfits(
    arguments: Mapping[str, Any], state_dict: Mapping[str, Any], prepare: Prepare
) -> tuple[Any, Any, list[Problem]]:
    """Returns an outline, what loads a state dict into it, in what that is not of it.

    Args:
        arguments: Of `create_model`.
        state_dict: What was taken out of a checkpoint.
        prepare: See `Prepare`.
    """
    try:
        module = outline(arguments)
    except (TypeError, ValueError, OverflowError) as error:
        reason = str(error).strip().partition("\n")[0]
        return None, None, [("network that cannot be built", reason)]
    try:
        loading = prepare(module, state_dict, is_outline=True)
    except ValueError as error:
        problems = getattr(error, "problems", [("problem", str(error))])
        return module, None, problems
    return module, loading, []


def identify(state_dict: Mapping[str, Any], prepare: Prepare) -> Match | None:
    """Returns the network that a state dict is of, or the nearest; or None.

    Args:
        state_dict: Arrays by PyTorch key.
        prepare: See `Prepare`.
    """

    def misfits_of(call: Call) -> list[Problem]:
        arguments = {"name": call.name, **in_flax(call.options)}
        *_, problems = misfits(arguments, state_dict, prepare)
        return [
            each for each in problems if each[0] not in ("wrong dtype", "wrong value")
        ]

    return best_match(shapes_of(state_dict), misfits_of)
