"""AdaptiveConv: a modulated convolution whose kernel latents choose among experts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynconv_torch.functional.adaptive import adaptive_conv, check_adaptation
from dynconv_torch.functional.checks import check_tensors
from dynconv_torch.functional.geometry import Geometry, PaddingLike, positive_int
from dynconv_torch.functional.numerics import at_least_float32
from dynconv_torch.functional.tracing import sizes_of
from dynconv_torch.gating import Temperature
from dynconv_torch.layers.convolution import check_rows
from dynconv_torch.layers.equalized_linear import EqualizedLinear
from dynconv_torch.layers.expert_conv import ExpertConvNd
from dynconv_torch.layers.style import (
    Styled,
    apply_wide,
    linear_attention,
    own_gain,
)
from dynconv_torch.scheduled import HoldsScheduled


class StyleAttention(HoldsScheduled):
    """The router of `AdaptiveConv2d`: a softmax over one linear layer of the latents.

        a = softmax(fc(latents) / T)              (B, K)    rows sum to 1

    All of it is computed in float32 at least, also under autocast.

    Attributes:
        fc: The `EqualizedLinear` from latents to logits.
        temperature: T, a scalar buffer; write it with `set_temperature`.

    Example:
        >>> attention = StyleAttention(16, 4)
        >>> attention(torch.ones(2, 16)).shape
        torch.Size([2, 4])
    """

    temperature: Tensor

    def __init__(
        self,
        style_channels: int,
        num_experts: int,
        *,
        temperature: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Builds the router; `AdaptiveConv2d` explains the arguments.

        Raises:
            ValueError: If the temperature is no positive number.
        """
        super().__init__()
        self.fc = EqualizedLinear(
            style_channels, num_experts, device=device, dtype=dtype
        )
        self.hold_scheduled(Temperature, temperature, self.fc.weight.device)

    def forward(self, latents: Tensor) -> Tensor:
        """Returns the attention (B, K) for latents (B, style_channels)."""
        return linear_attention(self, self.fc, latents)


