"""Coordinate attention: gates along the one and along the other axis of an image."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.checks import check_rngs
from dynconv_jax.functional.activations import hard_swish
from dynconv_jax.functional.checks import check_arrays, check_dtypes
from dynconv_jax.functional.geometry import positive_int
from dynconv_jax.functional.numerics import as_floating, multiply_wide
from dynconv_jax.functional.pooling import axis_means
from dynconv_jax.gating import record_attention
from dynconv_jax.initializers import torch_bias_init, torch_kernel_init
from dynconv_jax.layers.batch_norm import BatchNorm
from dynconv_jax.layers.pooled_linear import PooledLinear


def check_plane(inputs: jax.Array, in_features: int) -> None:
    """Raises an error unless `inputs` are an array (B, H, W, in_features)."""
    check_arrays(inputs=inputs)
    if jnp.ndim(inputs) != 4 or jnp.shape(inputs)[-1] != in_features:
        raise ValueError(
            f"`inputs` (shape {jnp.shape(inputs)}) must be (batch, height, width, "
            f"features) with {in_features} features"
        )


class CoordinateGate(nnx.Module):
    """Multiplies features by the sigmoids of logits for each row and each column.

        y = x · σ(rows) · σ(columns)

    It has no parameters; `ContextGenerator` gives such logits.

    Example:
        >>> rows, columns = jnp.zeros((2, 9, 1, 4)), jnp.zeros((2, 1, 7, 4))
        >>> float(CoordinateGate()(jnp.ones((2, 9, 7, 4)), rows, columns).max())
        0.25
    """

    def __call__(
        self, inputs: jax.Array, rows: jax.Array, columns: jax.Array
    ) -> jax.Array:
        """Applies the gates.

        Args:
            inputs: Shape (B, H, W, C).
            rows: Shape (B, H, 1, C), the logits of the rows.
            columns: Shape (B, 1, W, C), those of the columns.

        Returns:
            The shape and the dtype of the inputs, or, if they are integers, that of
            the logits.
        """
        outputs = inputs = as_floating(inputs, rows.dtype)
        for name, logits in (("rows", rows), ("columns", columns)):
            gates = jax.nn.sigmoid(logits)
            record_attention(self, gates, name)
            outputs = multiply_wide(outputs, gates)
        return outputs.astype(inputs.dtype)


class CoordinateAttention(nnx.Module):
    """Gates for each row and each column of each channel, from means over the other.

        s = hard_swish(bn1(conv1(means over columns, then over rows)))
        y = x · σ(conv_h(s of the rows)) · σ(conv_w(s of the columns))

    Hou et al., "Coordinate Attention for Efficient Mobile Network Design", CVPR 2021,
    section 3.2, under the authors' names. A batch of one trains: its norm is over rows
    and columns too.

    Attributes:
        conv1: The linear layer C → H, which both axes share; `bn1` follows.
        conv_h: The linear layer H → C of the rows.
        conv_w: That of the columns.

    Example:
        >>> layer = CoordinateAttention(16, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 9, 7, 16))).shape
        (2, 9, 7, 16)
    """

    def __init__(
        self,
        features: int,
        *,
        reduction: int = 32,
        min_hidden: int = 8,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        """Builds the layer.

        Args:
            features: C, the number of channels.
            reduction: There are max(C // reduction, min_hidden) hidden units.
            min_hidden: How many there are at least.
            dtype: The dtype of the computation of the gates, raised to float32 where it
                is narrower; None infers it.
            param_dtype: The dtype of the parameters.
            precision: As in `jax.lax.dot_general`.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range.
        """
        self.features = positive_int("features", features)
        hidden = max(
            features // positive_int("reduction", reduction),
            positive_int("min_hidden", min_hidden),
        )
        check_dtypes(dtype=dtype, param_dtype=param_dtype, optional=("dtype",))
        check_rngs(rngs)
        self.dtype = dtype
        self.param_dtype = param_dtype

        def linear(in_features: int, out_features: int) -> PooledLinear:
            return PooledLinear(
                in_features,
                out_features,
                rank=2,
                kernel_init=torch_kernel_init,
                bias_init=torch_bias_init(in_features),
                param_dtype=param_dtype,
                precision=precision,
                rngs=rngs,
            )

        self.conv1 = linear(features, hidden)
        self.bn1 = BatchNorm(hidden, param_dtype=param_dtype, rngs=rngs)
        self.conv_h = linear(hidden, features)
        self.conv_w = linear(hidden, features)
        self.gate = CoordinateGate()

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer to inputs (B, H, W, C); integers become `param_dtype`.

        Raises:
            ValueError: If the inputs do not fit the layer.
        """
        check_plane(inputs, self.features)
        inputs = as_floating(inputs, self.param_dtype)
        hidden = hard_swish(self.bn1(self.conv1(axis_means(inputs, self.dtype))))
        height = inputs.shape[1]
        rows = self.conv_h(hidden[:, :height, None])
        columns = self.conv_w(hidden[:, None, height:])
        return self.gate(inputs, rows, columns)
