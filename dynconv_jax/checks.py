"""Checks at the door of modules: of what they are built with, and of modules given."""

from typing import Any

import jax
from flax import nnx


def check_rngs(rngs: Any) -> None:
    """Raises a TypeError unless `rngs` is an `nnx.Rngs`.

    Example:
        >>> check_rngs(nnx.Rngs(0))
    """
    # What else gives out keys on demand is welcome.
    if not isinstance(rngs, nnx.Rngs) and not callable(getattr(rngs, "params", None)):
        seed = rngs if isinstance(rngs, int) else 0
        what = f"={rngs!r}" if rngs is None or rngs is seed else type(rngs).__name__
        if isinstance(rngs, jax.Array):
            what, seed = "a key", "key"
        raise TypeError(
            f"`rngs` ({what}) must be an `nnx.Rngs`; write `nnx.Rngs({seed})`"
        )


def check_module(name: str, value: Any) -> None:
    """Raises a TypeError unless `value` is a module of flax.

    Args:
        name: The argument, as the caller has it.
        value: What was given.

    Example:
        >>> check_module("model", nnx.Linear(3, 8, rngs=nnx.Rngs(0)))
    """
    if not isinstance(value, nnx.Pytree):  # modules, and what may hold some
        raise TypeError(f"`{name}` must be an `nnx.Module`, not {_kind_of(value)}")


def check_state_dict(name: str, value: Any) -> None:
    """Raises a TypeError for what is taken for a state dict, and is of flax, or a path.

    Args:
        name: The argument, as the caller has it.
        value: What was given.

    Example:
        >>> check_state_dict("state_dict", {"weight": jax.numpy.ones(3)})
    """
    if isinstance(value, nnx.Module):
        instead = (
            f"not the {type(value).__name__}; the module comes first, "
            "`load_torch_state_dict(module, state_dict)`, and of a module the second "
            "is `to_torch_state_dict(other)`"
        )
    elif isinstance(value, nnx.State):
        instead = "not a State of flax; `nnx.update(module, state)` takes that"
    elif isinstance(value, (str, bytes)) or hasattr(value, "__fspath__"):
        instead = f"not the path {value!r}; `load_weights(module, path)` reads a file"
    else:
        return
    raise TypeError(f"`{name}` must be a dict of arrays by PyTorch key, {instead}")


def _kind_of(given: Any) -> str:
    """Says what was given in the place of a module."""
    if isinstance(given, type):
        return f"the class {given.__name__}; build one of it"
    if isinstance(given, (nnx.State, nnx.GraphDef)):
        return f"a {type(given).__name__}; join the two by `nnx.merge(graphdef, state)`"
    if hasattr(given, "named_parameters"):
        return f"the PyTorch module {type(given).__name__}"
    if isinstance(given, jax.Array):
        return "an array of JAX"
    return "None" if given is None else f"a {type(given).__name__}"
