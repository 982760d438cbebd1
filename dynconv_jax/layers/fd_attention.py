"""What steers an `FDConv`: attention of bands, gates of weights, gates of pixels."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.functional.checks import check_choice
from dynconv_jax.functional.frequency_bands import LOW_PASSES, modulate_bands
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import at_least_float32
from dynconv_jax.functional.static import few_channel_conv
from dynconv_jax.gating import Temperature, record_attention
from dynconv_jax.initializers import kaiming_fan_out, promote_to_widest
from dynconv_jax.layers.attention_norm import attention_norm, normalise
from dynconv_jax.layers.od_conv import Attentions, ODAttention

# So small that a layer begins as a static one.
tiny = nnx.initializers.normal(1e-6)


def twice_sigmoid(logits: jax.Array) -> jax.Array:
    """Returns factors around 1, from 0 to 2.

    Example:
        >>> float(twice_sigmoid(jnp.zeros(())))
        1.0
    """
    return 2 * jax.nn.sigmoid(logits)


class StarReLU(nnx.Module):
    """The activation s · relu(x)² + b with a scale and a shift that are learnt.

    Example:
        >>> StarReLU()(jnp.array([-1.0, 3.0])).tolist()
        [0.0, 9.0]
    """

    def __init__(self, *, param_dtype: DTypeLike = jnp.float32):
        """Builds the activation, which begins as the square of a ReLU."""
        self.scale = nnx.Param(jnp.ones(1, param_dtype))
        self.bias = nnx.Param(jnp.zeros(1, param_dtype))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the activation."""
        scale, bias = self.scale[...][0], self.bias[...][0]
        squares = lax.square(jax.nn.relu(inputs))
        return scale.astype(inputs.dtype) * squares + bias.astype(inputs.dtype)


