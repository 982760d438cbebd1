"""How sums are taken: the precision of products and the dtype of accumulation."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """Returns `dtype`, or float32 where it is narrower or not floating."""
    is_floating = jnp.issubdtype(dtype, jnp.floating)
    if is_floating and jnp.finfo(dtype).bits >= 32:
        return jax.dtypes.canonicalize_dtype(dtype)
    return jnp.dtype(jnp.float32)


def as_arrays(*operands: Any) -> tuple[Any, ...]:
    """Returns operands as arrays of JAX, each in the dtype that JAX gives it."""
    return tuple(None if each is None else jnp.asarray(each) for each in operands)


def widest(*dtypes: DTypeLike) -> jnp.dtype:
    """Returns the dtype that all are promoted to, whatever JAX is told of promotion.

    Under `jax.numpy_dtype_promotion("strict")` it may be asked for: what is then cast
    to it is cast on purpose.
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def multiply_wide(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the product of two arrays in the wider of their dtypes."""
    dtype = widest(first.dtype, second.dtype)
    return first.astype(dtype) * second.astype(dtype)


def scale_channels(features: jax.Array, weights: jax.Array) -> jax.Array:
    """Multiplies features (B, *S, C) by weights (B, C), and rounds once.

    The result has the dtype of the features, also where the weights are wider.
    """
    spatial = tuple(range(1, features.ndim - 1))
    per_pixel = jnp.expand_dims(weights, spatial)
    return multiply_wide(features, per_pixel).astype(features.dtype)


class Numerics(NamedTuple):
    """The numerical options of a convolution.

    Attributes:
        precision: As in `jax.lax.conv_general_dilated`.
        preferred_element_type: The dtype of the output and of the sums behind it, as in
            `jax.lax.conv_general_dilated`.
    """

    precision: lax.PrecisionLike = None
    preferred_element_type: DTypeLike | None = None

    @property
    def settled(self) -> "Numerics":
        """The options with what `jax.default_matmul_precision` says now."""
        # JAX's types do not know its own options.
        default = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009
        return self if self.precision else self._replace(precision=default)

    def output_dtype(self, dtype: DTypeLike) -> jnp.dtype:
        """Returns the dtype of the output for operands of `dtype`."""
        return jnp.dtype(self.preferred_element_type or dtype)

    def contract(self, subscripts: str, *operands: jax.Array) -> jax.Array:
        """Returns `jnp.einsum` of the operands, in the dtype of the output."""
        return jnp.einsum(
            subscripts,
            *operands,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
        )

    def multiply(self, windows: jax.Array, kernel: jax.Array, rank: int) -> jax.Array:
        """Multiplies windows by kernels, at every pixel.

        Args:
            windows: Shape (..., *S, P), with `rank` axes in S.
            kernel: Shape (..., P, O), with the leading axes of the windows, or none.
            rank: The number of spatial dimensions.

        Returns:
            Shape (..., *S, O), in the dtype of the output.
        """
        *outer, rows = windows.shape
        batch, pixels = outer[:-rank], outer[-rank:]
        if not all(isinstance(size, int) for size in pixels):
            # Whether a product of symbolic sizes is positive is beyond JAX.
            axes = "xyz"[:rank]
            return self.contract(f"...{axes}p,...po->...{axes}o", windows, kernel)
        # One axis of pixels is faster: the gradient needs no transpose.
        flat = windows.reshape(*batch, math.prod(pixels), rows)
        outputs = self.contract("...np,...po->...no", flat, kernel)
        return outputs.reshape(*outer, outputs.shape[-1])

    def widened(self, dtype: DTypeLike) -> "Numerics":
        """Returns the options for partial sums that are still to be added up."""
        wide = at_least_float32(self.output_dtype(dtype))
        return self._replace(preferred_element_type=wide)
