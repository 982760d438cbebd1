"""What layers share that latents steer: styles, and the gain of what they scale."""

import math
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import at_least_float32
from dynconv_jax.gating import attend, record_attention, record_softmax
from dynconv_jax.layers.convolution import flatten_rows


def own_gain(gain: float | None, geometry: Geometry, *, demodulate: bool) -> float:
    """Returns the gain of a layer; None is what published layers have.

    Raises:
        ValueError: If it is no finite number.
    """
    if gain is None:
        width = geometry.in_features // geometry.feature_group_count
        return 1.0 if demodulate else (width * geometry.taps) ** -0.5
    if not isinstance(gain, Real) or not math.isfinite(gain):
        raise ValueError(f"`gain` (={gain!r}) must be a finite number, or None")
    return float(gain)


def apply_wide(
    linear: nnx.Linear | nnx.Sequential, latents: jax.Array, dtype: DTypeLike | None
) -> jax.Array:
    """Applies a linear layer to latents, in float32 at least.

    Args:
        linear: The layer.
        latents: Shape (B, style_features).
        dtype: The dtype of the computation, or None for that of the latents.
    """
    return linear(latents.astype(at_least_float32(dtype or latents.dtype)))


def linear_attention(
    router: Any, linear: nnx.Linear, latents: jax.Array, dtype: DTypeLike | None
) -> jax.Array:
    """Returns softmax(linear(latents) / T), computed in float32 at least.

    Args:
        router: The module that has the `temperature`, by which the answer is recorded.
        linear: The layer from latents to logits.
        latents: As in `apply_wide`.
        dtype: As in `apply_wide`.
    """
    logits = apply_wide(linear, latents, dtype)
    attention = attend(logits, router.temperature[...])
    record_softmax(router, attention, logits, router.temperature[...])
    return attention


class Styled(nnx.Module):
    """What a style scales, as an affine map of latents gives it."""

    in_features: int
    style_features: int
    affine: nnx.Linear
    dtype: DTypeLike | None

    def styles(self, latents: jax.Array) -> jax.Array:
        """Returns the factors of the input channels.

        Args:
            latents: Shape (*batch, style_features).

        Returns:
            Shape (*batch, C), in float32 at least.

        Raises:
            ValueError: If the latents do not fit the layer.
        """
        batch = jnp.shape(latents)[:-1]
        size = "style_features", self.style_features
        flat = flatten_rows("latents", latents, batch, *size)
        return self._style(flat).reshape(*batch, self.in_features)

    def _style(self, latents: jax.Array) -> jax.Array:
        styles = apply_wide(self.affine, latents, self.dtype)
        record_attention(self, styles, "styles")
        return styles
