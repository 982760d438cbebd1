"""ModulatedConv: the convolution of generators, steered by a style."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_choice, check_dtype, check_rate
from dynconv_torch.functional.geometry import Geometry, PaddingLike, positive_int
from dynconv_torch.functional.modulated import check_modulation, modulated_conv
from dynconv_torch.functional.numerics import at_least_float32
from dynconv_torch.initializers import INITS, Init
from dynconv_torch.layers.convolution import ConvolutionNd, check_rows
from dynconv_torch.layers.equalized_linear import EqualizedLinear
from dynconv_torch.layers.style import Styled, apply_wide, own_gain


class ModulatedConvNd(Styled, ConvolutionNd):
    """What the modulated convolutions of all ranks share."""

    magnitude_ema: Tensor

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
        implementation: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        style_channels: int,
        demodulate: bool = True,
        pre_normalize: bool = False,
        gain: float | None = None,
        magnitude_momentum: float | None = None,
        init: Init = "default",
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
            bias: Whether there is a bias; published layers have one.
            implementation: `"auto"`, `"scaled"` or `"fused"`, the reference with a
                kernel for each sample.
            device: Where the parameters are.
            dtype: The dtype of the parameters. Styles are computed in float32 at least.
            style_channels: The number of features of the latents.
            demodulate: Whether the kernel of a sample is divided by its norm. The layer
                that makes an image of features, 1×1, is published without.
            pre_normalize: Whether style and kernel are normalised first, as in
                StyleGAN3; see `dynconv_torch.modulated_conv`.
            gain: Multiplies the kernel after the demodulation. None is 1 where there is
                one and otherwise 1/√(C/g · taps), as published.
            magnitude_momentum: Divide the inputs by a running root mean square of
                theirs, as StyleGAN3 does, and keep that share of it in an update (0.999
                there). It is updated in training mode. None divides by nothing.
            init: `"default"` or `"published"`, which are the same here.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range or does not fit the others.
        """
        super().__init__()
        geometry = Geometry.create(
            in_channels,
            out_channels,
            kernel_size,
            rank=self.rank,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
        check_modulation(
            implementation, demodulate=demodulate, pre_normalize=pre_normalize
        )
        check_dtype(dtype)
        check_choice("init", init, INITS)
        self.take_geometry(geometry)
        self.style_channels = positive_int("style_channels", style_channels)
        self.demodulate = demodulate
        self.pre_normalize = pre_normalize
        self.gain = own_gain(gain, geometry, demodulate=demodulate)
        self.implementation = implementation
        self.magnitude_momentum = magnitude_momentum

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weight = parameter(*geometry.weight_shape)
        self.register_parameter("bias", parameter(out_channels) if bias else None)
        self.affine = EqualizedLinear(
            style_channels, in_channels, initial_bias=1.0, device=device, dtype=dtype
        )
        if magnitude_momentum is not None:
            check_rate("magnitude_momentum", magnitude_momentum)
            wide = at_least_float32(self.weight.dtype)
            ones = torch.ones((), device=device, dtype=wide)
            self.register_buffer("magnitude_ema", ones)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the kernel from N(0, 1) and zeroes the bias."""
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

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
        gain = self.gain
        if self.magnitude_momentum is not None:
            magnitude = self._magnitude(x, self.magnitude_momentum)
            gain = gain * torch.rsqrt(magnitude)
        return modulated_conv(
            x,
            apply_wide(self.affine, latents),
            self.weight,
            self.bias,
            demodulate=self.demodulate,
            pre_normalize=self.pre_normalize,
            gain=gain,
            **self.geometry_options,
            implementation=self.implementation,
        )

    def _magnitude(self, x: Tensor, share: float) -> Tensor:
        """Returns the running mean square of the inputs, in training updated first."""
        old = self.magnitude_ema
        if not self.training or x.numel() == 0:
            return old  # an empty batch has nothing to learn from
        with torch.no_grad():
            square = x.to(at_least_float32(old.dtype)).square().mean()
            new = share * old.to(square) + (1 - share) * square
            old.copy_(new)
        return new

    def extra_repr(self) -> str:
        """Returns the arguments of the layer, for its `repr`."""
        parts = [super().extra_repr(), f"style_channels={self.style_channels}"]
        if not self.demodulate:
            parts.append("demodulate=False")
        if self.pre_normalize:
            parts.append("pre_normalize=True")
        return ", ".join(parts)


class ModulatedConv1d(ModulatedConvNd):
    """A 1-D convolution whose kernel a style scales; see `ModulatedConv2d`.

    Example:
        >>> layer = ModulatedConv1d(4, 8, 3, padding=1, style_channels=16)
        >>> layer(torch.ones(2, 4, 10), torch.ones(2, 16)).shape
        torch.Size([2, 8, 10])
    """

    rank = 1


class ModulatedConv2d(ModulatedConvNd):
    """A 2-D convolution whose kernel a style scales, its output brought to size.

        s = affine(latents)                       (B, C)
        d = 1 / √(Σ (s ⊙ W)² + 1e-8)              (B, O), over input channels and taps
        y = d ⊙ conv(s ⊙ x, W) + b

    That is the convolution of each sample with the kernel d ⊙ s ⊙ W of its own, without
    one being made. Argument names are those of `torch.nn.Conv2d`. Noise and activation
    are the generator's, and so is the resampling by filters between resolutions; noise
    may be added after the bias, since sums commute. Karras et al., "Analyzing and
    Improving the Image Quality of StyleGAN", CVPR 2020, section 2.2; "Alias-Free
    Generative Adversarial Networks" (StyleGAN3), NeurIPS 2021.

    Attributes:
        weight: Shape (O, C/g, *kernel_size).
        bias: Shape (O,), or None.
        affine: The `EqualizedLinear` from latents to styles; its bias starts at 1.
        magnitude_ema: The running mean square of the inputs, a scalar buffer; there
            only with `magnitude_momentum`.

    Example:
        >>> layer = ModulatedConv2d(4, 8, 3, padding=1, style_channels=16)
        >>> layer(torch.ones(2, 4, 9, 7), torch.ones(2, 16)).shape
        torch.Size([2, 8, 9, 7])
    """

    rank = 2


class ModulatedConv3d(ModulatedConvNd):
    """A 3-D convolution whose kernel a style scales; see `ModulatedConv2d`.

    Example:
        >>> layer = ModulatedConv3d(4, 8, 1, stride=2, style_channels=16)
        >>> layer(torch.ones(2, 4, 4, 4, 4), torch.ones(2, 16)).shape
        torch.Size([2, 8, 2, 2, 2])
    """

    rank = 3
