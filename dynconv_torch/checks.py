"""Checks at the door of modules: of modules given."""

from typing import Any

from torch import nn


def check_module(name: str, value: Any) -> None:
    """Raises a TypeError unless `value` is a module of PyTorch.

    Args:
        name: The argument, as the caller has it.
        value: What was given.

    Example:
        >>> check_module("module", nn.Linear(3, 8))
    """
    if isinstance(value, nn.Module):
        return
    kind = type(value)
    what = f"a {kind.__name__}"
    if isinstance(value, type):
        what = f"the class {value.__name__}; build one of it"
    elif kind.__module__.partition(".")[0] in ("dynconv_jax", "flax"):
        what = f"the JAX module {kind.__name__}"
    raise TypeError(f"`{name}` must be a `torch.nn.Module`, not {what}")
