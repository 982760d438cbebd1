"""What layers share that latents steer: styles, and the gain of what they scale."""

import math
from numbers import Real

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dynconv_jax.functional.checks import check_arrays
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import at_least_float32
from dynconv_jax.gating import record_attention


def flatten_latents(
    latents: jax.Array, batch: tuple[int, ...], style_features: int
) -> jax.Array:
    """Returns latents (*batch, style_features) with one batch dimension.

    Raises:
        TypeError: If they are no array.
        ValueError: If they have another shape, or are not real.
    """
    check_arrays(latents=latents)
    latents = jnp.asarray(latents)
    expected = (*batch, style_features)
    if latents.shape != expected:
        raise ValueError(
            f"`latents` (shape {latents.shape}) must be (*batch, style_features) = "
            f"{expected}"
        )
    if len(batch) == 1:
        return latents
    return latents.reshape(math.prod(batch), style_features)


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
    linear: nnx.Linear, latents: jax.Array, dtype: DTypeLike | None
) -> jax.Array:
    """Applies a linear layer to latents, in float32 at least.

    Args:
        linear: The layer.
        latents: Shape (B, style_features).
        dtype: The dtype of the computation, or None for that of the latents.
    """
    return linear(latents.astype(at_least_float32(dtype or latents.dtype)))


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
        flat = flatten_latents(latents, batch, self.style_features)
        return self._style(flat).reshape(*batch, self.in_features)

    def _style(self, latents: jax.Array) -> jax.Array:
        styles = apply_wide(self.affine, latents, self.dtype)
        record_attention(self, styles, "styles")
        return styles
