"""What decomposed layers share: how Λ and Φ come from features, and what Φ mixes."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.functional.activations import relu6
from dynconv_jax.gating import record_attention
from dynconv_jax.initializers import torch_linear
from dynconv_jax.layers.batch_norm import BatchNorm


class Decomposition(NamedTuple):
    """What a decomposed layer makes of an input.

    Attributes:
        scale: Λ, shape (B, O), the weights of the static outputs, from 0 to 2.
        phi: Φ, shape (B, L, L), what mixes the latent features.
    """

    scale: jax.Array
    phi: jax.Array


def hard_gate(logits: jax.Array) -> jax.Array:
    """From 0 to 2, and 1 at 0: twice the hard sigmoid.

    Example:
        >>> hard_gate(jnp.array([-3.0, 0.0, 9.0])).tolist()
        [0.0, 1.0, 2.0]
    """
    return relu6(logits + 3) / 3


class SqueezeGate(nnx.Module):
    """Features times the gates that a linear layer computes from them.

    Attributes:
        fc: The linear layer, in a sequence as checkpoints have it.
    """

    def __init__(self, features: int, **options):
        """Builds the layer; the options are those of `nnx.Linear`."""
        self.fc = nnx.Sequential(torch_linear(features, features, **options))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns gated features (B, s)."""
        return inputs * hard_gate(self.fc(inputs))


class Decomposed(nnx.Module):
    """A layer with a static part that Λ scales, and a latent one that Φ mixes.

    Attributes:
        bn1: The norm of the latent; `bn2` is that of the mixed latent.
        fc: From the features to the squeezed ones; `fc_phi` and `fc_scale` take them to
            Φ and to the logits of Λ.
    """

    def _build_decomposition(
        self,
        features: int,
        hidden: int,
        latent: int,
        out_features: int,
        *,
        dtype: DTypeLike | None,
        precision: lax.PrecisionLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
        **linear: Any,
    ) -> None:
        """Builds what computes Λ and Φ, and the norms.

        Args:
            features: How many features Λ and Φ come from.
            hidden: s, the number of squeezed features.
            latent: L.
            out_features: O.
            dtype: The dtype of the norms.
            precision: As in `jax.lax.dot_general`.
            param_dtype: The dtype of the parameters.
            rngs: Where the initial parameters come from.
            **linear: Further options of the linear layers.
        """
        self.precision = precision
        shared: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
        linear.update(shared, use_bias=False, precision=precision)
        self.bn1 = BatchNorm(latent, dtype=dtype, **shared)
        self.bn2 = BatchNorm(latent, dtype=dtype, **shared)
        self.fc = nnx.Sequential(
            torch_linear(features, hidden, **linear), SqueezeGate(hidden, **linear)
        )
        self.fc_phi = torch_linear(hidden, latent * latent, **linear)
        self.fc_scale = torch_linear(hidden, out_features, **linear)

    def _decompose(self, features: jax.Array) -> Decomposition:
        """Returns Λ and Φ of features (B, F), in their dtype."""
        hidden = self.fc(features)
        phi = self.fc_phi(hidden)
        latent = math.isqrt(phi.shape[-1])
        scale = hard_gate(self.fc_scale(hidden))
        phi = phi.reshape(features.shape[0], latent, latent)
        record_attention(self, scale, "scale")
        record_attention(self, phi, "phi")
        return Decomposition(scale, phi)

    def _mix(self, latent: jax.Array, phi: jax.Array) -> jax.Array:
        """Returns bn2(Φ q) + q for q (B, ..., L), normed by bn1 already."""
        # In the dtype of Φ: in float16 it would overflow before the norm shrinks it.
        mixed = jnp.einsum(
            "b...j,bij->b...i",
            latent.astype(phi.dtype),
            phi,
            precision=self.precision,
        )
        return self.bn2(mixed).astype(latent.dtype) + latent

    def _check_values(self, inputs: jax.Array, latent: jax.Array) -> None:
        """Refuses to train on one value per channel."""
        sizes = latent.shape[:-1]
        is_one = all(isinstance(size, int) and size == 1 for size in sizes)
        # Over a mapped axis there are more values than are seen here.
        is_alone = is_one and self.bn1.axis_name is None
        if is_alone and not self.bn1.use_running_average:
            raise ValueError(
                f"`inputs` (shape {inputs.shape}) gives the batch norms of the layer "
                "one value per channel, whose variance is not defined in training; "
                "train with a larger batch or larger inputs, or put the layer in "
                "evaluation mode"
            )
