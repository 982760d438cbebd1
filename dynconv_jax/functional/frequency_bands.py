"""Bands of spatial frequencies of an image, each weighed by a gate at every pixel.

    y = Σ_k m_k ⊙ (x_{k-1} - x_k) + x_n       x_k = the frequencies of x up to 1 / 2 k'

Where all gates are 1, that is x. An ideal low-pass in two dimensions is one in each:
the projection on a few cosines and sines. So it is two small matrix products there and
two back, in place of a Fourier transform, and what a narrow band keeps is a corner of
what a wider one has.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from dynconv_jax.functional.numerics import at_least_float32, multiply_wide
from dynconv_jax.functional.sharding import leave_to_partitioner


def lowest_waves(size: int, reduction: int, dtype: DTypeLike) -> jax.Array:
    """Returns an orthonormal basis of the signals without high frequencies.

    Args:
        size: The length of a signal.
        reduction: k ≥ 2; there are frequencies up to 1 / (2 k), the highest one
            included.
        dtype: Of the result.

    Returns:
        Shape (size, 2 · (size // 2k) + 1), lower frequencies first.

    Example:
        >>> [round(float(each), 2) for each in lowest_waves(8, 4, "float32")[::2, 1]]
        [0.5, -0.0, -0.5, 0.0]
    """
    index = jnp.arange(2 * (size // (2 * reduction)) + 1)[None]
    frequency = (index + 1) // 2
    # Of whole turns nothing is left, so that no large angle is rounded.
    turns = (jnp.arange(size)[:, None] * frequency) % size
    length = jnp.asarray(size, dtype)
    angles = turns.astype(dtype) * (2 * math.pi) / length
    waves = jnp.where((index % 2 == 1) | (index == 0), jnp.cos(angles), jnp.sin(angles))
    return waves * jnp.sqrt(jnp.where(index == 0, 1, 2).astype(dtype) / length)


def modulate_bands(
    inputs: Shaped[jax.Array, "batch height width channels"],
    gates: Shaped[jax.Array, "batch height width bands"],
    reductions: Sequence[int],
) -> Float[jax.Array, "batch height width channels"]:
    """Weighs bands of spatial frequencies at every pixel.

    Chen et al., "Frequency Dynamic Convolution for Dense Image Prediction", CVPR 2025,
    section 3.4.

    Args:
        inputs: The images.
        gates: The factor of each band; the lowest frequencies have none.
        reductions: The k of each band, which ends at the frequency 1 / (2 k), from the
            highest band to the lowest, each a multiple of the one before.

    Returns:
        The images, in float32 at least.

    Example:
        >>> images, gates = jnp.ones((2, 9, 7, 4)), jnp.zeros((2, 9, 7, 2))
        >>> bool(jnp.allclose(modulate_bands(images, gates, (2, 4)), 1))
        True
    """
    result = [(inputs, axis, size) for axis, size in enumerate(inputs.shape)]
    modulate = functools.partial(_modulate, reductions=reductions)
    return leave_to_partitioner(modulate, (inputs, gates), result)


def _modulate(
    inputs: jax.Array, gates: jax.Array, reductions: Sequence[int]
) -> jax.Array:
    wide = inputs.astype(at_least_float32(inputs.dtype))
    _, height, width, _ = inputs.shape
    dtype = wide.dtype
    rows = lowest_waves(height, reductions[0], dtype)
    columns = lowest_waves(width, reductions[0], dtype)

    def product(subscripts: str, first: jax.Array, second: jax.Array) -> jax.Array:
        return jnp.einsum(subscripts, first, second, precision="highest")

    waves = product("bhwc,hr->brwc", wide, rows)
    waves = product("brwc,ws->brsc", waves, columns)
    outputs, previous = None, wide
    for band, reduction in enumerate(reductions):
        down = 2 * (height // (2 * reduction)) + 1
        across = 2 * (width // (2 * reduction)) + 1
        low = product("brsc,hr->bhsc", waves[:, :down, :across], rows[:, :down])
        low = product("bhsc,ws->bhwc", low, columns[:, :across])
        part = multiply_wide(gates[..., band : band + 1], previous - low)
        outputs = part if outputs is None else outputs + part
        previous = low
    return previous if outputs is None else outputs + previous
