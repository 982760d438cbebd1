"""Mean and variance of a batch, in two passes over it and one exchange between devices.

The variance is the mean of (x − mean)², so that of a batch that lies on many devices
the mean has to be everywhere first: two all-reduces, one waiting for the other. What
saves one, E[x²] − E[x]², or the same about some other shift than the mean, loses the
digits that the mean is larger than the deviation. Here each sample has its own mean and
sum of squares about it, which no device needs another for, and they are put together by

    M = Σ_i M_i + n Σ_i (m_i − m)²        m = Σ_i m_i / B

(Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances", 1979), first those of a device, then those of all. The latter needs all m_i
at once: they are added up as rows of a table in which everything else is zero.
"""

import functools
import math

import jax
import jax.numpy as jnp

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
    inner = axes[1:]
    means = x.mean(inner, keepdims=True)
    squares = jnp.square(x - means).sum(inner)
    means = means.reshape(squares.shape)
    batch, pixels = means.shape[0], math.prod(x.shape[axis] for axis in inner)
    rows = _rows(batch, batch_shards(x))
    shape = (rows, batch // rows, *means.shape[1:])
    means, squares = _merge(means.reshape(shape), squares.reshape(shape), pixels)
    table = jnp.stack([means, squares], axis=1)
    is_own = jnp.eye(rows, dtype=bool).reshape(rows, rows, *(1,) * means.ndim)
    table = jnp.where(is_own, table[:, None], 0).sum(0)
    mean, square = _merge(
        table[None, :, 0], table[None, :, 1], pixels * (batch // rows)
    )
    return mean[0], square[0] / (batch * pixels)


def _merge(
    means: jax.Array, squares: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """Puts parts of `count` values each together, along the second axis."""
    mean = means.mean(1, keepdims=True)
    between = count * jnp.square(means - mean).sum(1)
    return mean[:, 0], squares.sum(1) + between


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
