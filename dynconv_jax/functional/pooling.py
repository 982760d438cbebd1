"""Pooling: the mean over all pixels, and to a fixed number of bins.

Sums are taken in float32 at least.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from dynconv_jax.functional.numerics import at_least_float32
from dynconv_jax.functional.sharding import leave_to_partitioner


def spatial_mean(
    inputs: Shaped[jax.Array, "batch *spatial channels"],
    dtype: DTypeLike | None = None,
) -> Float[jax.Array, "batch channels"]:
    """Returns the mean over the pixels.

    Args:
        inputs: The features of each pixel.
        dtype: The dtype of the sums and of the result, raised to float32 where it is
            narrower; None takes that of the inputs.

    Returns:
        The mean of each feature.

    Example:
        >>> spatial_mean(jnp.arange(6.0).reshape(1, 2, 3, 1)).tolist()
        [[2.5]]
    """
    inputs = jnp.asarray(inputs)
    axes = tuple(range(1, inputs.ndim - 1))
    return jnp.mean(inputs, axis=axes, dtype=at_least_float32(dtype or inputs.dtype))


def axis_means(
    inputs: Shaped[jax.Array, "batch height width channels"],
    dtype: DTypeLike | None = None,
) -> Float[jax.Array, "batch height+width channels"]:
    """Returns the mean of each row, and after them the mean of each column.

    Args:
        inputs: The features of each pixel.
        dtype: As in `spatial_mean`.

    Returns:
        The means over the width, one after the other, then those over the height.

    Example:
        >>> axis_means(jnp.arange(6.0).reshape(1, 2, 3, 1)).ravel().tolist()
        [1.0, 4.0, 1.5, 2.5, 3.5]
    """
    inputs = jnp.asarray(inputs)
    dtype = at_least_float32(dtype or inputs.dtype)
    means = [jnp.mean(inputs, axis=axis, dtype=dtype) for axis in (2, 1)]
    return jnp.concatenate(means, axis=1)


def adaptive_avg_pool(
    inputs: Shaped[jax.Array, "batch *spatial channels"],
    bins: int,
    dtype: DTypeLike | None = None,
) -> Float[jax.Array, "batch *bins channels"]:
    """Averages inputs over `bins` bins along every spatial axis.

    As `torch.nn.AdaptiveAvgPool2d`: bin i of an axis of size n spans ⌊i·n / bins⌋ to
    ⌈(i + 1)·n / bins⌉, so that bins overlap where they do not divide n.

    Args:
        inputs: The features of each pixel; no spatial axis is empty.
        bins: The bins along each axis.
        dtype: As in `spatial_mean`.

    Returns:
        The mean of each bin, with as many spatial axes, of `bins` each.

    Example:
        >>> adaptive_avg_pool(jnp.arange(3.0).reshape(1, 3, 1), 2).ravel()
        Array([0.5, 1.5], dtype=float32)
    """
    inputs = jnp.asarray(inputs)
    dtype = at_least_float32(dtype or inputs.dtype)

    def pool(inputs: jax.Array) -> jax.Array:
        # A bin is a box, so it can be averaged an axis at a time; the first does the
        # work.
        for axis in range(1, inputs.ndim - 1):
            size = inputs.shape[axis]
            spans = [
                (i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)
            ]
            means = [
                jnp.mean(lax.slice_in_dim(inputs, *span, axis=axis), axis, dtype=dtype)
                for span in spans
            ]
            inputs = jnp.stack(means, axis)
        return inputs

    bins_of_image = (None,) * (inputs.ndim - 2)
    result = (
        (inputs, 0, inputs.shape[0]),
        *bins_of_image,
        (inputs, -1, inputs.shape[-1]),
    )
    return leave_to_partitioner(pool, (inputs,), result)
