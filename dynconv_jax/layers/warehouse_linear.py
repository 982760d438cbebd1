"""A linear layer whose kernel is tiled with cells: a 1-D convolution of one tap."""

from typing import Any

import jax
from flax import nnx

from dynconv_jax.functional.checks import check_arrays
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.layers.kernel_warehouse import KernelWarehouse, WarehouseConv


class WarehouseLinear(nnx.Module):
    """A linear layer whose kernel is tiled, for every sample, with mixed cells.

    Li & Yao, "KernelWarehouse", ICML 2024, have one as the head of their MobileNetV2 of
    half the parameters. It is one of the layers that a `KernelWarehouse` was made for,
    by `linear_geometry`. Its attention sees the mean of all positions of a sample.

    Attributes:
        conv: The `WarehouseConv` that computes it.

    Example:
        >>> import jax.numpy as jnp
        >>> warehouse = KernelWarehouse([linear_geometry(8, 5)], rngs=nnx.Rngs(0))
        >>> layer = WarehouseLinear(warehouse, rngs=nnx.Rngs(1))
        >>> layer(jnp.ones((2, 8))).shape, layer(jnp.ones((2, 7, 6, 8))).shape
        ((2, 5), (2, 7, 6, 5))
    """

    def __init__(
        self,
        warehouse: KernelWarehouse,
        index: int | None = None,
        *,
        use_bias: bool = True,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        """Builds the layer.

        Args:
            warehouse: Where the cells are.
            index: Which of the warehouse's layers this is; None takes the next one.
            use_bias: Whether there is a bias.
            rngs: Where the initial parameters come from.
            **options: Further options of `WarehouseConv`.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range, the layer was built before, or is no
                linear one.
        """
        self.conv = WarehouseConv(
            warehouse, index, use_bias=use_bias, rngs=rngs, **options
        )
        geometry = self.conv.share.geometry
        inputs, outputs = geometry.in_features, geometry.out_features
        if geometry != linear_geometry(inputs, outputs):
            raise ValueError(
                f"`warehouse` has for layer {self.conv.index} a convolution of "
                f"`kernel_size` (={geometry.kernel_size}); make it for "
                f"`linear_geometry({inputs}, {outputs})`"
            )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer.

        Args:
            inputs: Shape (B, C), or (B, *positions, C).

        Returns:
            Shape (B, O), or (B, *positions, O).

        Raises:
            TypeError: If the inputs are no array.
            ValueError: If the inputs do not fit the layer.
        """
        check_arrays(inputs=inputs)
        if inputs.ndim < 2:
            raise ValueError(
                f"`inputs` (shape {inputs.shape}) must be (batch, *positions, features)"
            )
        # In a row, which has a length also where there is one position.
        row = inputs[:, None] if inputs.ndim == 2 else inputs
        if row.ndim > 3:
            row = jax.lax.collapse(row, 1, row.ndim - 1)
        outputs = self.conv(row)
        return outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])


def linear_geometry(in_features: int, out_features: int) -> Geometry:
    """Returns the geometry of a linear layer, for the warehouse that it is to share.

    Args:
        in_features: C, the number of input features.
        out_features: O, the number of output features.

    Example:
        >>> linear_geometry(8, 5).kernel_shape
        (1, 8, 5)
    """
    return Geometry.create(in_features, out_features, (1,), padding="VALID")
