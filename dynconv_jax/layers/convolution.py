"""What all layers that convolve share: their geometry, and batches of any shape."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynconv_jax.functional.checks import check_arrays
from dynconv_jax.functional.geometry import Geometry


def flatten_rows(
    name: str, rows: jax.Array, batch: tuple[int, ...], size_name: str, size: int
) -> jax.Array:
    """Returns what there is a row of for each sample, with one batch dimension.

    Args:
        name: The name of the argument.
        rows: Shape (*batch, size).
        batch: The batch dimensions of the samples.
        size_name: What the size is called.
        size: The length of a row.

    Raises:
        TypeError: If it is no array.
        ValueError: If it has another shape, or is not real.

    Example:
        >>> flatten_rows("latents", jnp.ones((2, 3, 5)), (2, 3), "features", 5).shape
        (6, 5)
    """
    given: dict[str, Any] = {name: rows}
    check_arrays(**given)
    rows = jnp.asarray(rows)
    expected = (*batch, size)
    if rows.shape != expected:
        raise ValueError(
            f"`{name}` (shape {rows.shape}) must be (*batch, {size_name}) = {expected}"
        )
    return rows if len(batch) == 1 else rows.reshape(math.prod(batch), size)


class Convolution(nnx.Module):
    """A layer whose geometry is that of `nnx.Conv`, under the same names.

    What takes or answers more than arrays is private here and in all modules: tools of
    flax, as `nnx.tabulate`, trace every public method that is called.

    Example:
        >>> from dynconv_jax import DynamicConv
        >>> layer = DynamicConv(3, 8, (3, 3), strides=2, rngs=nnx.Rngs(0))
        >>> isinstance(layer, Convolution), layer.strides
        (True, (2, 2))
    """

    def _take_geometry(self, geometry: Geometry) -> None:
        """Makes the parts of a geometry attributes of the layer."""
        self.in_features = geometry.in_features
        self.out_features = geometry.out_features
        self.kernel_size = geometry.kernel_size
        self.strides = geometry.strides
        self.padding = geometry.padding
        self.kernel_dilation = geometry.kernel_dilation
        self.feature_group_count = geometry.feature_group_count

    @property
    def _geometry_options(self) -> dict[str, Any]:
        """What of the geometry functions take by name, as `dynamic_conv` does."""
        return dict(
            strides=self.strides,
            padding=self.padding,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
        )

    def _flatten_batch(self, inputs: jax.Array) -> tuple[jax.Array, tuple[int, ...]]:
        """Returns the inputs with one batch dimension, and the ones they had.

        Raises:
            TypeError: If the inputs are no array.
            ValueError: If they do not fit the layer.
        """
        check_arrays(inputs=inputs)
        inputs = jnp.asarray(inputs)
        rank = len(self.kernel_size)
        if inputs.ndim < rank + 1 or inputs.shape[-1] != self.in_features:
            raise ValueError(
                f"`inputs` (shape {inputs.shape}) must be (*batch, *spatial, "
                f"in_features) with {rank} spatial dimension(s) and `in_features` "
                f"(={self.in_features})"
            )
        batch = inputs.shape[: -rank - 1]
        if len(batch) == 1:
            return inputs, batch
        return inputs.reshape(math.prod(batch), *inputs.shape[-rank - 1 :]), batch
