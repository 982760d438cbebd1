"""A linear layer whose kernel is scaled when it is applied, not when it is drawn."""

import jax
from flax import nnx

from dynconv_jax.initializers import promote_to_widest


class EqualizedLinear(nnx.Linear):
    """A linear layer with an equalised learning rate.

    The kernel is drawn from N(0, 1), and divided by √in_features in every call, so that
    optimisers that normalise gradients move all layers alike. Karras et al.,
    "Progressive Growing of GANs", ICLR 2018, section 4.1.

    Example:
        >>> layer = EqualizedLinear(4, 8, rngs=nnx.Rngs(0))
        >>> layer(jax.numpy.ones((2, 4))).shape
        (2, 8)
    """

    def __init__(self, in_features: int, out_features: int, **options):
        """Builds the layer; the options are those of `nnx.Linear`."""
        super().__init__(
            in_features,
            out_features,
            kernel_init=nnx.initializers.normal(1.0),
            promote_dtype=promote_to_widest,
            **options,
        )

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: jax.Array
    ) -> jax.Array:
        """Applies the layer to inputs (..., in_features)."""
        return super().__call__(inputs * self.in_features**-0.5)
