"""What layers share that latents steer: styles, and the gain of what they scale."""

import math
from numbers import Real
from typing import Any

from torch import Tensor, nn

from dynconv_torch.functional.checks import check_tensors
from dynconv_torch.functional.geometry import Geometry
from dynconv_torch.functional.numerics import (
    at_least_float32,
    call_wide,
    without_autocast,
)
from dynconv_torch.functional.tracing import sizes_of
from dynconv_torch.gating import attend, record_softmax
from dynconv_torch.layers.convolution import check_rows


def apply_wide(linear: nn.Module, latents: Tensor) -> Tensor:
    """Applies a linear layer to latents in float32 at least, also under autocast."""
    with without_autocast(latents.device):
        dtypes = (each.dtype for each in linear.parameters())
        wide = at_least_float32(latents.dtype, *dtypes)
        return call_wide(linear, latents.to(wide))


def linear_attention(router: Any, linear: nn.Module, latents: Tensor) -> Tensor:
    """Returns softmax(linear(latents) / T), computed in float32 at least.

    Args:
        router: The module that has the `temperature`, by which the answer is recorded.
        linear: The layer from latents to logits.
        latents: Shape (B, style_channels).
    """
    logits = apply_wide(linear, latents)
    attention = attend(logits, router.temperature)
    record_softmax(router, attention, logits, router.temperature)
    return attention


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
        size = "style_channels", self.style_channels
        check_rows("latents", latents, sizes_of(latents)[:-1], *size)
        return apply_wide(self.affine, latents)
