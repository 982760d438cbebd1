"""Checks at the door: what is no tensor of numbers is refused under its own name.

Each check names the argument and what it was, before anything reads its shape: an error
of the arithmetic, or of another argument, would come later and mislead.
"""

import math
import numbers
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from dynconv_torch.functional.tracing import refuse_proxy


def check_tensors(
    *, optional: Collection[str] = (), may_be_complex: bool = False, **tensors: Any
) -> None:
    """Refuses what is not a tensor of real numbers.

    Args:
        optional: Which of the arguments may be None.
        may_be_complex: Whether complex numbers pass, where PyTorch computes with them.
        **tensors: The arguments, by the names that the caller has for them.

    Raises:
        TypeError: If one is no tensor of PyTorch, or what `torch.fx.symbolic_trace`
            shows.
        ValueError: If one is complex.

    Example:
        >>> check_tensors(input=torch.ones(2, 3, 9, 7), bias=None, optional=["bias"])
    """
    for name, value in tensors.items():
        if value is None and name in optional:
            continue
        refuse_proxy(value)
        if not isinstance(value, Tensor):
            raise TypeError(
                f"`{name}` ({_kind(value)}) must be a tensor of PyTorch; "
                f"{_remedy(value)}"
            )
        if value.is_complex() and not may_be_complex:
            raise ValueError(
                f"`{name}` ({value.dtype}) must be real; take its real part, or make "
                "real and imaginary parts channels of their own"
            )


def check_dtype(dtype: Any) -> None:
    """Refuses what is not the dtype of real floating numbers, or None.

    Raises:
        TypeError: If it is no dtype.
        ValueError: If it is not floating, or complex.

    Example:
        >>> check_dtype(torch.bfloat16)
    """
    if dtype is None:
        return
    if not isinstance(dtype, torch.dtype):
        raise TypeError(
            f"`dtype` (={dtype!r}) must be a dtype of PyTorch, such as `torch.float32`"
        )
    if not dtype.is_floating_point:
        raise ValueError(
            f"`dtype` (={dtype}) must be floating, such as `torch.float32`"
        )


def check_rate(name: str, value: Any) -> None:
    """Refuses what is not a share in [0, 1), also once rounded to float32.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is out of range.

    Example:
        >>> check_rate("dropout", 0.2)
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` (={value!r}) must be a number in [0, 1)") from None
    if not 0 <= number <= 1 - 2**-24:  # the largest of float32 below 1
        also = ", also in float32" if 0 <= number < 1 else ""
        raise ValueError(f"`{name}` (={value}) must be in [0, 1){also}")


def check_positive(name: str, value: Any) -> None:
    """Refuses what is not a positive and finite number; a truth value is none.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is out of range.

    Example:
        >>> check_positive("width_mult", "1")
        Traceback (most recent call last):
        TypeError: `width_mult` (='1', a str) must be a number
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"`{name}` (={value!r}, a {type(value).__name__}) must be a number"
        )
    if not 0 < float(value) < math.inf:
        raise ValueError(f"`{name}` (={value}) must be positive and finite")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Refuses what is none of some words.

    Raises:
        ValueError: If it is none.

    Example:
        >>> check_choice("norm", "group", ("batch", "layer"))
        Traceback (most recent call last):
        ValueError: `norm` (='group') must be one of 'batch', 'layer'
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"`{name}` (={value!r}) must be one of {', '.join(map(repr, choices))}"
        )


def _kind(value: Any) -> str:
    """Says what something is, in place of a long `repr`."""
    if value is None or isinstance(value, bool | int | float | complex | str):
        return f"={value!r}"
    module = type(value).__module__.partition(".")[0]
    is_known = module in ("builtins", "dynconv_torch", "torch")
    return f"a {'' if is_known else f'{module}.'}{type(value).__name__}"


def _remedy(value: Any) -> str:
    if type(value).__module__.partition(".")[0] in ("jax", "jaxlib"):
        return (
            "give `torch.from_numpy(numpy.array(array))`, with the channels second, or "
            "use the layers of `dynconv_jax`"
        )
    if type(value).__module__.partition(".")[0] == "numpy":
        return "give `torch.from_numpy(array)`, with the channels second"
    if isinstance(value, list | tuple | bool | int | float | complex):
        return "convert it with `torch.tensor`"
    return "give the tensor itself"
