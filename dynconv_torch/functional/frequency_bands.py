"""Bands of spatial frequencies of an image, each weighed by a gate at every pixel.

    y = Σ_k m_k ⊙ (x_{k-1} - x_k) + x_n       x_k = the frequencies of x up to 1 / 2 k'

Where all gates are 1, that is x. An ideal low-pass in two dimensions is one in each:
the projection on a few cosines and sines. So it is two small matrix products there and
two back, in place of a Fourier transform, and what a narrow band keeps is a corner of
what a wider one has.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dynconv_torch.functional.numerics import at_least_float32


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


def modulate_bands(
    input: Shaped[Tensor, "batch channels height width"],
    gates: Shaped[Tensor, "batch bands height width"],
    reductions: Sequence[int],
) -> Float[Tensor, "batch channels height width"]:
    """Weighs bands of spatial frequencies at every pixel.

    Chen et al., "Frequency Dynamic Convolution for Dense Image Prediction", CVPR 2025,
    section 3.4.

    Args:
        input: The images.
        gates: The factor of each band; the lowest frequencies have none.
        reductions: The k of each band, which ends at the frequency 1 / (2 k), from the
            highest band to the lowest, each a multiple of the one before.

    Returns:
        The images, in float32 at least.

    Example:
        >>> images, gates = torch.ones(2, 4, 9, 7), torch.zeros(2, 2, 9, 7)
        >>> bool(torch.allclose(modulate_bands(images, gates, (2, 4)), images))
        True
    """
    wide = input.to(at_least_float32(input.dtype))
    height, width = input.shape[2:]
    rows = lowest_waves(height, reductions[0], wide)
    columns = lowest_waves(width, reductions[0], wide)
    waves = rows.mT @ (wide @ columns)
    output, previous = None, wide
    for band, reduction in enumerate(reductions):
        down = 2 * (height // (2 * reduction)) + 1
        across = 2 * (width // (2 * reduction)) + 1
        corner = waves[:, :, :down, :across]
        low = rows[:, :down] @ corner @ columns[:, :across].mT
        part = gates[:, band : band + 1] * (previous - low)
        output = part if output is None else output + part
        previous = low
    return previous if output is None else output + previous
