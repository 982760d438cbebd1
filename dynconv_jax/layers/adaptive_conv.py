"""AdaptiveConv: a modulated convolution whose kernel latents choose among experts."""

from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.functional.adaptive import adaptive_conv
from dynconv_jax.functional.geometry import Geometry, positive_int
from dynconv_jax.functional.numerics import at_least_float32
from dynconv_jax.gating import Temperature
from dynconv_jax.layers.convolution import flatten_rows
from dynconv_jax.layers.equalized_linear import EqualizedLinear
from dynconv_jax.layers.expert_conv import ExpertConv, ExpertOptions
from dynconv_jax.layers.style import Styled, linear_attention, own_gain
from dynconv_jax.scheduled import HoldsScheduled


class StyleAttention(HoldsScheduled):
    """The router of `AdaptiveConv`: a softmax over one linear layer of the latents.

        a = softmax(fc(latents) / T)              (B, K)    rows sum to 1

    All of it is computed in float32 at least.

    Attributes:
        fc: The `EqualizedLinear` from latents to logits.
        temperature: T, a scalar `Temperature`; write it with `set_temperature`.

    Example:
        >>> attention = StyleAttention(16, 4, rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((2, 16))).shape
        (2, 4)
    """

    def __init__(
        self,
        style_features: int,
        num_experts: int,
        *,
        temperature: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        """Builds the router; `AdaptiveConv` explains the arguments.

        Raises:
            ValueError: If the temperature is no positive number.
        """
        Temperature.check(temperature)
        self.dtype = dtype
        self.fc = EqualizedLinear(
            style_features,
            num_experts,
            param_dtype=param_dtype,
            precision=precision,
            rngs=rngs,
        )
        self.temperature = Temperature.create(temperature)

    def __call__(self, latents: jax.Array) -> jax.Array:
        """Returns the attention (B, K) for latents (B, style_features)."""
        return linear_attention(self, self.fc, latents, self.dtype)


class AdaptiveConv(Styled, ExpertConv):
    """Experts mixed by a softmax over latents, then scaled by a style, and demodulated.

        a = softmax(attention.fc(latents) / T)    (B, K)
        s = affine(latents)                       (B, C)
        d = 1 / √(Σ (s ⊙ Σ_k a_k W_k)² + 1e-8)    (B, O), over input channels and taps
        y = d ⊙ conv(s ⊙ x, Σ_k a_k W_k) + Σ_k a_k b_k

    That is `DynamicConv` with attention from outside and the modulation of
    `ModulatedConv`. For 1, 2 or 3 spatial dimensions, with the argument names of
    `nnx.Conv`. Kang et al., "Scaling up GANs for Text-to-Image Synthesis" (GigaGAN),
    CVPR 2023, on sample-adaptive kernel selection.

    Attributes:
        kernel: The experts, shape (K, *kernel_size, C/g, O).
        bias: Their biases, shape (K, O), or None.
        affine: The `EqualizedLinear` from latents to styles; its bias starts at 1.
        attention: The `StyleAttention`, or None where there is one expert.

    Example:
        >>> layer = AdaptiveConv(4, 8, (3, 3), style_features=16, rngs=nnx.Rngs(0))
        >>> images, latents = jnp.ones((2, 9, 7, 4)), jnp.ones((2, 16))
        >>> layer(images, latents).shape
        (2, 9, 7, 8)
        >>> layer.routing(latents).shape, layer.styles(latents).shape
        ((2, 4), (2, 4))
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
        gain: float | None = None,
        temperature: float = 1.0,
        rngs: nnx.Rngs,
        **options: Unpack[ExpertOptions],
    ):
        """Builds the layer.

        Args:
            in_features: C, the number of input channels.
            out_features: O, the number of output channels.
            kernel_size: A tuple of 1, 2 or 3 ints; its length is the rank.
            strides: An int, or one per spatial dimension.
            style_features: The number of features of the latents.
            demodulate: Whether the kernel of a sample is divided by its norm.
            gain: Multiplies the kernel after the demodulation. None is 1 where there is
                one and otherwise 1/√(C/g · taps).
            temperature: The initial T; see `set_temperature`.
            rngs: Where the initial parameters come from.
            **options: The options of `ExpertConv`, as `DynamicConv` explains them;
                `implementation` may also be `"fused"`, the reference, which modulates
                the kernel of each sample. With one expert there is no attention. By
                default each expert is drawn from N(0, 1).

        Raises:
            TypeError: If an argument is of the wrong kind, such as a bare int as
                `kernel_size`.
            ValueError: If a value is out of range or does not fit the others.
        """
        options.setdefault("kernel_init", nnx.initializers.normal(1.0))
        implementation = options.get("implementation", "auto")
        if implementation == "fused":  # which is no form of a dynamic convolution
            options["implementation"] = "auto"
        super().__init__(
            in_features, out_features, kernel_size, strides, rngs=rngs, **options
        )
        self.implementation = implementation
        self.style_features = positive_int("style_features", style_features)
        self.demodulate = demodulate
        geometry = Geometry.create(
            in_features,
            out_features,
            self.kernel_size,
            feature_group_count=self.feature_group_count,
        )
        self.gain = own_gain(gain, geometry, demodulate=demodulate)
        linear: dict[str, Any] = dict(
            param_dtype=self.param_dtype, precision=self.precision, rngs=rngs
        )
        self.affine = EqualizedLinear(
            style_features,
            in_features,
            bias_init=nnx.initializers.ones_init(),
            **linear,
        )
        self.attention: StyleAttention | None
        if self.num_experts > 1:
            self.attention = StyleAttention(
                style_features,
                self.num_experts,
                temperature=temperature,
                dtype=self.dtype,
                **linear,
            )
        else:
            self.attention = nnx.data(None)

    def routing(self, latents: jax.Array) -> jax.Array:
        """Returns the attention over the experts.

        Args:
            latents: Shape (*batch, style_features).

        Returns:
            Shape (*batch, K); rows sum to 1.

        Raises:
            ValueError: If the latents do not fit the layer.
        """
        batch = jnp.shape(latents)[:-1]
        size = "style_features", self.style_features
        flat = flatten_rows("latents", latents, batch, *size)
        if self.attention is None:
            return jnp.ones((*batch, 1), at_least_float32(flat.dtype))
        return self.attention(flat).reshape(*batch, self.num_experts)

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
        latents = flatten_rows("latents", latents, batch, *size)
        attention = None if self.attention is None else self.attention(latents)
        outputs = self._convolve(flat, attention, styles=self._style(latents))
        return outputs.reshape(*batch, *outputs.shape[1:])

    def _apply_experts(
        self,
        inputs: jax.Array,
        attention: jax.Array | None,
        kernel: jax.Array,
        bias: jax.Array | None,
        *,
        styles: jax.Array,
        **options: Any,
    ) -> jax.Array:
        return adaptive_conv(
            inputs,
            styles,
            attention,
            kernel,
            bias,
            demodulate=self.demodulate,
            gain=self.gain,
            **options,
        )
