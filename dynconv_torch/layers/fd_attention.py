"""What steers an `FDConv2d`: attention of bands, gates of weights, gates of pixels."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_choice
from dynconv_torch.functional.frequency_bands import LOW_PASSES, modulate_bands
from dynconv_torch.functional.geometry import Geometry
from dynconv_torch.functional.numerics import (
    at_least_float32,
    call_wide,
    without_autocast,
)
from dynconv_torch.gating import Temperature, record_output
from dynconv_torch.layers.od_conv import Attentions, ODAttention

# The deviation of weights with which a layer begins as a static one.
TINY = 1e-6


def twice_sigmoid(logits: Tensor) -> Tensor:
    """Returns factors around 1, from 0 to 2.

    Example:
        >>> float(twice_sigmoid(torch.zeros(())))
        1.0
    """
    return 2 * torch.sigmoid(logits)


class StarReLU(nn.Module):
    """The activation s · relu(x)² + b with a scale and a shift that are learnt.

    Example:
        >>> StarReLU()(torch.tensor([-1.0, 3.0])).tolist()
        [0.0, 9.0]
    """

    def __init__(self, **options: Any):
        """Builds the activation, which begins as the square of a ReLU.

        Args:
            **options: `device` and `dtype`.
        """
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, **options))
        self.bias = nn.Parameter(torch.zeros(1, **options))

    def forward(self, x: Tensor) -> Tensor:
        """Applies the activation."""
        return self.scale * F.relu(x).square() + self.bias


class FDAttention(ODAttention):
    """The router of `FDConv2d`: that of an `ODConv2d`, with other gates.

        h = star_relu(norm(fc · pooled))     (B, A)    A = max(C // r, min_hidden)
        channel, filter, spatial = 2 sigmoid((head · h + b) / T)
        kernel = 2 sigmoid((head · h + b) / T_k) / K

    Attributes:
        relu: The `StarReLU`.
        kernel_temperature: T_k, a number, or None, with which it is T.

    Example:
        >>> attention = FDAttention(32, 24, (3, 3), num_experts=8)
        >>> attention(torch.ones(2, 32)).kernel.shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        *,
        init: str = "default",
        kernel_temperature: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ):
        """Builds the router; `FDConv2d` explains the arguments.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range.
        """
        self.init = init
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            device=device,
            dtype=dtype,
            **options,
        )
        self.kernel_temperature = kernel_temperature
        self.relu = StarReLU(device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draws the trunk Kaiming-normal by fan-out, and the heads close to 0."""
        super().reset_parameters()
        heads = [self.channel_fc, self.spatial_fc, self.kernel_fc]
        if self.init == "default":
            heads.append(self.filter_fc)
        for head in heads:
            if head is not None:
                nn.init.normal_(head.get_parameter("weight"), std=TINY)

    def forward(self, pooled: Tensor) -> Attentions:
        """Returns the attentions for pooled inputs (B, C).

        Raises:
            ValueError: In training with `norm="batch"`, if there is one sample.
        """
        with without_autocast(pooled.device):
            return self._of_pooled(pooled)

    def _activate(self, hidden: Tensor) -> Tensor:
        return call_wide(self.relu, hidden)

    def _gates(self, logits: Tensor) -> Tensor:
        return twice_sigmoid(logits / self.temperature.to(logits))

    def _mixture(self, logits: Tensor) -> Tensor:
        if self.kernel_temperature is None:
            gates = self._gates(logits)
        else:
            gates = twice_sigmoid(logits / self.kernel_temperature)
        attention = gates / logits.shape[-1]
        record_output(self, attention)
        return attention


def check_kernel_temperature(value: float | None) -> None:
    """Refuses what no temperature of bands can be; None is that of the other gates.

    Raises:
        ValueError: If it is no number, or out of range.

    Example:
        >>> check_kernel_temperature(0.5)
    """
    reason = None if value is None else Temperature.refusal(value)
    if reason is not None:
        raise ValueError(f"`kernel_temperature` (={value!r}) {reason}")


class LocalAttention(nn.Module):
    """The gates of single weights, from pooled channels and those next to them.

        gates = 2 sigmoid(conv(norm(pooled)))       (B, O, C/g, *k)

    The convolution goes along the channels, from 1 to O · taps features, so that it
    has few parameters; a channel's features are the logits of its weights.

    Attributes:
        conv: The convolution, of about log2(C) / 2 taps, without bias.
        norm: The layer norm over the channels.

    Example:
        >>> attention = LocalAttention(Geometry.create(32, 24, 3, rank=2))
        >>> attention(torch.ones(2, 32)).shape, attention.conv.weight.shape
        (torch.Size([2, 24, 32, 3, 3]), torch.Size([216, 1, 3]))
    """

    def __init__(self, geometry: Geometry, **options: Any):
        """Builds the router for the kernels of a convolution.

        Args:
            geometry: The convolution.
            **options: `device` and `dtype`.
        """
        super().__init__()
        self.geometry = geometry
        taps = round(math.log2(geometry.in_channels) / 2 + 0.5) // 2 * 2 + 1
        features = geometry.out_channels * math.prod(geometry.kernel_size)
        self.conv = nn.Conv1d(
            1, features, taps, padding=taps // 2, bias=False, **options
        )
        self.norm = nn.LayerNorm(geometry.in_channels, **options)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fills the convolution with 1e-6."""
        nn.init.constant_(self.conv.weight, TINY)

    def forward(self, pooled: Tensor) -> Tensor:
        """Returns the gates (B, O, C/g, *k) for pooled inputs (B, C)."""
        size, groups = self.geometry.kernel_size, self.geometry.groups
        outputs = self.geometry.out_channels // groups
        with without_autocast(pooled.device):
            normed = call_wide(self.norm, pooled)
            logits = call_wide(self.conv, normed[:, None])  # (B, O·taps, C)
            split = logits.unflatten(1, (groups, outputs, *size))
            split = split.unflatten(-1, (groups, -1))
            # A group's filters see its own channels only.
            own = split.diagonal(dim1=1, dim2=-2)  # (B, O/g, *k, C/g, g)
            own = own.movedim(-1, 1).movedim(-1, 3)
            return twice_sigmoid(own.flatten(1, 2))


class BandModulation(nn.Module):
    """Gates of the spatial frequencies of an image, one for each band and pixel.

    The gates are 2 sigmoid of a 3×3 convolution to a single channel; `modulate_bands`
    says what they weigh.

    Attributes:
        freq_weight_conv_list: The convolution of each band, from the highest to the
            lowest.

    Example:
        >>> BandModulation(4)(torch.ones(2, 4, 9, 7)).shape
        torch.Size([2, 4, 9, 7])
    """

    reductions: Sequence[int] = (2, 4, 8)

    def __init__(self, in_channels: int, *, low_pass: str = "ideal", **options: Any):
        """Builds the modulation.

        Args:
            in_channels: C.
            low_pass: One of `LOW_PASSES`.
            **options: `device` and `dtype`.

        Raises:
            ValueError: If `low_pass` is none of these.
        """
        super().__init__()
        check_choice("low_pass", low_pass, LOW_PASSES)
        self.low_pass = low_pass
        self.freq_weight_conv_list = nn.ModuleList(
            nn.Conv2d(in_channels, 1, 3, padding=1, **options) for _ in self.reductions
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the convolutions close to 0; their biases become 0."""
        for conv in self.freq_weight_conv_list:
            nn.init.normal_(conv.get_parameter("weight"), std=TINY)
            nn.init.zeros_(conv.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the images (B, C, H, W) with their bands weighed, in float32."""
        logits = torch.cat([conv(x) for conv in self.freq_weight_conv_list], dim=1)
        with without_autocast(x.device):
            gates = twice_sigmoid(logits.to(at_least_float32(logits.dtype)))
            return modulate_bands(x, gates, self.reductions, self.low_pass)
