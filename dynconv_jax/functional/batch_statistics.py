"""Mean and variance of a batch, in two passes over it and one exchange between devices.

The variance is the mean of (x − mean)², so that of a batch that lies on many devices
the mean has to be everywhere first: two all-reduces, one waiting for the other. What
saves one, E[x²] − E[x]², or the same about some other shift than the mean, loses the
digits that the mean is larger than the deviation. Here each sample has its own mean and
sum of squares about it, which no device needs another for, and they are put together by

    M = Σ_i M_i + n Σ_i (m_i − m)²        m = Σ_i m_i / B

(Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances", 1979), first those of a device, then those of all. The latter needs all m_i
at once: they are added up as rows of a table in which everything else is zero. A batch
on one device needs none of this, and has its mean first.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from dynconv_jax.functional.chips import Target
from dynconv_jax.functional.platforms import compute_where_lowered
from dynconv_jax.functional.sharding import batch_shards

# Rows of that table: enough for as many devices; more are more to exchange.
_ROWS = 64


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def batch_statistics(
    x: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean and the biased variance of an array.

    Args:
        x: An array of samples, which may lie on several devices; none of its axes is
            symbolic or empty.
        axes: What they are taken over, in order; the first is that of the samples.

    Example:
        >>> mean, variance = batch_statistics(jnp.arange(8.0).reshape(2, 2, 2), (0, 1))
        >>> mean.tolist(), variance.tolist()
        ([3.0, 4.0], [5.0, 5.0])
    """
    mean, variance = compute_where_lowered(_Statistics(axes), x)
    return mean, variance


@dataclasses.dataclass(frozen=True)
class _Statistics:
    """Mean and variance, stacked; of a batch on several devices, in one exchange."""

    axes: tuple[int, ...]
    is_shared: bool = False

    def on(self, target: Target) -> "_Statistics":
        return _Statistics(self.axes, is_shared=target.device_count > 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        of = _of_many_devices if self.is_shared else _of_one_device
        return jnp.stack(of(x, self.axes))

    @property
    def plain(self) -> "_Statistics":
        return self

    @property
    def mappable(self) -> "_Statistics":
        return self

    @property
    def loops(self) -> bool:
        return False


def _of_one_device(x: jax.Array, axes: tuple[int, ...]) -> list[jax.Array]:
    centre = x.mean(axes, keepdims=True)
    centred = x - centre
    # What rounding left of the mean is not lost: it is in all that is centred.
    rest = centred.mean(axes)
    variance = jnp.square(centred).mean(axes) - jnp.square(rest)
    return [centre.reshape(rest.shape) + rest, jnp.maximum(variance, 0)]


def _of_many_devices(x: jax.Array, axes: tuple[int, ...]) -> list[jax.Array]:
    inner = axes[1:]
    centres = x.mean(inner, keepdims=True)
    centred = x - centres
    batch, pixels = x.shape[0], math.prod(x.shape[axis] for axis in inner)
    rests, squares = centred.mean(inner), jnp.square(centred).sum(inner)
    squares = jnp.maximum(squares - pixels * jnp.square(rests), 0)
    parts = jnp.stack([centres.reshape(squares.shape), rests, squares], axis=1)
    rows = _rows(batch, batch_shards(x))
    parts = _merge(parts.reshape(rows, -1, *parts.shape[1:]), pixels)
    own = jnp.eye(rows, dtype=x.dtype)
    if batch_shards(x) > 1:  # of a product JAX would gather the operand
        table = (own.reshape(rows, rows, *(1,) * squares.ndim) * parts[:, None]).sum(0)
    else:  # which XLA on a CPU is slow to add up; exact in full precision
        table = jnp.tensordot(own, parts, 1, precision="highest")
    ((centre, rest, square),) = _merge(table[None], pixels * (batch // rows))
    return [centre + rest, square / (batch * pixels)]


def _merge(parts: jax.Array, count: int) -> jax.Array:
    """Puts parts of `count` values each together.

    Args:
        parts: Shape (N, M, 3, ...): for each part a centre, what its mean is above
            that, and the sum of squares about the mean. Means are rounded, and where
            they are large to more than what they differ by, so that not even the sum
            of squares is right without the rest.
        count: The number of values in each part.

    Returns:
        Shape (N, 3, ...).
    """
    centres, rests, squares = (parts[:, :, which] for which in range(3))
    centre = centres.mean(1, keepdims=True)
    means = centres - centre + rests
    rest = means.mean(1, keepdims=True)
    between = count * jnp.square(means - rest).sum(1)
    return jnp.stack([centre[:, 0], rest[:, 0], squares.sum(1) + between], axis=1)


def _rows(batch: int, shards: int = 1) -> int:
    """Returns into how many parts of equal size to cut a batch.

    A device has whole parts if their number is a multiple of that of devices, and most
    often nobody knows that. So it has the power of two that the batch has, as far as it
    may.

    Args:
        batch: The number of samples.
        shards: How many devices are known to share them.

    Example:
        >>> [_rows(batch) for batch in (7, 48, 100, 256)], _rows(96, shards=3)
        ([7, 48, 20, 64], 48)
    """
    most = max(_ROWS, shards)
    divisors = [each for each in range(1, most + 1) if batch % each == 0]
    return max(divisors, key=lambda each: (each % shards == 0, each & -each, each))


@batch_statistics.defjvp
def _differentiate(axes, primals, tangents):
    # Not through the sums above, whose gradients are sums of what adds up to zero.
    (x,), (tangent,) = primals, tangents
    mean, variance = batch_statistics(x, axes)
    centred = x - jnp.expand_dims(mean, axes)
    slopes = tangent.mean(axes), 2 * (centred * tangent).mean(axes)
    return (mean, variance), slopes
