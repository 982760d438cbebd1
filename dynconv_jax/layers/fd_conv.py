"""FDConv: kernels made of bands of their spectrum, and every weight with a gate."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Initializer
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.checks import check_rngs
from dynconv_jax.functional.checks import check_choice, check_dtypes
from dynconv_jax.functional.choice import check_implementation
from dynconv_jax.functional.dynamic import dynamic_conv
from dynconv_jax.functional.frequency_bands import LOW_PASSES
from dynconv_jax.functional.geometry import (
    Geometry,
    PaddingLike,
    expert_count,
    positive_int,
)
from dynconv_jax.functional.numerics import (
    at_least_float32,
    keep_wide,
    scale_channels,
)
from dynconv_jax.functional.per_sample import add_bias, per_sample_conv
from dynconv_jax.functional.pooling import spatial_mean
from dynconv_jax.functional.spectrum import mix_bands, to_spectrum
from dynconv_jax.initializers import INITS, torch_bias_init, torch_kernel_init
from dynconv_jax.layers.convolution import Convolution
from dynconv_jax.layers.fd_attention import (
    BandModulation,
    FDAttention,
    LocalAttention,
    check_kernel_temperature,
)
from dynconv_jax.layers.od_conv import Attentions

default_bias_init = nnx.initializers.zeros_init()


class FDConv(Convolution):
    """A convolution whose kernel is mixed from the bands of a spectrum.

        W_i = local ⊙ spatial ⊙ irfft2(Σ_g kernel_g · α band_g)
        y_i = filter ⊙ conv(channel ⊙ modulation(x_i), W_i) + b

    The parameter is the Fourier transform of the kernel as one matrix, in K disjoint
    bands: there are K experts in the parameters of one. `modulation` weighs the spatial
    frequencies of the input, if the kernel is 3×3. Takes the place of `nnx.Conv`, with
    its argument names, for 2 spatial dimensions. As published, it is a plain
    convolution where there are few channels, or the kernel is neither 1×1 nor 3×3. Chen
    et al., "Frequency Dynamic Convolution for Dense Image Prediction", CVPR 2025,
    section 3.

    Attributes:
        spectrum: Shape (spectra, O·k, C/g·k // 2 + 1, 2), real and imaginary parts;
            None in a plain convolution.
        kernel: Shape (*kernel_size, C/g, O), of a plain convolution; else None.
        bias: Shape (O,), or None.
        attention: The `FDAttention`; `attentions` calls it. None in a plain one.
        local: The `LocalAttention`; None in a plain convolution.
        modulation: The `BandModulation`; None where the kernel is not 3×3.

    Example:
        >>> layer = FDConv(32, 24, (3, 3), 2, padding=1, rngs=nnx.Rngs(0))
        >>> images = jnp.ones((2, 9, 7, 32))
        >>> layer(images).shape, layer.routing(images).shape
        ((2, 5, 4, 24), (2, 64))
        >>> FDConv(3, 24, (3, 3), rngs=nnx.Rngs(0)).kernel.shape  # plain
        (3, 3, 3, 24)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        padding: PaddingLike = "SAME",
        kernel_dilation: int | Sequence[int] | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = False,
        num_experts: int = 64,
        num_spectra: int = 1,
        reduction: int = 16,
        min_hidden: int = 16,
        min_channels: int = 17,
        norm: str = "batch",
        temperature: float = 1.0,
        kernel_temperature: float | None = None,
        low_pass: str = "ideal",
        init: str = "default",
        implementation: str = "auto",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: Initializer = torch_kernel_init,
        bias_init: Initializer = default_bias_init,
        rngs: nnx.Rngs,
    ):
        """Builds the layer.

        Args:
            in_features: C, the number of input channels.
            out_features: O, the number of output channels.
            kernel_size: A tuple of 2 ints.
            strides: An int, or one per spatial dimension.
            padding: `"SAME"`, `"VALID"`, an int, or one int or (low, high) pair per
                spatial dimension.
            kernel_dilation: An int, or one per spatial dimension.
            feature_group_count: g; it must divide C and O.
            use_bias: Whether there is a bias, the same for all samples.
            num_experts: K, the number of bands.
            num_spectra: How many spectra there are, each with K bands of its own.
            reduction: The attention has max(C // reduction, min_hidden) hidden units.
            min_hidden: How many hidden units there are at least.
            min_channels: With fewer channels, in or out, it is a plain convolution.
            norm: How the hidden units are normalised: `"batch"` as published, which
                needs more than one sample in training, `"layer"` or `"none"`.
            temperature: The initial T; see `set_temperature`.
            kernel_temperature: T_k, of the bands alone, which no schedule moves; None
                takes T.
            low_pass: What cuts images into bands: `"ideal"`, at the size of the image,
                or as the authors' code: `"stretched"`, its latest form, or
                `"one_sided"`, its first.
            init: `"default"` begins as the static convolution that was drawn, but for
                1e-6; `"published"` draws as the authors' code: the filters' gates
                Kaiming-normal, each of several spectra as large as one alone, and the
                bias as PyTorch's.
            implementation: How each sample is convolved with its kernel: `"auto"`,
                `"patches"` and so on; see `per_sample_conv`.
            dtype: The dtype of the computation; None infers it. Kernels and attention
                are computed in float32 at least.
            param_dtype: The dtype of the parameters.
            precision: As in `jax.lax.conv_general_dilated`.
            kernel_init: Initialises the kernel whose spectrum it begins with, by
                default as `torch.nn.Conv2d` does.
            bias_init: Initialises the bias.
            rngs: Where the initial parameters come from.

        Raises:
            TypeError: If an argument is of the wrong kind, such as a bare int as
                `kernel_size`.
            ValueError: If a value is out of range or does not fit the others.
        """
        geometry = Geometry.create(
            in_features,
            out_features,
            kernel_size,
            strides=strides,
            padding=padding,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
        )
        if geometry.rank != 2:
            raise ValueError(
                f"`kernel_size` (={geometry.kernel_size}) must be a tuple of 2 ints"
            )
        check_choice("init", init, INITS)
        check_choice("low_pass", low_pass, LOW_PASSES)
        check_implementation(implementation, geometry, has_experts=False)
        check_dtypes(dtype=dtype, param_dtype=param_dtype, optional=("dtype",))
        check_rngs(rngs)
        check_kernel_temperature(kernel_temperature)
        self._take_geometry(geometry)
        self.use_bias = use_bias
        self.num_experts = expert_count(num_experts)
        self.num_spectra = positive_int("num_spectra", num_spectra)
        self.implementation = implementation
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        channels = min(in_features, out_features)
        side = geometry.kernel_size[0]
        is_plain = channels < positive_int("min_channels", min_channels)
        is_plain |= geometry.kernel_size not in ((1, 1), (3, 3))
        # As published: what the spectrum is divided by, and α makes up for.
        self.scale = max(channels // 2, 1)
        kernel = kernel_init(rngs.params(), geometry.kernel_shape, param_dtype)
        self.kernel: nnx.Param[jax.Array] | None
        self.kernel = nnx.Param(kernel) if is_plain else nnx.data(None)
        self.bias: nnx.Param[jax.Array] | None = nnx.data(None)
        if use_bias:
            if init == "published" and bias_init is default_bias_init:
                width = in_features // geometry.feature_group_count
                bias_init = torch_bias_init(math.prod(geometry.kernel_size) * width)
            bias = bias_init(rngs.params(), (out_features,), param_dtype)
            self.bias = nnx.Param(bias)
        self.spectrum: nnx.Param[jax.Array] | None = nnx.data(None)
        self.attention: FDAttention | None = nnx.data(None)
        self.local: LocalAttention | None = nnx.data(None)
        self.modulation: BandModulation | None = nnx.data(None)
        if is_plain:
            return
        share = 1 if init == "published" else self.num_spectra
        spectrum = self._to_spectra(kernel, share)
        self.spectrum = nnx.Param(spectrum.astype(param_dtype))
        shared: dict[str, Any] = dict(
            param_dtype=param_dtype, precision=precision, rngs=rngs
        )
        self.attention = FDAttention(
            self.in_features,
            self.out_features,
            self.kernel_size,
            feature_group_count=self.feature_group_count,
            num_experts=self.num_experts * self.num_spectra,
            reduction=reduction,
            min_hidden=min_hidden,
            norm=norm,
            temperature=temperature,
            kernel_temperature=kernel_temperature,
            init=init,
            dtype=dtype,
            **shared,
        )
        self.local = LocalAttention(geometry, **shared)
        if side == 3:
            self.modulation = BandModulation(
                self.in_features, low_pass=low_pass, dtype=dtype, **shared
            )

    def _to_spectra(self, kernel: jax.Array, share: int) -> jax.Array:
        """Returns the spectra with which the layer has a kernel, or a share of it each.

        That is while all gates are 1.
        """
        wide = kernel.astype(at_least_float32(kernel.dtype))
        spectrum = to_spectrum(wide) / (self.scale * share)
        return jnp.broadcast_to(spectrum, (self.num_spectra, *spectrum.shape))

    def attentions(self, inputs: jax.Array) -> Attentions:
        """Returns the four attentions of the whole kernel.

        Args:
            inputs: Shape (*batch, H, W, C).

        Returns:
            Each of shape (*batch, ...), or None where it is absent.

        Raises:
            ValueError: If the inputs do not fit the layer, or it is a plain one.
        """
        flat, batch = self._flatten_batch(inputs)
        if self.attention is None:
            raise ValueError(
                "the layer is a plain convolution, without attention: it has fewer "
                "channels than `min_channels`, or a kernel that is not 1×1 or 3×3"
            )
        attentions = self.attention(spatial_mean(flat, self.dtype))
        return jax.tree.map(
            lambda each: each.reshape(*batch, *each.shape[1:]), attentions
        )

    def routing(self, inputs: jax.Array) -> jax.Array:
        """Returns the attention over the bands alone.

        Args:
            inputs: Shape (*batch, H, W, C).

        Returns:
            Shape (*batch, K), and K for each further spectrum; about 1 / K each.

        Raises:
            ValueError: If the inputs do not fit the layer, or it is a plain one.
        """
        channel, *_, kernel = self.attentions(inputs)
        return jnp.ones_like(channel[..., :1]) if kernel is None else kernel

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer.

        Args:
            inputs: Shape (*batch, H, W, C), with any number of batch dimensions, also
                none.

        Returns:
            Shape (*batch, H_out, W_out, O).

        Raises:
            ValueError: If the inputs do not fit the layer, or if in training there is
                one sample and `norm="batch"`.
        """
        flat, batch = self._flatten_batch(inputs)
        own = next(each for each in (self.kernel, self.spectrum) if each is not None)
        parameters = own[...], None if self.bias is None else self.bias[...]
        flat, promoted, bias = dtypes.promote_dtype(
            (flat, *parameters), dtype=self.dtype
        )
        geometry = {**self._geometry_options, "precision": self.precision}
        if self.attention is None or self.local is None:
            kernel = keep_wide(own[...], promoted)[None]
            outputs = dynamic_conv(flat, None, kernel, **geometry)
        else:
            pooled = spatial_mean(flat, self.dtype)
            attentions = self.attention(pooled)
            kernels = self._kernels(attentions, self.local(pooled), own[...])
            modulated = flat if self.modulation is None else self.modulation(flat)
            # The two act on activations, as in an `ODConv`.
            scaled = scale_channels(modulated, attentions.channel)
            outputs = per_sample_conv(
                scaled.astype(flat.dtype),
                kernels.astype(flat.dtype),
                implementation=self.implementation,
                **geometry,
            )
            if attentions.filter is not None:
                outputs = scale_channels(outputs, attentions.filter)
        outputs = add_bias(outputs, None if bias is None else bias[None])
        return outputs.reshape(*batch, *outputs.shape[1:])

    def _kernels(
        self, attentions: Attentions, local: jax.Array, spectrum: jax.Array
    ) -> jax.Array:
        """Returns the kernel of each sample, without the factors of channels."""
        spectrum = spectrum.astype(at_least_float32(spectrum.dtype))
        experts = self.num_experts * self.num_spectra
        weights = attentions.kernel
        if weights is None:
            weights = jnp.ones_like(attentions.channel[:, :1])
        width = self.in_features // self.feature_group_count
        shape = *self.kernel_size, width, self.out_features
        alpha = self.scale * experts
        kernels = mix_bands(
            weights,
            spectrum * alpha,
            self.num_experts,
            shape,
            precision=self.precision,
        )
        if attentions.spatial is not None:
            kernels = kernels * attentions.spatial[..., None, None].astype(
                kernels.dtype
            )
        return kernels * local.astype(kernels.dtype)
