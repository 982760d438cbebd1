"""Noise on the logits of a router, which has it try other experts in training."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LogitNoise(nn.Module):
    """Adds normal noise to logits in training, so that routers try other experts.

    Shazeer et al., "Outrageously Large Neural Networks", ICLR 2017, section 2.1, with a
    fixed standard deviation in place of a learned one. It is drawn from the generator
    of the device, as `torch.nn.Dropout` draws.

    Example:
        >>> noise = LogitNoise(0.1)
        >>> logits = torch.zeros(2, 4)
        >>> bool((noise(logits) != 0).all()), bool((noise.eval()(logits) == 0).all())
        (True, True)
    """

    def __init__(self, std: float):
        """Builds the noise.

        Raises:
            ValueError: If the standard deviation is negative or not finite.
        """
        super().__init__()
        if not 0 <= std < math.inf:
            raise ValueError(f"`noise_std` (={std}) must be finite and at least 0")
        self.std = std

    def forward(
        self, logits: Float[Tensor, "batch experts"]
    ) -> Float[Tensor, "batch experts"]:
        """Returns the logits, with noise in training."""
        if not self.std or not self.training:
            return logits
        return logits + self.std * torch.randn_like(logits)

    def extra_repr(self) -> str:
        """Returns the standard deviation, for its `repr`."""
        return f"std={self.std}"
