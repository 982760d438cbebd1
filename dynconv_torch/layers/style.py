"""What layers share that latents steer: styles, and the gain of what they scale."""

import math
from collections.abc import Sequence
from numbers import Real

from torch import Tensor, nn

from dynconv_torch.functional.checks import check_tensors
from dynconv_torch.functional.geometry import Geometry
from dynconv_torch.functional.numerics import (
    at_least_float32,
    call_wide,
    without_autocast,
)
from dynconv_torch.functional.tracing import sizes_of


def check_latents(latents: Tensor, batch: Sequence[int], style_channels: int) -> None:
    """Raises an error unless there are latents for every sample of a batch."""
    check_tensors(latents=latents)
    expected = (*batch, style_channels)
    if sizes_of(latents) != expected:
        raise ValueError(
            f"`latents` (shape {sizes_of(latents)}) must be (batch, style_channels), "
            f"without batch for one sample: {expected}"
        )


def apply_wide(linear: nn.Module, latents: Tensor) -> Tensor:
    """Applies a linear layer to latents in float32 at least, also under autocast."""
    with without_autocast(latents.device):
        dtypes = (each.dtype for each in linear.parameters())
        wide = at_least_float32(latents.dtype, *dtypes)
        return call_wide(linear, latents.to(wide))


def own_gain(gain: float | None, geometry: Geometry, *, demodulate: bool) -> float:
    """Returns the gain of a layer; None is what published layers have.

    Raises:
        ValueError: If it is no finite number.
    """
    if gain is None:
        width = geometry.in_channels // geometry.groups
        taps = math.prod(geometry.kernel_size)
        return 1.0 if demodulate else (width * taps) ** -0.5
    if not isinstance(gain, Real) or not math.isfinite(gain):
        raise ValueError(f"`gain` (={gain!r}) must be a finite number, or None")
    return float(gain)


class Styled(nn.Module):
    """What a style scales, as an affine map of latents gives it."""

    style_channels: int
    affine: nn.Module

    def styles(self, latents: Tensor) -> Tensor:
        """Returns the factors of the input channels.

        Args:
            latents: Shape (B, style_channels), or (style_channels,).

        Returns:
            Shape (B, C), or (C,), in float32 at least.

        Raises:
            ValueError: If the latents do not fit the layer.
        """
        check_tensors(latents=latents)
        check_latents(latents, sizes_of(latents)[:-1], self.style_channels)
        return apply_wide(self.affine, latents)
