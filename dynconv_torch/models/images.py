"""What the classifiers of images share: the check of their input, and pooling."""

from jaxtyping import Float
from torch import Tensor

from dynconv_torch.functional.checks import check_tensors
from dynconv_torch.functional.pooling import spatial_mean
from dynconv_torch.functional.tracing import sizes_of


def check_images(x: Tensor, in_channels: int) -> None:
    """Raises an error unless `x` is a tensor (B, in_channels, H, W)."""
    check_tensors(x=x)
    if not x.is_floating_point():
        raise ValueError(f"`x` ({x.dtype}) must be floating; give `x.float()`")
    shape = sizes_of(x)
    if x.ndim != 4 or shape[1] != in_channels:
        raise ValueError(
            f"`x` (shape {shape}) must be (batch, in_channels, height, "
            f"width) with `in_channels` (={in_channels})"
        )


def global_average_pool(
    x: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch channels"]:
    """Returns the mean over all pixels, summed in float32 at least.

    Args:
        x: The features of each pixel.

    Returns:
        The mean of each feature.

    Example:
        >>> import torch
        >>> global_average_pool(torch.arange(6.0).reshape(1, 1, 2, 3)).tolist()
        [[2.5]]
    """
    return spatial_mean(x).to(x.dtype)
