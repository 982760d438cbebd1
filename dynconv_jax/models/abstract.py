"""Modules without values: what a model consists of, at once, however deep it is."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

M = TypeVar("M")


class _OneKey(nnx.RngStream):
    """A stream that gives out its one key again and again; its forks are ordinary."""

    def __call__(self) -> jax.Array:
        """Returns the key."""
        return self.key[...]

    def fork(self, **options) -> nnx.RngStream:
        """Returns a stream as modules keep it."""
        return nnx.RngStream(self.key[...], tag=self.tag).fork(**options)


def abstract_module(build: Callable[[nnx.Rngs], M]) -> M:
    """Builds a module whose arrays have shapes and dtypes, but no values.

    It is what `nnx.eval_shape` answers, sooner. There the count of the keys that were
    drawn is traced, and each increment looks through all that was traced before, so
    that time grows with the square of the number of arrays. What is drawn does not
    matter here, so nothing is counted.

    Args:
        build: Builds the module by the random numbers that it is given.

    Example:
        >>> layer = abstract_module(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
        >>> layer.kernel.shape
        (2, 3)
    """

    def make() -> M:
        rngs: Any = nnx.Rngs(0)
        rngs.default = _OneKey(0, tag="default")
        return build(rngs)

    return nnx.eval_shape(make)
