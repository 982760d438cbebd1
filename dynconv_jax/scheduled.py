"""Scalars that a schedule moves over training: state, kept by every checkpoint.

A schedule writes them inside of a jitted step, as traced values, so that no new value
compiles a new program.
"""

from collections.abc import Iterator
from typing import Self

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.typing import ArrayLike


class Scheduled(nnx.Variable):
    """A scalar that a schedule writes; each kind of it is a class of its own.

    It is held in the widest float that JAX is configured for, whatever the dtype of the
    parameters: rounding it would change the function.

    Attributes:
        name: What messages call it.
        requirement: What a value must be, and why.
    """

    name = "value"
    requirement = "finite"

    @classmethod
    def accepts(cls, value: float) -> bool:
        """Whether a value is one that this kind may have."""
        return bool(np.isfinite(value))

    @classmethod
    def check(cls, value: ArrayLike) -> None:
        """Raises a ValueError unless `value` is one accepted number, or traced."""
        if isinstance(value, Tracer):
            return
        try:
            is_valid = cls.accepts(np.asarray(value, float).item())
        except (TypeError, ValueError):  # not one number
            is_valid = False
        if not is_valid:
            raise ValueError(f"`{cls.name}` (={value}) must be {cls.requirement}")

    @classmethod
    def create(cls, value: ArrayLike) -> Self:
        """Returns a variable of this kind.

        Example:
            >>> float(Scheduled.create(0.5)[...])
            0.5
        """
        return cls(jnp.asarray(value, dtype=float))


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
        ValueError: If the value is not one that the kind accepts.

    Example:
        >>> from dynconv_jax import DynamicConv, Temperature
        >>> layer = DynamicConv(3, 8, (3, 3), rngs=nnx.Rngs(0))
        >>> set_scheduled(layer, Temperature, 30.0)
        1
    """
    kind.check(value)
    count = 0
    for _, variable in iter_scheduled(module, kind):
        variable[...] = jnp.asarray(value).astype(variable[...].dtype)
        count += 1
    return count
