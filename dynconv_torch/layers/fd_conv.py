"""FDConv: kernels made of bands of their spectrum, and every weight with a gate."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from dynconv_torch.functional.checks import check_choice, check_dtype
from dynconv_torch.functional.choice import check_implementation
from dynconv_torch.functional.dynamic import dynamic_conv
from dynconv_torch.functional.frequency_bands import LOW_PASSES
from dynconv_torch.functional.geometry import (
    Geometry,
    PaddingLike,
    expert_count,
    positive_int,
)
from dynconv_torch.functional.numerics import (
    at_least_float32,
    check_same_dtype,
    dtypes_of,
    is_autocast,
    scale_channels,
    without_autocast,
)
from dynconv_torch.functional.per_sample import add_bias, per_sample_conv
from dynconv_torch.functional.pooling import spatial_mean
from dynconv_torch.functional.spectrum import (
    band_of_frequency,
    mix_bands,
    spectrum_shape,
    to_spectrum,
)
from dynconv_torch.initializers import INITS
from dynconv_torch.layers.convolution import ConvolutionNd
from dynconv_torch.layers.fd_attention import (
    BandModulation,
    FDAttention,
    LocalAttention,
    check_kernel_temperature,
)
from dynconv_torch.layers.od_conv import Attentions


class FDConv2d(ConvolutionNd):
    """A convolution whose kernel is mixed from the bands of a spectrum.

        W_i = local ⊙ spatial ⊙ irfft2(Σ_g kernel_g · α band_g)
        y_i = filter ⊙ conv(channel ⊙ modulation(x_i), W_i) + b

    The parameter is the Fourier transform of the kernel as one matrix, in K disjoint
    bands: there are K experts in the parameters of one. `FBM` weighs the spatial
    frequencies of the input, if the kernel is 3×3. Takes the place of
    `torch.nn.Conv2d`, with its argument names. As published, it is a plain convolution
    where there are few channels, or the kernel is neither 1×1 nor 3×3. Chen et al.,
    "Frequency Dynamic Convolution for Dense Image Prediction", CVPR 2025, section 3.

    Attributes:
        dft_weight: Shape (spectra, O·k, C/g·k // 2 + 1, 2), real and imaginary parts;
            None in a plain convolution.
        weight: Shape (O, C/g, *kernel_size), of a plain convolution; else None.
        bias: Shape (O,), or None.
        KSM_Global: The `FDAttention`; `attentions` calls it. Not in a plain one.
        KSM_Local: The `LocalAttention`; not in a plain convolution.
        FBM: The `BandModulation`; only where the kernel is 3×3.

    Example:
        >>> layer = FDConv2d(32, 24, 3, stride=2, padding=1)
        >>> images = torch.ones(2, 32, 9, 7)
        >>> layer(images).shape, layer.routing(images).shape
        (torch.Size([2, 24, 5, 4]), torch.Size([2, 64]))
        >>> FDConv2d(3, 24, 3).weight.shape  # plain
        torch.Size([24, 3, 3, 3])
    """

    rank = 2
    bands: Tensor
    weight: nn.Parameter | None
    dft_weight: nn.Parameter | None

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
        num_experts: int = 64,
        reduction: int = 16,
        temperature: float = 1.0,
        implementation: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_spectra: int = 1,
        min_hidden: int = 16,
        min_channels: int = 17,
        norm: str = "batch",
        kernel_temperature: float | None = None,
        low_pass: str = "ideal",
        init: str = "default",
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
            bias: Whether there is a bias, the same for all samples.
            num_experts: K, the number of bands.
            reduction: The attention has max(C // reduction, min_hidden) hidden units.
            temperature: The initial T; see `set_temperature`.
            implementation: How each sample is convolved with its kernel: `"auto"`,
                `"loop"`, `"grouped"` or `"patches"`; see `per_sample_conv`.
            device: Where the parameters are.
            dtype: The dtype of the parameters. Kernels and attention are computed in
                float32 at least.
            num_spectra: How many spectra there are, each with K bands of its own.
            min_hidden: How many hidden units there are at least.
            min_channels: With fewer channels, in or out, it is a plain convolution.
            norm: How the hidden units are normalised: `"batch"` as published, which
                needs more than one sample in training, `"layer"` or `"none"`.
            kernel_temperature: T_k, of the bands alone, which no schedule moves; None
                takes T.
            low_pass: What cuts images into bands: `"ideal"`, at the size of the image,
                or as the authors' code: `"stretched"`, its latest form, or
                `"one_sided"`, its first.
            init: `"default"` begins as the static convolution that was drawn, but for
                1e-6; `"published"` draws as the authors' code: the filters' gates
                Kaiming-normal, each of several spectra as large as one alone, and the
                bias as PyTorch's.

        Raises:
            TypeError: If an argument is of the wrong kind.
            ValueError: If a value is out of range or does not fit the others.
        """
        super().__init__()
        geometry = Geometry.create(
            in_channels,
            out_channels,
            kernel_size,
            rank=2,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
        check_choice("init", init, INITS)
        check_choice("low_pass", low_pass, LOW_PASSES)
        check_implementation(implementation, has_experts=False)
        check_dtype(dtype)
        check_kernel_temperature(kernel_temperature)
        self.take_geometry(geometry)
        self.weight_shape = geometry.weight_shape
        self.num_experts = expert_count(num_experts)
        self.num_spectra = positive_int("num_spectra", num_spectra)
        self.implementation = implementation
        self.init = init
        channels = min(in_channels, out_channels)
        self.is_plain = channels < positive_int("min_channels", min_channels)
        self.is_plain |= geometry.kernel_size not in ((1, 1), (3, 3))
        # As published: what the spectrum is divided by, and α makes up for.
        self.scale = max(channels // 2, 1)
        options: dict[str, Any] = dict(device=device, dtype=dtype)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, **options))

        weight = spectra = None
        if self.is_plain:
            weight = parameter(*self.weight_shape)
        else:
            spectra = parameter(self.num_spectra, *spectrum_shape(self.weight_shape))
        self.register_parameter("weight", weight)
        self.register_parameter("dft_weight", spectra)
        self.register_parameter("bias", parameter(out_channels) if bias else None)
        if not self.is_plain:
            outputs, inputs, height, width = self.weight_shape
            # No buffer: it is known from the sizes, also after `to_empty`.
            self.bands = torch.from_numpy(
                band_of_frequency(outputs * height, inputs * width, self.num_experts)
            )
            self.KSM_Global = FDAttention(
                self.in_channels,
                self.out_channels,
                self.kernel_size,
                groups=self.groups,
                num_experts=self.num_experts * self.num_spectra,
                reduction=reduction,
                min_hidden=min_hidden,
                norm=norm,
                temperature=temperature,
                kernel_temperature=kernel_temperature,
                init=init,
                **options,
            )
            self.KSM_Local = LocalAttention(geometry, **options)
            if geometry.kernel_size == (3, 3):
                self.FBM = BandModulation(
                    self.in_channels, low_pass=low_pass, **options
                )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the kernel as `torch.nn.Conv2d` does; the bias becomes 0, as a rule."""
        own = self.weight if self.dft_weight is None else self.dft_weight
        assert own is not None
        kernel = own.new_empty(self.weight_shape)
        nn.init.kaiming_uniform_(kernel, a=5**0.5)
        share = 1 if self.init == "published" else self.num_spectra
        if not own.is_meta:
            self._write(kernel, share)
        if self.bias is not None and self.init == "published":
            bound = kernel[0].numel() ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)
        elif self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def _write(self, kernel: Tensor, share: int) -> None:
        """Makes a kernel, or a share of it in each spectrum, that of the layer."""
        if self.dft_weight is None:
            assert self.weight is not None
            self.weight.copy_(kernel)
            return
        wide = kernel.to(at_least_float32(kernel.dtype))
        self.dft_weight.copy_(to_spectrum(wide) / (self.scale * share))

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options: Any) -> Self:
        """Returns a layer that computes what a trained static convolution does.

        Heads of attention become 0, so that all gates are 1, whatever the input, and
        the first step of training moves them. What PyTorch pads otherwise than with
        zeros is refused.

        Args:
            conv: The trained convolution; it is not changed.
            **options: Those of the layer that a convolution has not.

        Raises:
            TypeError: If it is no `nn.Conv2d`.
            ValueError: If the convolution pads otherwise than with zeros.

        Example:
            >>> conv = nn.Conv2d(32, 24, 3, padding=1)
            >>> layer, images = FDConv2d.from_conv(conv), torch.randn(2, 32, 9, 7)
            >>> bool(torch.allclose(layer(images), conv(images), atol=1e-4))
            True
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(
                f"`conv` (a {type(conv).__name__}) must be an nn.Conv2d, whose kernel "
                "is taken over"
            )
        if conv.padding_mode != "zeros":
            raise ValueError(
                f"`conv` pads by {conv.padding_mode!r}, and an FDConv2d with zeros; "
                "pad before the layer, and give it no padding"
            )
        padding: Any = conv.padding
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            **{"device": conv.weight.device, "dtype": conv.weight.dtype, **options},
        )
        layer._write(conv.weight, layer.num_spectra)
        with torch.no_grad():
            if conv.bias is not None and layer.bias is not None:
                layer.bias.copy_(conv.bias)
            for name, parameter in layer.named_parameters():
                if (
                    "_fc." in name
                    or "_conv_list." in name
                    or name.endswith("Local.conv.weight")
                ):
                    parameter.zero_()
        return layer.train(conv.training)

    def attentions(self, x: Tensor) -> Attentions:
        """Returns the four attentions of the whole kernel.

        Args:
            x: Shape (B, C, H, W), or (C, H, W).

        Returns:
            Each of shape (B, ...), or without B, or None where it is absent.

        Raises:
            ValueError: If the input does not fit the layer, or it is a plain one.
        """
        is_unbatched = self.is_unbatched(x)
        if self.is_plain:
            raise ValueError(
                "the layer is a plain convolution, without attention: it has fewer "
                "channels than `min_channels`, or a kernel that is not 1×1 or 3×3"
            )
        if not is_unbatched:
            return self.KSM_Global(self._pool(x))
        return self.KSM_Global(self._pool(x[None])).of_one()

    def routing(self, x: Tensor) -> Tensor:
        """Returns the attention over the bands alone.

        Args:
            x: Shape (B, C, H, W), or (C, H, W).

        Returns:
            Shape (B, K) or (K,), and K for each further spectrum; about 1 / K each.

        Raises:
            ValueError: If the input does not fit the layer, or it is a plain one.
        """
        channel, *_, kernel = self.attentions(x)
        return torch.ones_like(channel[..., :1]) if kernel is None else kernel

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer.

        Args:
            x: Shape (B, C, H, W), or (C, H, W) for one sample without a batch.

        Returns:
            Shape (B, O, H_out, W_out), or (O, H_out, W_out).

        Raises:
            ValueError: If the input does not fit the layer, or if in training there is
                one sample and `norm="batch"`.
        """
        if self.is_unbatched(x):
            return self.forward(x[None])[0]
        geometry = self.geometry_options
        if self.weight is not None:
            output = dynamic_conv(x, None, self.weight[None], **geometry)
        else:
            # Kernels are made in a dtype of their own, and cast: nobody else sees it.
            assert self.dft_weight is not None  # as it has no kernel
            check_same_dtype("x", x, "dft_weight", self.dft_weight.dtype)
            pooled = self._pool(x)
            attentions = self.KSM_Global(pooled)
            kernels = self._kernels(attentions, self.KSM_Local(pooled))
            modulated = self.FBM(x) if hasattr(self, "FBM") else x
            # The two act on activations, as in an `ODConv2d`.
            scaled = scale_channels(modulated, attentions.channel).to(x.dtype)
            if not is_autocast(x.device):
                kernels = kernels.to(x.dtype)
            output = per_sample_conv(
                scaled, kernels, implementation=self.implementation, **geometry
            )
            if attentions.filter is not None:
                output = scale_channels(output, attentions.filter)
        return add_bias(output, None if self.bias is None else self.bias[None])

    def _pool(self, x: Tensor) -> Tensor:
        with without_autocast(x.device):
            return spatial_mean(x, *dtypes_of(self))

    def _kernels(self, attentions: Attentions, local: Tensor) -> Tensor:
        """Returns the kernel of each sample, without the factors of channels."""
        assert self.dft_weight is not None
        spectra = self.dft_weight.to(at_least_float32(self.dft_weight.dtype))
        weights = attentions.kernel
        if weights is None:
            weights = torch.ones_like(attentions.channel[:, :1])
        alpha = self.scale * self.num_experts * self.num_spectra
        with without_autocast(spectra.device):
            kernels = mix_bands(
                weights,
                spectra * alpha,
                self.bands.to(spectra.device),
                self.num_experts,
                self.weight_shape,
            )
            if attentions.spatial is not None:
                kernels = kernels * attentions.spatial[:, None, None].to(kernels.dtype)
            return kernels * local.to(kernels.dtype)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        own = self.dft_weight
        if own is not None and not own.is_meta:
            self.bands = self.bands.to(own.device)
        return self

    def extra_repr(self) -> str:
        """Returns the arguments of the layer, for its `repr`."""
        parts = [super().extra_repr()]
        if not self.is_plain:
            parts.append(f"num_experts={self.num_experts}")
        if self.num_spectra != 1:
            parts.append(f"num_spectra={self.num_spectra}")
        return ", ".join(parts)
