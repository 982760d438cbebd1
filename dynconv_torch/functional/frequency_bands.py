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

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dynconv_torch.functional.numerics import at_least_float32

# `"ideal"` is at the size of the image, and of the authors' code `"stretched"` the
# latest and `"one_sided"` the first.
LOW_PASSES = ("ideal", "stretched", "one_sided")

# Of the image whose mask is stretched.
_SIDE = 64


def lowest_waves(
    size: Any, reduction: int, like: Tensor
) -> Float[Tensor, "size waves"]:
    """Returns an orthonormal basis of the signals without high frequencies.

    Args:
        size: The length of a signal, a number or a symbol.
        reduction: k ≥ 2; there are frequencies up to 1 / (2 k), the highest one
            included.
        like: A tensor of the dtype and on the device that the result is to have.

    Returns:
        Shape (size, 2 · (size // 2k) + 1), lower frequencies first.

    Example:
        >>> waves = lowest_waves(8, 4, torch.ones(1))[:, 1]
        >>> [round(float(each), 2) for each in waves[:4]]
        [0.5, 0.35, -0.0, -0.35]
    """
    index = torch.arange(2 * (size // (2 * reduction)) + 1, device=like.device)
    frequency = (index + 1) // 2
    # Of whole turns nothing is left, so that no large angle is rounded.
    turns = (torch.arange(size, device=like.device)[:, None] * frequency) % size
    angles = turns.to(like.dtype) * (2 * math.pi) / size
    is_cosine = (index % 2 == 1) | (index == 0)
    waves = torch.where(is_cosine, torch.cos(angles), torch.sin(angles))
    power = torch.where(index == 0, 1, 2).to(like.dtype) / size
    return waves * power.sqrt()


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
    input: Shaped[Tensor, "batch channels height width"],
    gates: Shaped[Tensor, "batch bands height width"],
    reductions: Sequence[int],
    low_pass: str = "ideal",
) -> Float[Tensor, "batch channels height width"]:
    """Weighs bands of spatial frequencies at every pixel.

    Chen et al., "Frequency Dynamic Convolution for Dense Image Prediction", CVPR 2025,
    section 3.4.

    Args:
        input: The images.
        gates: The factor of each band; the lowest frequencies have none.
        reductions: The k of each band, which ends at the frequency 1 / (2 k), from the
            highest band to the lowest, each a multiple of the one before.
        low_pass: One of `LOW_PASSES`.

    Returns:
        The images, in float32 at least.

    Example:
        >>> images, gates = torch.ones(2, 4, 9, 7), torch.zeros(2, 2, 9, 7)
        >>> bool(torch.allclose(modulate_bands(images, gates, (2, 4)), images))
        True
    """
    wide = input.to(at_least_float32(input.dtype))
    parts = (
        _ideal(wide, reductions)
        if low_pass == "ideal"
        else _masked(wide, reductions, low_pass)
    )
    output, previous = None, wide
    for band, low in enumerate(parts):
        part = gates[:, band : band + 1] * (previous - low)
        output = part if output is None else output + part
        previous = low
    return previous if output is None else output + previous


def _ideal(wide: Tensor, reductions: Sequence[int]) -> Iterator[Tensor]:
    """Yields what each reduction keeps of the images."""
    height, width = wide.shape[2:]
    rows = lowest_waves(height, reductions[0], wide)
    columns = lowest_waves(width, reductions[0], wide)
    waves = rows.mT @ (wide @ columns)
    for reduction in reductions:
        down = 2 * (height // (2 * reduction)) + 1
        across = 2 * (width // (2 * reduction)) + 1
        corner = waves[:, :, :down, :across]
        yield rows[:, :down] @ corner @ columns[:, :across].mT


def _masked(wide: Tensor, reductions: Sequence[int], low_pass: str) -> Iterator[Tensor]:
    """Yields what each reduction keeps of the images, by masks of their spectrum."""
    # Of no images there is no transform.
    if isinstance(wide.shape[0], int) and not wide.shape[0]:
        yield from (wide for _ in reductions)
        return
    height, width = (int(size) for size in wide.shape[2:])
    spectrum = torch.fft.rfft2(wide)
    for reduction in reductions:
        rows, columns = low_pass_masks(low_pass, height, width, reduction)
        mask = torch.from_numpy(rows[:, None] & columns).to(wide.device)
        yield torch.fft.irfft2(spectrum * mask, s=(height, width))
