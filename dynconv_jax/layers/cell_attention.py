"""The router of KernelWarehouse: how much of each cell goes into each tile.

    v = mean over *S of x              (B, C)
    h = relu(norm1(v · fc1))           (B, H)     H = max(16, C // reduction)
    z = h · fc2 + b2                   (B, M, n + 1)
    a = z / (Σ_j |z_j| + 1e-3)         (B, M, n + 1)

No softmax: entries may be negative, and a tile's magnitudes sum to less than 1. All of
it is computed in float32 at least.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.functional.pooling import spatial_mean
from dynconv_jax.initializers import kaiming_fan_out, promote_to_widest
from dynconv_jax.layers.attention_norm import attention_norm, normalise


class CellAttention(nnx.Module):
    """The router of a `WarehouseConv`: how much of each cell goes into each tile.

    Attributes:
        fc1: The linear layer C → H; it has a bias where no batch norm follows.
        norm1: What normalises its H features, or None.
        fc2: The linear layer H → M · (n + 1).

    Example:
        >>> attention = CellAttention(8, num_tiles=9, num_cells=18, rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((2, 5, 4, 8))).shape
        (2, 9, 19)
    """

    def __init__(
        self,
        in_features: int,
        num_tiles: int,
        num_cells: int,
        *,
        reduction: int = 16,
        norm: str = "batch",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        """Builds the router; `WarehouseConv` explains the arguments.

        Raises:
            TypeError: If the reduction is not an integer.
            ValueError: If a value is out of range.
        """
        hidden = max(16, in_features // positive_int("reduction", reduction))
        self.num_tiles = num_tiles
        self.num_cells = num_cells
        self.dtype = dtype
        shared: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
        linear: dict[str, Any] = dict(
            kernel_init=kaiming_fan_out,
            precision=precision,
            promote_dtype=promote_to_widest,
            **shared,
        )
        self.fc1 = nnx.Linear(in_features, hidden, use_bias=norm != "batch", **linear)
        self.norm1 = nnx.data(attention_norm(norm, hidden, **shared))
        self.fc2 = nnx.Linear(hidden, num_tiles * (num_cells + 1), **linear)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the attention a (B, M, n + 1) for inputs (B, *S, C).

        Raises:
            ValueError: In training with batch norm, if there is one sample only.
        """
        hidden = normalise(self.norm1, self.fc1(spatial_mean(inputs, self.dtype)))
        logits = self.fc2(jax.nn.relu(hidden))
        logits = logits.reshape(logits.shape[0], self.num_tiles, self.num_cells + 1)
        return logits / (jnp.abs(logits).sum(axis=-1, keepdims=True) + 1e-3)