class FDAttention(ODAttention):
    """The router of `FDConv`: that of an `ODConv`, with other gates.

        h = star_relu(norm(fc · pooled))     (B, A)    A = max(C // r, min_hidden)
        channel, filter, spatial = 2 sigmoid((head · h + b) / T)
        kernel = 2 sigmoid((head · h + b) / T_k) / K

    Attributes:
        relu: The `StarReLU`.
        kernel_temperature: T_k, a number, or None, with which it is T.

    Example:
        >>> attention = FDAttention(32, 24, (3, 3), num_experts=8, rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((2, 32))).kernel.shape
        (2, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: tuple[int, ...],
        *,
        init: str = "default",
        kernel_temperature: float | None = None,
        param_dtype: DTypeLike = jnp.float32,
        **options: Any,
    ):
        """Builds the router; `FDConv` explains the arguments.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range.
        """
        heads = "channel", "filter", "spatial", "kernel"
        inits: dict[str, nnx.Initializer] = dict.fromkeys(heads, tiny)
        if init == "published":
            inits["filter"] = kaiming_fan_out
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            head_inits=inits,
            param_dtype=param_dtype,
            **options,
        )
        self.kernel_temperature = kernel_temperature
        self.relu = StarReLU(param_dtype=param_dtype)

    def __call__(self, pooled: jax.Array) -> Attentions:
        """Returns the attentions for pooled inputs (B, C).

        Raises:
            ValueError: In training with `norm="batch"`, if there is one sample.
        """
        return self._of_pooled(pooled)

    def _activate(self, hidden: jax.Array) -> jax.Array:
        return self.relu(hidden)

    def _gates(self, logits: jax.Array) -> jax.Array:
        return twice_sigmoid(logits / self.temperature[...].astype(logits.dtype))

    def _mixture(self, logits: jax.Array) -> jax.Array:
        if self.kernel_temperature is None:
            gates = self._gates(logits)
        else:
            gates = twice_sigmoid(logits / self.kernel_temperature)
        attention = gates / logits.shape[-1]
        record_attention(self, attention)
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


class LocalAttention(nnx.Module):
    """The gates of single weights, from pooled channels and those next to them.

        gates = 2 sigmoid(conv(norm(pooled)))       (B, *k, C/g, O)

    The convolution goes along the channels, from 1 to O · taps features, so that it
    has few parameters; a channel's features are the logits of its weights.

    Attributes:
        conv: The convolution, of about log2(C) / 2 taps, without bias.
        norm: The layer norm over the channels.

    Example:
        >>> geometry = Geometry.create(32, 24, (3, 3))
        >>> attention = LocalAttention(geometry, rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((2, 32))).shape, attention.conv.kernel.shape
        ((2, 3, 3, 32, 24), (3, 1, 216))
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        param_dtype: DTypeLike = jnp.float32,
        precision: Any = None,
        rngs: nnx.Rngs,
    ):
        """Builds the router for the kernels of a convolution."""
        self.geometry = geometry
        taps = round(math.log2(geometry.in_features) / 2 + 0.5) // 2 * 2 + 1
        self.conv = nnx.Conv(
            1,
            geometry.out_features * geometry.taps,
            (taps,),
            padding=taps // 2,
            use_bias=False,
            precision=precision,
            kernel_init=nnx.initializers.constant(1e-6),
            promote_dtype=promote_to_widest,
            conv_general_dilated=few_channel_conv,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        norm = attention_norm(
            "layer", geometry.in_features, param_dtype=param_dtype, rngs=rngs
        )
        assert norm is not None
        self.norm = norm

    def __call__(self, pooled: jax.Array) -> jax.Array:
        """Returns the gates (B, *k, C/g, O) for pooled inputs (B, C)."""
        size, groups = self.geometry.kernel_size, self.geometry.feature_group_count
        outputs = self.geometry.out_features // groups
        logits = self.conv(normalise(self.norm, pooled)[..., None])
        # Of a batch sharded over explicit axes a reshape does but one thing.
        logits = logits.reshape(*logits.shape[:2], groups * outputs, *size)
        if groups == 1:
            return twice_sigmoid(jnp.moveaxis(logits, (1, 2), (-2, -1)))
        # A group's filters see its own channels only.
        batch, channels, *rest = logits.shape
        split = logits.reshape(batch, groups, channels // groups, *rest)
        split = split.reshape(*split.shape[:3], groups, outputs, *size)
        own = jnp.diagonal(split, axis1=1, axis2=3)  # (B, C/g, O/g, *k, g)
        own = jnp.moveaxis(own, (1, -1, 2), (-3, -2, -1))
        return twice_sigmoid(own.reshape(*own.shape[:-2], groups * outputs))


class BandModulation(nnx.Module):
    """Gates of the spatial frequencies of an image, one for each band and pixel.

    The gates are 2 sigmoid of a 3×3 convolution to a single channel; `modulate_bands`
    says what they weigh.

    Attributes:
        convs: The convolution of each band, from the highest to the lowest.

    Example:
        >>> modulation = BandModulation(4, rngs=nnx.Rngs(0))
        >>> modulation(jnp.ones((2, 9, 7, 4))).shape
        (2, 9, 7, 4)
    """

    reductions: Sequence[int] = (2, 4, 8)

    def __init__(
        self,
        in_features: int,
        *,
        low_pass: str = "ideal",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: Any = None,
        rngs: nnx.Rngs,
    ):
        """Builds the modulation; most arguments are those of `nnx.Conv`.

        Raises:
            ValueError: If `low_pass` is not one of `LOW_PASSES`.
        """
        check_choice("low_pass", low_pass, LOW_PASSES)
        self.low_pass = low_pass
        self.convs = nnx.List(
            [
                nnx.Conv(
                    in_features,
                    1,
                    (3, 3),
                    padding=1,
                    kernel_init=tiny,
                    dtype=dtype,
                    param_dtype=param_dtype,
                    precision=precision,
                    rngs=rngs,
                )
                for _ in self.reductions
            ]
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the images (B, H, W, C) with their bands weighed, in float32."""
        logits = jnp.concatenate([conv(inputs) for conv in self.convs], axis=-1)
        gates = twice_sigmoid(logits.astype(at_least_float32(logits.dtype)))
        if hasattr(self, "__captures__"):
            record_attention(self, gates.mean((1, 2)), "bands")
        return modulate_bands(inputs, gates, self.reductions, self.low_pass)
