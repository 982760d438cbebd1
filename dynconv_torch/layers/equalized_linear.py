"""A linear layer whose weight is scaled when it is applied, not when it is drawn."""

from torch import Tensor, nn


class EqualizedLinear(nn.Linear):
    """A linear layer with an equalised learning rate.

    The weight is drawn from N(0, 1), and divided by √in_features in every call, so that
    optimisers that normalise gradients move all layers alike. Karras et al.,
    "Progressive Growing of GANs", ICLR 2018, section 4.1.

    Attributes:
        initial_bias: What the bias starts at.

    Example:
        >>> import torch
        >>> EqualizedLinear(4, 8)(torch.ones(2, 4)).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        initial_bias: float = 0.0,
        **options,
    ):
        """Builds the layer; further options are those of `torch.nn.Linear`."""
        self.initial_bias = initial_bias
        super().__init__(in_features, out_features, **options)

    def reset_parameters(self) -> None:
        """Draws the weight from N(0, 1) and fills the bias."""
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.constant_(self.bias, self.initial_bias)

    def forward(self, input: Tensor) -> Tensor:
        """Applies the layer to an input (..., in_features)."""
        return super().forward(input * self.in_features**-0.5)
