"""A linear layer of pooled features, under the names of a 1×1 convolution."""

from flax import nnx

from dynconv_jax.initializers import promote_to_widest


class PooledLinear(nnx.Linear):
    """A linear layer that PyTorch's checkpoints hold as a 1×1 convolution.

    Of pooled features (B, C) the two are the same. The kernel is that of `nnx.Linear`;
    its weight in a state dict has an axis of size 1 for each spatial dimension.

    Example:
        >>> from dynconv_jax import to_torch_state_dict
        >>> layer = PooledLinear(4, 8, rank=2, rngs=nnx.Rngs(0))
        >>> layer.kernel.shape, to_torch_state_dict(layer)["weight"].shape
        ((4, 8), (8, 4, 1, 1))
    """

    def __init__(self, in_features: int, out_features: int, *, rank: int, **options):
        """Builds the layer.

        Args:
            in_features: The number of input features.
            out_features: The number of output features.
            rank: The number of spatial dimensions of the convolution.
            **options: Passed on to `nnx.Linear`.
        """
        super().__init__(
            in_features, out_features, promote_dtype=promote_to_widest, **options
        )
        self.rank = rank
