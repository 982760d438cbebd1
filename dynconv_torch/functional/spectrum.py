"""Kernels as spectra: disjoint bands of frequencies, which are mixed as experts are.

A kernel is seen as one matrix, (O·k_h) × (C/g·k_w), whose real Fourier transform is its
spectrum. Frequencies sorted by their radius fall into K bands of the same size, and the
kernel of a sample weighs each band:

    W_i = irfft2(Σ_g a_ig band_g) = Σ_g a_ig irfft2(band_g)

The left side transforms a spectrum for each sample. The right one transforms each band,
once for the batch, and mixes kernels: it is the faster one from about K / 2 samples on.
"""

import functools

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dynconv_torch.functional.dynamic import mix_kernels
from dynconv_torch.functional.tracing import is_open


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
    band = np.empty(radii.size, np.int64)
    band[order] = np.arange(radii.size) * bands // radii.size
    return band.reshape(radii.shape)


def spectrum_shape(weight_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns the shape of the spectrum of a kernel (O, C/g, k_h, k_w).

    Example:
        >>> spectrum_shape((32, 64, 3, 3))
        (96, 97, 2)
    """
    outputs, inputs, height, width = weight_shape
    return outputs * height, inputs * width // 2 + 1, 2


def to_spectrum(
    weight: Float[Tensor, "out_channels in_per_group height width"],
) -> Float[Tensor, "rows frequencies 2"]:
    """Returns the spectrum of a kernel: real and imaginary parts.

    Example:
        >>> to_spectrum(torch.ones(2, 4, 3, 3)).shape
        torch.Size([6, 7, 2])
    """
    matrix = weight.transpose(1, 2).flatten(2).flatten(0, 1)
    return torch.view_as_real(torch.fft.rfft2(matrix)).contiguous()


def _to_kernels(
    spectra: Shaped[Tensor, "stack rows frequencies"], weight_shape: tuple[int, ...]
) -> Tensor:
    """Returns the kernels (stack, O, C/g, k_h, k_w) of complex spectra."""
    outputs, inputs, height, width = weight_shape
    matrices = torch.fft.irfft2(spectra, s=(outputs * height, inputs * width))
    return matrices.reshape(-1, outputs, height, inputs, width).transpose(2, 3)


def band_kernels(
    spectra: Float[Tensor, "spectra rows frequencies 2"],
    bands: Shaped[Tensor, "rows frequencies"],
    num_bands: int,
    weight_shape: tuple[int, ...],
) -> Float[Tensor, "experts out_channels in_per_group height width"]:
    """Returns what each band is as a kernel; all of a spectrum add up to its kernel.

    Args:
        spectra: One spectrum or several.
        bands: To which band each frequency belongs, as of `band_of_frequency`.
        num_bands: K.
        weight_shape: The shape (O, C/g, k_h, k_w).

    Returns:
        The bands of the first spectrum, then those of the next.

    Example:
        >>> kernel, bands = torch.randn(2, 4, 1, 1), band_of_frequency(2, 4, 3)
        >>> spectra = to_spectrum(kernel)[None]
        >>> parts = band_kernels(spectra, torch.from_numpy(bands), 3, kernel.shape)
        >>> parts.shape, torch.allclose(parts.sum(0), kernel, atol=1e-5)
        (torch.Size([3, 2, 4, 1, 1]), True)
    """
    numbers = torch.arange(num_bands, device=bands.device)
    is_in_band = (bands == numbers[:, None, None])[..., None]
    parts = (spectra[:, None] * is_in_band.to(spectra.dtype)).flatten(0, 1)
    return _to_kernels(torch.view_as_complex(parts), weight_shape)


def mix_bands(
    attention: Shaped[Tensor, "batch experts"],
    spectra: Float[Tensor, "spectra rows frequencies 2"],
    bands: Shaped[Tensor, "rows frequencies"],
    num_bands: int,
    weight_shape: tuple[int, ...],
) -> Float[Tensor, "batch out_channels in_per_group height width"]:
    """Returns the kernel of each sample, whose bands the attention weighs.

    Chen et al., "Frequency Dynamic Convolution for Dense Image Prediction", CVPR 2025,
    section 3.2.

    Args:
        attention: The weight of each band of each spectrum, in the order of
            `band_kernels`.
        spectra: One spectrum or several, which are added up.
        bands: To which band each frequency belongs, as of `band_of_frequency`.
        num_bands: K.
        weight_shape: The shape (O, C/g, k_h, k_w).

    Returns:
        The kernels, in the dtype of the spectra.

    Example:
        >>> spectra = to_spectrum(torch.ones(2, 4, 3, 3))[None]
        >>> bands = torch.from_numpy(band_of_frequency(6, 12, 3))
        >>> mix_bands(torch.ones(5, 3), spectra, bands, 3, (2, 4, 3, 3)).shape
        torch.Size([5, 2, 4, 3, 3])
    """
    batch, count = attention.shape[0], spectra.shape[0]
    # Nothing can be transformed where there is no sample.
    if is_open(batch) or not batch or 2 * batch > count * num_bands:
        kernels = band_kernels(spectra, bands, num_bands, weight_shape)
        return mix_kernels(attention, kernels)
    weights = attention.to(spectra.dtype).reshape(batch, count, num_bands)
    mixed = (weights[:, :, bands][..., None] * spectra).sum(1)
    return _to_kernels(torch.view_as_complex(mixed), weight_shape)
