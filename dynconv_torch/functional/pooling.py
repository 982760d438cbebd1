"""Pooling: the mean over all pixels, and to a fixed number of bins.

Sums are taken in float32 at least.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from dynconv_torch.functional.numerics import at_least_float32


def spatial_mean(
    x: Shaped[Tensor, "batch channels *spatial"], *dtypes: torch.dtype
) -> Float[Tensor, "batch channels"]:
    """Returns the mean over the pixels.

    Args:
        x: The features of each pixel.
        dtypes: Of what the result meets: it has a dtype that holds these, that of `x`
            and float32.

    Returns:
        The mean of each feature.

    Example:
        >>> spatial_mean(torch.arange(6.0).reshape(1, 1, 2, 3)).tolist()
        [[2.5]]
    """
    dtype = at_least_float32(x.dtype, *dtypes)
    axes = tuple(range(2, x.ndim))
    return x.mean(axes, dtype=dtype) if axes else x.to(dtype)


def axis_means(
    x: Shaped[Tensor, "batch channels height width"], *dtypes: torch.dtype
) -> Float[Tensor, "batch channels height+width"]:
    """Returns the mean of each row, and after them the mean of each column.

    Args:
        x: The features of each pixel.
        dtypes: As in `spatial_mean`.

    Returns:
        The means over the width, one after the other, then those over the height.

    Example:
        >>> axis_means(torch.arange(6.0).reshape(1, 1, 2, 3)).ravel().tolist()
        [1.0, 4.0, 1.5, 2.5, 3.5]
    """
    dtype = at_least_float32(x.dtype, *dtypes)
    return torch.cat([x.mean(axis, dtype=dtype) for axis in (3, 2)], dim=2)


def adaptive_avg_pool(
    x: Shaped[Tensor, "batch channels *spatial"], bins: int, *dtypes: torch.dtype
) -> Float[Tensor, "batch channels *bins"]:
    """Averages `x` over `bins` bins along every spatial axis.

    As `torch.nn.AdaptiveAvgPool2d`, in as many dimensions as there are.

    Args:
        x: The features of each pixel; no spatial axis is empty.
        bins: The bins along each axis.
        dtypes: As in `spatial_mean`.

    Returns:
        The mean of each bin, with as many spatial axes, of `bins` each.

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
