"""Noise on the logits of a router, which has it try other experts in training."""

import math

import jax
from flax import nnx
from jaxtyping import Float


class LogitNoise(nnx.Module):
    """Adds normal noise to logits in training, so that routers try other experts.

    Shazeer et al., "Outrageously Large Neural Networks", ICLR 2017, section 2.1, with a
    fixed standard deviation in place of a learned one. As in `nnx.Dropout`,
    `deterministic` turns it off.

    Example:
        >>> import jax.numpy as jnp
        >>> noise = LogitNoise(0.1, rngs=nnx.Rngs(0))
        >>> logits = jnp.zeros((2, 4))
        >>> bool((noise(logits) != 0).all())
        True
        >>> noise.deterministic = True
        >>> bool((noise(logits) == 0).all())
        True
    """

    def __init__(self, std: float, *, rngs: nnx.Rngs):
        """Builds the noise; its keys come from the stream `noise` of `rngs`.

        Raises:
            ValueError: If the standard deviation is negative or not finite.
        """
        if not 0 <= std < math.inf:
            raise ValueError(f"`noise_std` (={std}) must be finite and at least 0")
        self.std = std
        self.deterministic = False
        # Without noise there is no random state to carry through every jit.
        self.rngs = rngs["noise"].fork() if std else nnx.data(None)

    def __call__(
        self, logits: Float[jax.Array, "batch experts"]
    ) -> Float[jax.Array, "batch experts"]:
        """Returns the logits, with noise in training."""
        if self.rngs is None or self.deterministic:
            return logits
        noise = jax.random.normal(
            self.rngs(),
            logits.shape,
            logits.dtype,
            out_sharding=jax.typeof(logits).sharding,
        )
        return logits + self.std * noise

    def set_view(self, deterministic: bool | None = None) -> None:
        """Is called by `nnx.view`.

        Args:
            deterministic: If True, no noise is added.
        """
        if deterministic is not None:
            self.deterministic = deterministic
