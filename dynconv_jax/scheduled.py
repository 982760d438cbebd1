"""Scalars that a schedule moves over training: state, kept by every checkpoint.

A schedule writes them inside of a jitted step, as traced values, so that no new value
compiles a new program.
"""

import reprlib
from collections.abc import Iterator
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from dynconv_jax.checks import check_module


class Scheduled(nnx.Variable):
    """A scalar that a schedule writes; each kind of it is a class of its own.

    It is held in the widest float that JAX is configured for, whatever the dtype of the
    parameters: rounding it would change the function.

    Attributes:
        name: What messages call it.
        requirement: What a value must be, and why.
        setter: The function that writes it, for messages.
    """

    name = "value"
    requirement = "finite"
    setter = "set_scheduled"

    @classmethod
    def accepts(cls, value: float) -> bool:
        """Whether a value is one that this kind may have."""
        return bool(np.isfinite(value))

    @classmethod
    def refusal(cls, value: Any, *dtypes: DTypeLike) -> str | None:
        """Says why `value` is not accepted, or answers None.

        A traced value is not known, and passes.

        Args:
            value: What is to be written.
            *dtypes: Those it is stored in. It must be accepted as it is stored, and in
                float32, in which most layers compute.
        """
        if isinstance(value, Tracer):
            return None
        must = f"must be {cls.requirement}"
        try:
            given = np.asarray(value)
            if not jnp.issubdtype(given.dtype, jnp.number):
                return must
            number = given.astype(float).item()
            is_accepted = cls.accepts(number)
        except (TypeError, ValueError):  # not one number
            return must
        if not is_accepted:
            return must
        for dtype in (jnp.float32, *dtypes):
            with np.errstate(over="ignore", under="ignore"):
                stored = float(np.asarray(number).astype(dtype))
            if not cls.accepts(stored):
                return f"is {stored:g} in {jnp.dtype(dtype)}, and {must}"
        return None

    @classmethod
    def check(cls, value: Any, *dtypes: DTypeLike) -> None:
        """Raises a ValueError unless `value` is one accepted number, or traced.

        Args:
            value: What is to be written.
            *dtypes: Those it is stored in; see `refusal`.
        """
        reason = cls.refusal(value, *dtypes)
        if reason is not None:
            shown = value if np.isscalar(value) else reprlib.repr(value)
            raise ValueError(f"`{cls.name}` (={shown}) {reason}")

    @classmethod
    def create(cls, value: ArrayLike) -> Self:
        """Returns a variable of this kind.

        Example:
            >>> float(Scheduled.create(0.5)[...])
            0.5
        """
        return cls(jnp.asarray(value, dtype=float))


class HoldsScheduled(nnx.Module):
    """A module with scalars that schedules write: they stay variables.

    Example:
        >>> from dynconv_jax import Router
        >>> isinstance(Router(4, rngs=nnx.Rngs(0)), HoldsScheduled)
        True
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses a plain number in the place of a variable."""
        held = vars(self).get(name)
        if isinstance(held, Scheduled) and not isinstance(value, nnx.Variable):
            shown = reprlib.repr(value)
            raise TypeError(
                f"`{name}` (={shown}) would take the place of the variable that "
                f"schedules write and checkpoints keep; write `{held.setter}(module, "
                f"{shown})`"
            )
        super().__setattr__(name, value)


def iter_scheduled(
    module: nnx.Module, kind: type[Scheduled]
) -> Iterator[tuple[str, Scheduled]]:
    """Yields the path and the variable for every one of a kind, each once.

    Example:
        >>> from dynconv_jax import DynamicConv, Temperature
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> [path for path, _ in iter_scheduled(layer, Temperature)]
        ['router.temperature']
    """
    for path, part in nnx.iter_graph(module):
        if isinstance(part, kind):
            yield ".".join(map(str, path)), part


def set_scheduled(module: nnx.Module, kind: type[Scheduled], value: ArrayLike) -> int:
    """Writes every variable of a kind in `module`, in place.

    Args:
        module: A layer or a whole model.
        kind: Which variables.
        value: The new value; it may be traced.

    Returns:
        How many were written.

    Raises:
        TypeError: If `module` is no module.
        ValueError: If the value is not one that the kind accepts.

    Example:
        >>> from dynconv_jax import DynamicConv, Temperature
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> set_scheduled(layer, Temperature, 30.0)
        1
    """
    check_module("module", module)
    found = [variable for _, variable in iter_scheduled(module, kind)]
    kind.check(value, *{variable.get_value().dtype for variable in found})
    for variable in found:
        stored = jnp.asarray(value).astype(variable.get_value().dtype)
        variable[...] = stored.reshape(())
    return len(found)
