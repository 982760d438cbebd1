"""What the classifiers of images share: the check of their input, and pooling."""

import math
from typing import Any

import jax
from flax import nnx
from jax import lax
from jaxtyping import Float

from dynconv_jax.functional.checks import check_arrays
from dynconv_jax.functional.pooling import spatial_mean


def check_images(inputs: jax.Array, in_features: int) -> None:
    """Raises an error unless `inputs` are an array (B, H, W, in_features)."""
    check_arrays(inputs=inputs)
    if inputs.ndim != 4 or inputs.shape[-1] != in_features:
        raise ValueError(
            f"`inputs` (shape {inputs.shape}) must be (batch, height, width, "
            f"in_features) with `in_features` (={in_features})"
        )


def max_pool(
    inputs: Float[jax.Array, "batch height width channels"],
) -> Float[jax.Array, "batch (height-1)//2+1 (width-1)//2+1 channels"]:
    """Returns the largest of every 3×3 window, at a stride of 2 and padded by 1.

    As `torch.nn.MaxPool2d(3, 2, 1)`: nothing of the border is ever the largest, and
    among equals the first has the gradient.

    Args:
        inputs: The features of each pixel.

    Returns:
        The largest of each window.

    Example:
        >>> import jax.numpy as jnp
        >>> max_pool(jnp.arange(6.0).reshape(1, 2, 3, 1)).ravel().tolist()
        [4.0, 5.0]
    """
    padding: Any = ((1, 1), (1, 1))  # which Flax takes, but annotates as a str
    return nnx.max_pool(inputs, (3, 3), (2, 2), padding)


def avg_pool(
    inputs: Float[jax.Array, "batch height width channels"], window: tuple[int, int]
) -> Float[jax.Array, "batch out_height out_width channels"]:
    """Returns the mean of windows side by side, without what fills none.

    As `torch.nn.AvgPool2d`.

    Args:
        inputs: The features of each pixel.
        window: The size of a window.

    Returns:
        The mean of each window.

    Example:
        >>> import jax.numpy as jnp
        >>> avg_pool(jnp.arange(5.0).reshape(1, 1, 5, 1), (1, 2)).ravel().tolist()
        [0.5, 2.5]
    """
    sums = nnx.pool(inputs, 0.0, lax.add, window, window, "VALID")
    return sums / math.prod(window)


def global_average_pool(
    inputs: Float[jax.Array, "batch height width channels"],
) -> Float[jax.Array, "batch channels"]:
    """Returns the mean over all pixels, summed in float32 at least.

    Args:
        inputs: The features of each pixel.

    Returns:
        The mean of each feature.

    Example:
        >>> import jax.numpy as jnp
        >>> global_average_pool(jnp.arange(6.0).reshape(1, 2, 3, 1)).tolist()
        [[2.5]]
    """
    return spatial_mean(inputs).astype(inputs.dtype)
