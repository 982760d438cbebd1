"""Pooling: the mean over all pixels, and to a fixed number of bins.

Sums are taken in float32 at least.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dynconv_torch.functional.numerics import at_least_float32


def spatial_mean(x: Tensor, *dtypes: torch.dtype) -> Tensor:
    """Returns the mean of `x` (B, C, *S) over *S.

    Args:
        x: Shape (B, C, *S).
        dtypes: Of what the result meets: it has a dtype that holds these, that of `x`
            and float32.

    Returns:
        Shape (B, C).

    Example:
        >>> spatial_mean(torch.arange(6.0).reshape(1, 1, 2, 3)).tolist()
        [[2.5]]
    """
    dtype = at_least_float32(x.dtype, *dtypes)
    axes = tuple(range(2, x.ndim))
    return x.mean(axes, dtype=dtype) if axes else x.to(dtype)


def adaptive_avg_pool(x: Tensor, bins: int, *dtypes: torch.dtype) -> Tensor:
    """Averages `x` over `bins` bins along every spatial axis.

    As `torch.nn.AdaptiveAvgPool2d`, in as many dimensions as there are.

    Args:
        x: Shape (B, C, *S), with no empty axis in S.
        bins: The bins along each axis.
        dtypes: As in `spatial_mean`.

    Returns:
        Shape (B, C, bins, ...), with as many spatial axes.

    Example:
        >>> adaptive_avg_pool(torch.arange(3.0).reshape(1, 1, 3), 2).tolist()
        [[[0.5, 1.5]]]
    """
    x = x.to(at_least_float32(x.dtype, *dtypes))
    if torch.compiler.is_exporting():
        return _pool_by_product(x, bins)
    pool = getattr(F, f"adaptive_avg_pool{x.ndim - 2}d")
    return pool(x, bins)


def _pool_by_product(x: Tensor, bins: int) -> Tensor:
    """Pools as `adaptive_avg_pool` does, by what every exporter knows.

    ONNX has no such pooling, but for sizes that the bins divide.
    """
    index = torch.arange(bins, device=x.device)[:, None]
    for axis in range(2, x.ndim):
        size = x.shape[axis]
        pixel = torch.arange(size, device=x.device)
        low, high = index * size // bins, -(-(index + 1) * size // bins)
        is_inside = (low <= pixel) & (pixel < high)
        weights = is_inside.to(x.dtype) / (high - low).to(x.dtype)  # (bins, size)
        x = (x.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return x