class AdaptiveConvNd(Styled, ExpertConvNd):
    """What the adaptive convolutions of all ranks share."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: PaddingLike = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = False,
        num_experts: int = 4,
        temperature: float = 1.0,
        implementation: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        style_channels: int,
        demodulate: bool = True,
        gain: float | None = None,
    ):
        """Builds the layer.

        Args:
            in_channels: C, the number of input channels.
            out_channels: O, the number of output channels.
            kernel_size: An int, or one per spatial dimension.
            stride: An int, or one per spatial dimension.
            padding: `"same"` (with a stride of 1), `"valid"`, `"tf_same"` (for any
                stride, as TensorFlow pads), an int, or one int or (low, high) pair per
                spatial dimension.
            dilation: An int, or one per spatial dimension.
            groups: g; it must divide C and O.
            bias: Whether every expert has a bias, mixed as the kernels are and added
                after the demodulation.
            num_experts: K; with 1 there is no attention over experts.
            temperature: The initial T; see `set_temperature`.
            implementation: One of those of `dynconv_torch.dynamic_conv`, or `"fused"`,
                the reference, which modulates the kernel of each sample.
            device: Where the parameters are.
            dtype: The dtype of the parameters. Styles and attention are computed in
                float32 at least.
            style_channels: The number of features of the latents.
            demodulate: Whether the kernel of a sample is divided by its norm.
            gain: Multiplies the kernel after the demodulation. None is 1 where there is
                one and otherwise 1/√(C/g · taps).

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range or does not fit the others.
        """
        super().__init__()
        check_adaptation(implementation)
        self.build_experts(
            *(in_channels, out_channels, kernel_size, stride, padding, dilation),
            *(groups, bias, num_experts, "auto", device, dtype),
        )
        self.implementation = implementation
        self.style_channels = positive_int("style_channels", style_channels)
        self.demodulate = demodulate
        geometry = Geometry.create(
            in_channels,
            out_channels,
            self.kernel_size,
            rank=self.rank,
            groups=self.groups,
        )
        self.gain = own_gain(gain, geometry, demodulate=demodulate)
        options: dict[str, Any] = dict(device=device, dtype=dtype)
        self.affine = EqualizedLinear(
            style_channels, in_channels, initial_bias=1.0, **options
        )
        self.attention: StyleAttention | None = None
        if self.num_experts > 1:
            self.attention = StyleAttention(
                style_channels, self.num_experts, temperature=temperature, **options
            )

    def reset_parameters(self) -> None:
        """Draws the experts from N(0, 1) and zeroes their biases."""
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def routing(self, latents: Tensor) -> Tensor:
        """Returns the attention over the experts.

        Args:
            latents: Shape (B, style_channels), or (style_channels,).

        Returns:
            Shape (B, K), or (K,); rows sum to 1.

        Raises:
            ValueError: If the latents do not fit the layer.
        """
        check_tensors(latents=latents)
        size = "style_channels", self.style_channels
        check_rows("latents", latents, sizes_of(latents)[:-1], *size)
        if self.attention is None:
            ones = torch.ones_like(latents[..., :1])
            return ones.to(at_least_float32(latents.dtype))
        return self.attention(latents)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """Applies the layer.

        Args:
            x: Shape (B, C, *S), or (C, *S) for one sample without a batch.
            latents: Shape (B, style_channels), or (style_channels,).

        Returns:
            Shape (B, O, *S_out), or (O, *S_out).

        Raises:
            TypeError: If an argument is no tensor.
            ValueError: If the input or the latents do not fit the layer.
        """
        is_unbatched = self.is_unbatched(x)
        size = "style_channels", self.style_channels
        check_rows("latents", latents, self.batch_of(x), *size)
        if is_unbatched:
            return self.forward(x[None], latents[None])[0]
        attention = None if self.attention is None else self.attention(latents)
        styles = apply_wide(self.affine, latents)
        return self.convolve(x, attention, styles=styles)

    def apply_experts(
        self,
        x: Tensor,
        attention: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        *,
        styles: Tensor,
        **options: Any,
    ) -> Tensor:
        """Computes the layer, from the arguments of `adaptive_conv`."""
        return adaptive_conv(
            x,
            styles,
            attention,
            weight,
            bias,
            demodulate=self.demodulate,
            gain=self.gain,
            **options,
        )

    def extra_repr(self) -> str:
        """Returns the arguments of the layer, for its `repr`."""
        parts = [super().extra_repr(), f"style_channels={self.style_channels}"]
        if not self.demodulate:
            parts.append("demodulate=False")
        return ", ".join(parts)


class AdaptiveConv1d(AdaptiveConvNd):
    """A 1-D convolution with a mixture of experts that a style modulates.

    See `AdaptiveConv2d`.

    Example:
        >>> layer = AdaptiveConv1d(4, 8, 3, padding=1, style_channels=16)
        >>> layer(torch.ones(2, 4, 10), torch.ones(2, 16)).shape
        torch.Size([2, 8, 10])
    """

    rank = 1


class AdaptiveConv2d(AdaptiveConvNd):
    """A 2-D convolution with a mixture of experts that a style modulates.

        a = softmax(attention.fc(latents) / T)    (B, K)
        s = affine(latents)                       (B, C)
        d = 1 / √(Σ (s ⊙ Σ_k a_k W_k)² + 1e-8)    (B, O), over input channels and taps
        y = d ⊙ conv(s ⊙ x, Σ_k a_k W_k) + Σ_k a_k b_k

    That is `DynamicConv2d` with attention from outside and the modulation of
    `ModulatedConv2d`. Argument names are those of `torch.nn.Conv2d`. Kang et al.,
    "Scaling up GANs for Text-to-Image Synthesis" (GigaGAN), CVPR 2023, on
    sample-adaptive kernel selection.

    Attributes:
        weight: The experts, shape (K, O, C/g, *kernel_size).
        bias: Their biases, shape (K, O), or None.
        affine: The `EqualizedLinear` from latents to styles; its bias starts at 1.
        attention: The `StyleAttention`, or None where there is one expert.

    Example:
        >>> layer = AdaptiveConv2d(4, 8, 3, padding=1, style_channels=16)
        >>> images, latents = torch.ones(2, 4, 9, 7), torch.ones(2, 16)
        >>> layer(images, latents).shape
        torch.Size([2, 8, 9, 7])
        >>> layer.routing(latents).shape, layer.styles(latents).shape
        (torch.Size([2, 4]), torch.Size([2, 4]))
    """

    rank = 2


class AdaptiveConv3d(AdaptiveConvNd):
    """A 3-D convolution with a mixture of experts that a style modulates.

    See `AdaptiveConv2d`.

    Example:
        >>> layer = AdaptiveConv3d(4, 8, 1, stride=2, style_channels=16)
        >>> layer(torch.ones(2, 4, 4, 4, 4), torch.ones(2, 16)).shape
        torch.Size([2, 8, 2, 2, 2])
    """

    rank = 3
