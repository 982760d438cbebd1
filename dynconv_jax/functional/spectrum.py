"""Kernels as spectra: disjoint bands of frequencies, which are mixed as experts are.

A kernel is seen as one matrix, (O·k_h) × (C/g·k_w), whose real Fourier transform is its
spectrum. Frequencies sorted by their radius fall into K bands of the same size, and the
kernel of a sample weighs each band:

    W_i = irfft2(Σ_g a_ig band_g) = Σ_g a_ig irfft2(band_g)

The left side transforms a spectrum for each sample. The right one transforms each band,
once for the batch, and mixes kernels: it is the faster one from about K / 2 samples on.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Shaped

from dynconv_jax.functional.cost import devices_of_a_batch
from dynconv_jax.functional.mixing import mix_kernels


@functools.cache
def band_of_frequency(rows: int, columns: int, bands: int) -> np.ndarray:
    """Returns to which band each frequency of a real matrix belongs.

    Radii are rounded to float32 as the authors' code has them from PyTorch on a CPU,
    and sorted stably: those that are equal there, and not all that are equal, stand in
    the order of rows and columns. Where the number of bands does not divide that of the
    frequencies, bands differ in size by one.

    Args:
        rows: Of the matrix.
        columns: Of the matrix.
        bands: K.

    Returns:
        Integers of shape (rows, columns // 2 + 1).

    Example:
        >>> band_of_frequency(4, 4, 3).tolist()
        [[0, 0, 1], [0, 1, 2], [1, 2, 2], [0, 1, 2]]
    """
    number = np.arange(rows)
    vertical = np.minimum(number, rows - number).astype("f4") * np.float32(1 / rows)
    horizontal = np.arange(columns // 2 + 1, dtype="f4") * np.float32(1 / columns)
    # The first square is rounded by itself, the other one with the sum.
    squares = np.square(vertical)[:, None].astype("f8") + horizontal.astype("f8") ** 2
    radii = np.sqrt(squares.astype("f4"))
    order = np.argsort(radii, axis=None, kind="stable")
    band = np.empty(radii.size, np.int32)
    band[order] = np.arange(radii.size) * bands // radii.size
    return band.reshape(radii.shape)


def spectrum_shape(kernel_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns the shape of the spectrum of a kernel (k_h, k_w, C/g, O).

    Example:
        >>> spectrum_shape((3, 3, 64, 32))
        (96, 97, 2)
    """
    height, width, inputs, outputs = kernel_shape
    return outputs * height, inputs * width // 2 + 1, 2


def to_spectrum(
    kernel: Float[jax.Array, "height width in_per_group out_features"],
) -> Float[jax.Array, "rows frequencies 2"]:
    """Returns the spectrum of a kernel: real and imaginary parts.

    Example:
        >>> to_spectrum(jnp.ones((3, 3, 4, 2))).shape
        (6, 7, 2)
    """
    height, width, inputs, outputs = kernel.shape
    matrix = kernel.transpose(3, 0, 2, 1).reshape(outputs * height, inputs * width)
    spectrum = jnp.fft.rfft2(matrix)
    return jnp.stack([spectrum.real, spectrum.imag], axis=-1)


def _to_kernels(
    spectra: Shaped[jax.Array, "stack rows frequencies"],
    kernel_shape: tuple[int, ...],
) -> jax.Array:
    """Returns the kernels (stack, k_h, k_w, C/g, O) of complex spectra."""
    height, width, inputs, outputs = kernel_shape
    size = outputs * height, inputs * width
    matrices = jnp.fft.irfft2(spectra, s=size)
    split = matrices.reshape(-1, outputs, height, inputs, width)
    return split.transpose(0, 2, 4, 3, 1)


def band_kernels(
    spectra: Float[jax.Array, "spectra rows frequencies 2"],
    bands: int,
    kernel_shape: tuple[int, ...],
) -> Float[jax.Array, "experts height width in_per_group out_features"]:
    """Returns what each band is as a kernel; all of a spectrum add up to its kernel.

    Args:
        spectra: One spectrum or several.
        bands: K, of each.
        kernel_shape: The shape (k_h, k_w, C/g, O).

    Returns:
        The bands of the first spectrum, then those of the next.

    Example:
        >>> kernel = jnp.arange(8.0).reshape(1, 1, 4, 2)
        >>> bands = band_kernels(to_spectrum(kernel)[None], 3, kernel.shape)
        >>> bands.shape, bool(jnp.allclose(bands.sum(0), kernel, atol=1e-5))
        ((3, 1, 1, 4, 2), True)
    """
    index = _bands_of(bands, kernel_shape)
    is_in_band = index[None, None] == np.arange(bands)[:, None, None]
    values = lax.complex(spectra[..., 0], spectra[..., 1])[:, None]
    parts = jnp.where(is_in_band, values, 0)
    return _to_kernels(parts.reshape(-1, *index.shape), kernel_shape)


def mix_bands(
    attention: Shaped[jax.Array, "batch experts"],
    spectra: Float[jax.Array, "spectra rows frequencies 2"],
    bands: int,
    kernel_shape: tuple[int, ...],
    *,
    precision: lax.PrecisionLike = None,
) -> Float[jax.Array, "batch height width in_per_group out_features"]:
    """Returns the kernel of each sample, whose bands the attention weighs.

    Chen et al., "Frequency Dynamic Convolution for Dense Image Prediction", CVPR 2025,
    section 3.2.

    Args:
        attention: The weight of each band of each spectrum, in the order of
            `band_kernels`.
        spectra: One spectrum or several, which are added up.
        bands: K, of each.
        kernel_shape: The shape (k_h, k_w, C/g, O).
        precision: As in `jax.lax.conv_general_dilated`.

    Returns:
        The kernels, in the dtype of the spectra.

    Example:
        >>> kernel = jnp.ones((3, 3, 4, 2))
        >>> spectra, attention = to_spectrum(kernel)[None], jnp.ones((5, 3))
        >>> mix_bands(attention, spectra, 3, kernel.shape).shape
        (5, 3, 3, 4, 2)
    """
    batch, count = attention.shape[0], spectra.shape[0]
    # XLA gathers a batch over devices to transform it.
    is_small = isinstance(batch, int) and 2 * batch <= count * bands
    if not is_small or devices_of_a_batch() > 1:
        kernels = band_kernels(spectra, bands, kernel_shape)
        return mix_kernels(attention, kernels, precision=precision)
    index = _bands_of(bands, kernel_shape)
    weights = attention.astype(spectra.dtype).reshape(batch, count, bands)
    parts = jnp.take(weights, index, axis=2)[..., None] * spectra[None]
    mixed = parts.sum(1)
    return _to_kernels(lax.complex(mixed[..., 0], mixed[..., 1]), kernel_shape)


def _bands_of(bands: int, kernel_shape: tuple[int, ...]) -> np.ndarray:
    height, width, inputs, outputs = kernel_shape
    return band_of_frequency(outputs * height, inputs * width, bands)
