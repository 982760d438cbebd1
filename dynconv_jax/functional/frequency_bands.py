"""Bands of spatial frequencies of an image, each weighed by a gate at every pixel.

    y = Σ_k m_k ⊙ (x_{k-1} - x_k) + x_n       x_k = the frequencies of x up to 1 / 2 k'

Where all gates are 1, that is x. An ideal low-pass in two dimensions is one in each:
the projection on a few cosines and sines. So it is two small matrix products there and
two back, in place of a Fourier transform, and what a narrow band keeps is a corner of
what a wider one has.

The authors' code has had other low-passes, which are offered because weights were
trained with them (`LOW_PASSES`): a mask of the frequencies of a 64×64 image, stretched
to the size of the spectrum by the nearest entry, and one that keeps all rows of
negative frequency. Both are products of one mask along each axis.
"""

import functools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from dynconv_jax.functional.numerics import at_least_float32, multiply_wide
from dynconv_jax.functional.sharding import leave_to_partitioner

# `"ideal"` is at the size of the image, and of the authors' code `"stretched"` the
# latest and `"one_sided"` the first.
LOW_PASSES = ("ideal", "stretched", "one_sided")

# Of the image whose mask is stretched.
_SIDE = 64


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


def low_pass_masks(
    low_pass: str, height: int, width: int, reduction: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which rows and columns of `rfft2` a low-pass of the authors' code keeps.

    In float32, as there: whether a frequency on the bound is kept, depends on it.

    Args:
        low_pass: `"stretched"` or `"one_sided"`.
        height: Of the image.
        width: Of the image.
        reduction: k; the bound is 1 / (2 k).

    Returns:
        Booleans of shape (height,) and (width // 2 + 1,).

    Example:
        >>> rows, columns = low_pass_masks("one_sided", 6, 6, 2)
        >>> rows.tolist(), columns.tolist()
        ([True, True, False, True, True, True], [True, True, False, False])
    """
    bound = 0.5 / reduction
    if low_pass == "one_sided":
        number = np.arange(height)
        signed = np.where(number < (height + 1) // 2, number, number - height)
        rows = signed.astype("f4") * np.float32(1 / height)
        columns = np.arange(width // 2 + 1, dtype="f4") * np.float32(1 / width)
        return rows < np.float32(bound), columns < np.float32(bound)
    number = np.arange(_SIDE)
    vertical = np.minimum(number, _SIDE - number) / np.float32(_SIDE)
    bound = np.float32(bound + 1e-8)
    return (
        _stretched(vertical < bound, height),
        _stretched(vertical[: _SIDE // 2 + 1] < bound, width // 2 + 1),
    )


def _stretched(mask: np.ndarray, size: int) -> np.ndarray:
    """Returns the nearest entries of a mask, as `interpolate` of PyTorch has them."""
    scale = np.float32(len(mask)) / np.float32(size)
    nearest = np.floor(np.arange(size, dtype="f4") * scale).astype(int)
    return mask[np.minimum(nearest, len(mask) - 1)]


def modulate_bands(
    inputs: Shaped[jax.Array, "batch height width channels"],
    gates: Shaped[jax.Array, "batch height width bands"],
    reductions: Sequence[int],
    low_pass: str = "ideal",
) -> Float[jax.Array, "batch height width channels"]:
    """Weighs bands of spatial frequencies at every pixel.

    Chen et al., "Frequency Dynamic Convolution for Dense Image Prediction", CVPR 2025,
    section 3.4.

    Args:
        inputs: The images.
        gates: The factor of each band; the lowest frequencies have none.
        reductions: The k of each band, which ends at the frequency 1 / (2 k), from the
            highest band to the lowest, each a multiple of the one before.
        low_pass: One of `LOW_PASSES`.

    Returns:
        The images, in float32 at least.

    Raises:
        ValueError: If a low-pass that is not the ideal one has a symbolic size.

    Example:
        >>> images, gates = jnp.ones((2, 9, 7, 4)), jnp.zeros((2, 9, 7, 2))
        >>> bool(jnp.allclose(modulate_bands(images, gates, (2, 4)), 1))
        True
    """
    result = [(inputs, axis, size) for axis, size in enumerate(inputs.shape)]
    modulate = functools.partial(_modulate, reductions=reductions, low_pass=low_pass)
    return leave_to_partitioner(modulate, (inputs, gates), result)


def _modulate(
    inputs: jax.Array, gates: jax.Array, reductions: Sequence[int], low_pass: str
) -> jax.Array:
    wide = inputs.astype(at_least_float32(inputs.dtype))
    make = _ideal if low_pass == "ideal" else functools.partial(_masked, low_pass)
    outputs, previous = None, wide
    for band, low in enumerate(make(wide, reductions)):
        part = multiply_wide(gates[..., band : band + 1], previous - low)
        outputs = part if outputs is None else outputs + part
        previous = low
    return previous if outputs is None else outputs + previous


def _ideal(wide: jax.Array, reductions: Sequence[int]) -> Iterator[jax.Array]:
    """Yields what each reduction keeps of the images."""
    _, height, width, _ = wide.shape
    dtype = wide.dtype
    rows = lowest_waves(height, reductions[0], dtype)
    columns = lowest_waves(width, reductions[0], dtype)

    def product(subscripts: str, first: jax.Array, second: jax.Array) -> jax.Array:
        return jnp.einsum(subscripts, first, second, precision="highest")

    waves = product("bhwc,hr->brwc", wide, rows)
    waves = product("brwc,ws->brsc", waves, columns)
    for reduction in reductions:
        down = 2 * (height // (2 * reduction)) + 1
        across = 2 * (width // (2 * reduction)) + 1
        low = product("brsc,hr->bhsc", waves[:, :down, :across], rows[:, :down])
        yield product("bhsc,ws->bhwc", low, columns[:, :across])


def _masked(
    low_pass: str, wide: jax.Array, reductions: Sequence[int]
) -> Iterator[jax.Array]:
    """Yields what each reduction keeps of the images, by masks of their spectrum."""
    height, width = wide.shape[1:3]
    if not (isinstance(height, int) and isinstance(width, int)):
        raise ValueError(
            f"`low_pass` (={low_pass!r}) needs images whose size is in numbers, not "
            f"{height}×{width}; export with these, or give `low_pass='ideal'`"
        )
    spectrum = jnp.fft.rfft2(wide, axes=(1, 2))
    for reduction in reductions:
        rows, columns = low_pass_masks(low_pass, height, width, reduction)
        mask = (rows[:, None] & columns)[..., None]
        kept = jnp.where(mask, spectrum, 0)
        yield jnp.fft.irfft2(kept, s=(height, width), axes=(1, 2))
