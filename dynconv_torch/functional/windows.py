"""Windows of a convolution: padding, and the strided slice that each tap sees."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dynconv_torch.functional.geometry import Geometry


def pad(input: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Pads the spatial dimensions, then crops where an entry is negative."""
    flat = [pad for pair in reversed(pairs) for pad in pair]  # the last dimension first
    # In this order a crop may take more than the input had, all but one padded zero.
    input = F.pad(input, [max(pad, 0) for pad in flat])
    if min(flat) < 0:
        input = F.pad(input, [min(pad, 0) for pad in flat])
    return input


def pad_for(input: Tensor, geometry: Geometry) -> Tensor:
    """Pads an input (B, C, *S) as a convolution does."""
    pairs = geometry.pads(input.shape[2:])
    if not isinstance(geometry.padding, str):
        return pad(input, pairs)
    # Never negative, and maybe of a size that is open.
    return F.pad(input, [pad for pair in reversed(pairs) for pad in pair])


def gather_windows(padded: Tensor, geometry: Geometry) -> Tensor:
    """Lays the windows of a convolution side by side on the channel axis.

    Args:
        padded: Shape (..., C, *S), the padded input.
        geometry: The convolution whose windows are gathered.

    Returns:
        Shape (..., taps · C, *S_out), the taps in row-major order, channels innermost.

    Example:
        >>> geometry = Geometry.create(1, 1, 2, rank=1, stride=2)
        >>> gather_windows(torch.arange(5.0).reshape(1, 1, 5), geometry).tolist()
        [[[0.0, 2.0], [1.0, 3.0]]]
    """
    taps = []
    for tap in itertools.product(*map(range, geometry.kernel_size)):
        slices = []
        for index, spacing, extent, step in zip(
            tap, geometry.dilation, geometry.extent, geometry.stride, strict=True
        ):
            start = index * spacing
            # Counted from the end, so that it holds for an input of any size.
            stop = start - (extent - 1)
            slices.append(slice(start, stop if stop < 0 else None, step))
        taps.append(padded[(..., *slices)])
    return torch.cat(taps, dim=-geometry.rank - 1)
