"""ModulatedConv: the convolution of generators, steered by a style."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Initializer
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.checks import check_rngs
from dynconv_jax.functional.checks import check_choice, check_dtypes, check_rate
from dynconv_jax.functional.geometry import Geometry, PaddingLike, positive_int
from dynconv_jax.functional.modulated import check_modulation, modulated_conv
from dynconv_jax.functional.numerics import at_least_float32, keep_wide
from dynconv_jax.initializers import INITS, Init
from dynconv_jax.layers.convolution import Convolution, flatten_rows
from dynconv_jax.layers.equalized_linear import EqualizedLinear
from dynconv_jax.layers.style import Styled, own_gain

default_kernel_init = nnx.initializers.normal(1.0)
default_bias_init = nnx.initializers.zeros_init()


class ModulatedConv(Styled, Convolution):
    """A convolution whose kernel a style scales, and whose output is brought to size.

        s = affine(latents)                       (B, C)
        d = 1 / √(Σ (s ⊙ W)² + 1e-8)              (B, O), over input channels and taps
        y = d ⊙ conv(s ⊙ x, W) + b

    That is the convolution of each sample with the kernel d ⊙ s ⊙ W of its own, without
    one being made. For 1, 2 or 3 spatial dimensions, with the argument names of
    `nnx.Conv`. Noise and activation are the generator's, and so is the resampling by
    filters between resolutions; noise may be added after the bias, since sums commute.
    Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020,
    section 2.2; "Alias-Free Generative Adversarial Networks" (StyleGAN3), NeurIPS 2021.

    Attributes:
        kernel: Shape (*kernel_size, C/g, O).
        bias: Shape (O,), or None.
        affine: The `EqualizedLinear` from latents to styles; its bias starts at 1.
        magnitude_ema: The running mean square of the inputs, a scalar; there only with
            `magnitude_momentum`.

    Example:
        >>> layer = ModulatedConv(4, 8, (3, 3), style_features=16, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 9, 7, 4)), jnp.ones((2, 16))).shape
        (2, 9, 7, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        style_features: int,
        demodulate: bool = True,
        pre_normalize: bool = False,
        gain: float | None = None,
        magnitude_momentum: float | None = None,
        padding: PaddingLike = "SAME",
        kernel_dilation: int | Sequence[int] | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = False,
        implementation: str = "auto",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        init: Init = "default",
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        rngs: nnx.Rngs,
    ):
        """Builds the layer.

        Args:
            in_features: C, the number of input channels.
            out_features: O, the number of output channels.
            kernel_size: A tuple of 1, 2 or 3 ints; its length is the rank.
            strides: An int, or one per spatial dimension.
            style_features: The number of features of the latents.
            demodulate: Whether the kernel of a sample is divided by its norm. The layer
                that makes an image of features, 1×1, is published without.
            pre_normalize: Whether style and kernel are normalised first, as in
                StyleGAN3; see `dynconv_jax.functional.modulated_conv`.
            gain: Multiplies the kernel after the demodulation. None is 1 where there is
                one and otherwise 1/√(C/g · taps), as published.
            magnitude_momentum: Divide the inputs by a running root mean square of
                theirs, as StyleGAN3 does, and keep that share of it in an update (0.999
                there). It is updated in training mode. None divides by nothing.
            padding: `"SAME"`, `"VALID"`, an int, or one int or (low, high) pair per
                spatial dimension.
            kernel_dilation: An int, or one per spatial dimension.
            feature_group_count: g; it must divide C and O.
            use_bias: Whether there is a bias; published layers have one.
            implementation: `"auto"`, `"scaled"` or `"fused"`, the reference with a
                kernel for each sample.
            dtype: The dtype of the computation; None infers it. Styles are computed in
                float32 at least.
            param_dtype: The dtype of the parameters.
            precision: As in `jax.lax.conv_general_dilated`.
            init: `"default"` or `"published"`, which are the same here.
            kernel_init: Initialises the kernel, by default from N(0, 1).
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
        check_modulation(
            implementation, demodulate=demodulate, pre_normalize=pre_normalize
        )
        check_dtypes(dtype=dtype, param_dtype=param_dtype, optional=("dtype",))
        check_rngs(rngs)
        check_choice("init", init, INITS)
        self._take_geometry(geometry)
        self.style_features = positive_int("style_features", style_features)
        self.demodulate = demodulate
        self.pre_normalize = pre_normalize
        self.gain = own_gain(gain, geometry, demodulate=demodulate)
        self.use_bias = use_bias
        self.implementation = implementation
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.kernel = nnx.Param(
            kernel_init(rngs.params(), geometry.kernel_shape, param_dtype)
        )
        self.bias: nnx.Param[jax.Array] | None
        if use_bias:
            self.bias = nnx.Param(
                bias_init(rngs.params(), (out_features,), param_dtype)
            )
        else:
            self.bias = nnx.data(None)
        self.affine = EqualizedLinear(
            style_features,
            in_features,
            bias_init=nnx.initializers.ones_init(),
            param_dtype=param_dtype,
            precision=precision,
            rngs=rngs,
        )
        self.magnitude_momentum = magnitude_momentum
        self.use_running_average = False
        if magnitude_momentum is not None:
            check_rate("magnitude_momentum", magnitude_momentum)
            self.magnitude_ema = nnx.BatchStat(
                jnp.ones((), at_least_float32(param_dtype))
            )

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Is called by `nnx.view`.

        Args:
            use_running_average: Leave the running mean square of the inputs as it is.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, inputs: jax.Array, latents: jax.Array) -> jax.Array:
        """Applies the layer.

        Args:
            inputs: Shape (*batch, *S, C), with any number of batch dimensions, also
                none.
            latents: Shape (*batch, style_features).

        Returns:
            Shape (*batch, *S_out, O).

        Raises:
            TypeError: If an argument is no array.
            ValueError: If the inputs or the latents do not fit the layer.
        """
        flat, batch = self._flatten_batch(inputs)
        size = "style_features", self.style_features
        styles = self._style(flatten_rows("latents", latents, batch, *size))
        gain = self.gain
        if self.magnitude_momentum is not None:
            magnitude = self._magnitude(flat, self.magnitude_momentum)
            gain = gain * lax.rsqrt(magnitude)
        own = self.kernel[...], None if self.bias is None else self.bias[...]
        flat, kernel, bias = dtypes.promote_dtype((flat, *own), dtype=self.dtype)
        kernel, bias = jax.tree.map(keep_wide, own, (kernel, bias))
        outputs = modulated_conv(
            flat,
            styles,
            kernel,
            bias,
            demodulate=self.demodulate,
            pre_normalize=self.pre_normalize,
            gain=gain,
            **self._geometry_options,
            implementation=self.implementation,
            precision=self.precision,
        )
        return outputs.reshape(*batch, *outputs.shape[1:])

    def _magnitude(self, inputs: jax.Array, share: float) -> jax.Array:
        """Returns the running mean square of the inputs, in training updated first."""
        old = self.magnitude_ema[...]
        if self.use_running_average or 0 in inputs.shape:
            return old  # an empty batch has nothing to learn from
        square = lax.square(inputs.astype(old.dtype)).mean()
        new = share * old + (1 - share) * lax.stop_gradient(square)
        # Not `magnitude_ema[...] =`, which looks through all that was traced before.
        self.magnitude_ema.set_value(new)
        return new
