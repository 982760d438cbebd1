"""Stochastic depth: in training, samples skip the branch of a residual block."""

from torch import Tensor, nn


class DropPath(nn.Dropout):
    """Drops whole samples of a block's branch in training, and scales up the others.

    Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Returns the branch (B, C, H, W), some samples of it replaced by zeros."""
        if not self.training or not self.p:
            return input
        return input * super().forward(input.new_ones(input.shape[0], 1, 1, 1))
