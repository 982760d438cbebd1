"""Stochastic depth: in training, samples skip the branch of a residual block."""

from flax import nnx


class DropPath(nnx.Dropout):
    """Drops whole samples of a block's branch in training, and scales up the others.

    Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.
    """

    def __init__(self, rate: float, rngs: nnx.Rngs):
        """Builds the layer; with a rate of 0 it carries no random state."""
        super().__init__(rate, broadcast_dims=(1, 2, 3), rngs=rngs if rate else None)
