"""The router of KernelWarehouse: how much of each cell goes into each tile.

    v = mean over *S of x              (B, C)
    h = relu(norm1(v · fc1))           (B, H)     H = max(16, C // reduction)
    z = h · fc2 + b2                   (B, M, n + 1)
    a = z / (Σ_j |z_j| + 1e-3)         (B, M, n + 1)

With a basis, for warehouses of many cells, z is not one linear layer: of a tile it has
the layer's own cells, those of other layers mixed from fewer numbers, and zero:

    u, w, o = the parts of h · fc2     (B, M, own), (B, M, basis), (B, M, 1)
    z = (u between the halves of w · fc3, o) + basis_bias

No softmax: entries may be negative, and a tile's magnitudes sum to less than 1. All of
it is computed in float32 at least.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.functional.checks import check_positive
from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.functional.pooling import spatial_mean
from dynconv_jax.initializers import kaiming_fan_out, promote_to_widest
from dynconv_jax.layers.attention_norm import attention_norm, normalise


class CellAttention(nnx.Module):
    """The router of a `WarehouseConv`: how much of each cell goes into each tile.

    Attributes:
        fc1: The linear layer C → H; it has a bias where no batch norm follows.
        norm1: What normalises its H features, or None.
        fc2: The linear layer H → M · (n + 1); with a basis, without bias, H → M · (own
            + basis + 1).
        fc3: With a basis, the linear layer from it to the cells of other layers, or
            None.
        basis_bias: With a basis, shape (M · (n + 1),), or None.

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
        start: int = 0,
        num_own: int | None = None,
        reduction: int = 16,
        norm: str = "batch",
        nonlocal_basis_ratio: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        """Builds the router; `WarehouseConv` explains the other arguments.

        Args:
            in_features: C, the number of input channels.
            num_tiles: M.
            num_cells: n.
            start: The first cell that is the layer's own.
            num_own: How many cells are; None, all.
            reduction: What divides C.
            norm: What normalises the hidden features.
            nonlocal_basis_ratio: The size of the basis over the number of the cells of
                other layers.
            dtype: The dtype of the computation.
            param_dtype: The dtype of the parameters.
            precision: Of the products.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If the reduction or the ratio is not a number.
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
        self.start = start
        self.num_own = num_cells if num_own is None else num_own
        self.fc3: nnx.Linear | None
        self.basis_bias: nnx.Param[jax.Array] | None
        others = num_cells - self.num_own
        basis = basis_size(others, nonlocal_basis_ratio)
        if basis is None:
            self.fc2 = nnx.Linear(hidden, num_tiles * (num_cells + 1), **linear)
            self.fc3 = self.basis_bias = nnx.data(None)
            return
        outputs = num_tiles * (self.num_own + basis + 1)
        self.fc2 = nnx.Linear(hidden, outputs, use_bias=False, **linear)
        self.fc3 = nnx.Linear(basis, others, use_bias=False, **linear)
        zeros = jnp.zeros(num_tiles * (num_cells + 1), param_dtype)
        self.basis_bias = nnx.Param(zeros)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the attention a (B, M, n + 1) for inputs (B, *S, C).

        Raises:
            ValueError: In training with batch norm, if there is one sample only.
        """
        hidden = normalise(self.norm1, self.fc1(spatial_mean(inputs, self.dtype)))
        logits = self.fc2(jax.nn.relu(hidden))
        width = self.fc2.out_features // self.num_tiles  # not -1: a batch may be empty
        logits = logits.reshape(logits.shape[0], self.num_tiles, width)
        if self.fc3 is not None and self.basis_bias is not None:
            bias = self.basis_bias[...].reshape(1, self.num_tiles, -1)
            logits = self._from_basis(logits, self.fc3)
            logits = logits + bias.astype(logits.dtype)
        return logits / (jnp.abs(logits).sum(axis=-1, keepdims=True) + 1e-3)

    def _from_basis(self, parts: jax.Array, fc3: nnx.Linear) -> jax.Array:
        """Returns (B, M, n + 1) of (B, M, own + basis + 1)."""
        own, basis = parts[..., : self.num_own], parts[..., self.num_own : -1]
        others, start = fc3(basis), self.start
        before, after = others[..., :start], others[..., start:]
        return jnp.concatenate((before, own, after, parts[..., -1:]), axis=-1)


def basis_size(others: int, ratio: float) -> int | None:
    """Returns how many numbers the cells of other layers are mixed from, if from fewer.

    Args:
        others: How many cells are of other layers.
        ratio: The size of the basis over that number.

    Raises:
        TypeError: If the ratio is not a number.
        ValueError: If it is not in (0, 1].

    Example:
        >>> basis_size(512, 1 / 16), basis_size(512, 1.0), basis_size(0, 1 / 16)
        (32, None, None)
    """
    check_positive("nonlocal_basis_ratio", ratio)
    if ratio > 1:
        raise ValueError(
            f"`nonlocal_basis_ratio` (={ratio}) must be in (0, 1]; with 1 there is no "
            "basis"
        )
    if ratio == 1 or not others:
        return None
    return max(16, int(others * ratio))
