"""Checks at the door: what is no array of numbers is refused under its own name.

Each check names the argument and what it was, before anything reads its shape: an error
of the arithmetic, or of another argument, would come later and mislead.
"""

import math
import numbers
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynconv_jax.functional.numerics import as_arrays


def check_arrays(*, optional: Collection[str] = (), **arrays: Any) -> None:
    """Refuses what is not an array of real numbers.

    Integers and booleans pass: who takes them promotes them, as `nnx.Conv` does.

    Args:
        optional: Which of the arguments may be None.
        **arrays: The arguments, by the names that the caller has for them.

    Raises:
        TypeError: If one is no array of JAX or NumPy.
        ValueError: If one is complex, or holds no numbers.

    Example:
        >>> check_arrays(inputs=jnp.ones((2, 9, 7, 3)), bias=None, optional=["bias"])
    """
    given = {k: v for k, v in arrays.items() if v is not None or k not in optional}
    for name, value in given.items():
        is_array = isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
        if not is_array and not hasattr(value, "__jax_array__"):
            raise TypeError(
                f"`{name}` ({_kind(value)}) must be an array of JAX or NumPy; "
                f"{_remedy(value)}"
            )
        dtype: Any = getattr(value, "dtype", None)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(
                f"`{name}` ({dtype}) must be real; take its real part, or make real "
                "and imaginary parts channels of their own"
            )
        if not (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_):
            raise ValueError(f"`{name}` ({dtype}) must hold numbers, such as float32")


def take_arrays(*, optional: Collection[str] = (), **arrays: Any) -> tuple[Any, ...]:
    """Returns arguments as arrays of JAX, or None, in the dtypes that JAX gives them.

    Args:
        optional: Which of the arguments may be None.
        **arrays: The arguments, by the names that the caller has for them.

    Raises:
        TypeError: As `check_arrays`.
        ValueError: As `check_arrays`.

    Example:
        >>> inputs, bias = take_arrays(
        ...     inputs=np.ones((2, 9, 7, 3)), bias=None, optional=["bias"]
        ... )
        >>> type(inputs) is type(jnp.ones(1)), bias is None
        (True, True)
    """
    check_arrays(optional=optional, **arrays)
    return as_arrays(*arrays.values())


def check_dtypes(*, optional: Collection[str] = (), **dtypes: Any) -> None:
    """Refuses what is not the dtype of real floating numbers.

    Args:
        optional: Which of the arguments may be None.
        **dtypes: The arguments, by the names that the caller has for them.

    Raises:
        TypeError: If one is no dtype.
        ValueError: If one is not floating, or complex.

    Example:
        >>> check_dtypes(dtype=None, param_dtype="bfloat16", optional=["dtype"])
    """
    for name, value in dtypes.items():
        if value is None and name in optional:
            continue
        try:
            if value is None:  # which NumPy reads as float64
                raise TypeError
            dtype = jnp.dtype(value)
        except TypeError:
            raise TypeError(
                f"`{name}` (={value!r}) must be a dtype, such as `jnp.float32`"
            ) from None
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"`{name}` (={dtype}) must be floating, such as `jnp.float32`"
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
    is_known = module in ("builtins", "dynconv_jax", "flax")
    return f"a {'' if is_known else f'{module}.'}{type(value).__name__}"


def _remedy(value: Any) -> str:
    if type(value).__module__.partition(".")[0] == "torch":
        return (
            "give `jnp.asarray(tensor.numpy())`, with the channels last, or use the "
            "layers of `dynconv_torch`"
        )
    if isinstance(value, list | tuple | bool | int | float | complex):
        return "convert it with `jnp.asarray`"
    return "give the array itself"
