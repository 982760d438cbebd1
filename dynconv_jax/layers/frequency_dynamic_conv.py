"""FrequencyDynamicConv: a kernel for each frequency of a sound."""

from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.functional.checks import check_choice
from dynconv_jax.functional.choice import check_implementation
from dynconv_jax.functional.frequency_dynamic import (
    AXES,
    along,
    frequency_dynamic_conv,
    of_bins,
)
from dynconv_jax.functional.geometry import Geometry, positive_int
from dynconv_jax.functional.numerics import at_least_float32
from dynconv_jax.gating import Temperature, attend, record_softmax
from dynconv_jax.initializers import kaiming_fan_out, promote_to_widest
from dynconv_jax.layers.attention_norm import attention_norm, normalise
from dynconv_jax.layers.expert_conv import ExpertConv, ExpertOptions
from dynconv_jax.layers.pooled_linear import PooledLinear
from dynconv_jax.scheduled import HoldsScheduled

kaiming_fan_in = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


class BinAttention(HoldsScheduled):
    """The router of `FrequencyDynamicConv`: an attention for each bin of an axis.

        v = mean over the other axis of x       (B, F, C)
        h = relu(norm(conv1d1(v)))              (B, F', H)  H = max(C // r, min_hidden)
        a = softmax(conv1d2(h) / T)             (B, F', K)  those of a bin sum to 1

    `conv1d1` has the window, stride and padding of the layer along the axis, so that
    there is an attention for each bin of the outputs; `conv1d2` has one tap. All of it
    is computed in float32 at least.

    Attributes:
        conv1d1: The convolution C → H along the axis, without bias.
        bn: The norm, if it is `"batch"`, over bins and samples; `ln`, if `"layer"`.
        conv1d2: The linear layer H → K of each bin.
        temperature: T, a scalar `Temperature`; write it with `set_temperature`.

    Example:
        >>> geometry = Geometry.create(4, 8, (3, 3), padding=1)
        >>> attention = BinAttention(geometry, rngs=nnx.Rngs(0))
        >>> attention(jnp.ones((2, 9, 7, 4))).shape
        (2, 7, 4)
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        axis: str = "frequency",
        num_experts: int = 4,
        reduction: int = 4,
        min_hidden: int = 4,
        norm: str = "batch",
        temperature: float = 31.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        """Builds the router; `FrequencyDynamicConv` explains the arguments.

        Raises:
            TypeError: If a count is not an integer.
            ValueError: If a value is out of range.
        """
        check_choice("axis", axis, AXES)
        position = AXES[axis]
        positive_int("reduction", reduction)
        positive_int("min_hidden", min_hidden)
        Temperature.check(temperature)
        self.axis = axis
        self.norm = norm
        self.dtype = dtype
        own = along(geometry, position)
        hidden = max(geometry.in_features // reduction, min_hidden)
        shared: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
        weights: dict[str, Any] = dict(
            precision=precision, kernel_init=kaiming_fan_out, **shared
        )
        self.conv1d1 = nnx.Conv(
            geometry.in_features,
            hidden,
            own.kernel_size,
            own.strides,
            padding=own.padding,
            kernel_dilation=own.kernel_dilation,
            use_bias=False,
            promote_dtype=promote_to_widest,
            **weights,
        )
        trunk_norm = attention_norm(norm, hidden, **shared)
        if norm == "batch":
            self.bn = trunk_norm
        elif norm == "layer":
            self.ln = trunk_norm
        self.conv1d2 = PooledLinear(hidden, num_experts, rank=1, **weights)
        self.temperature = Temperature.create(temperature)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns the attention (B, F', K) for inputs (B, frames, frequencies, C).

        Raises:
            ValueError: In training with `norm="batch"`, if there is one sample with one
                bin.
        """
        other = 2 - AXES[self.axis]
        dtype = at_least_float32(self.dtype or inputs.dtype)
        hidden = self.conv1d1(jnp.mean(inputs, axis=other, dtype=dtype))
        trunk_norm = getattr(self, "bn", getattr(self, "ln", None))
        logits = self.conv1d2(jax.nn.relu(normalise(trunk_norm, hidden)))
        temperature = self.temperature[...]
        attention = attend(logits, temperature)
        if hasattr(self, "__captures__"):  # each bin is a sample to whoever listens
            rows = attention.reshape(-1, attention.shape[-1])
            record_softmax(self, rows, logits.reshape(rows.shape), temperature)
        return attention


class FrequencyDynamicConv(ExpertConv):
    """A convolution of sounds whose kernel depends on the frequency.

        a = attention(x)                          (B, F', K)    those of a bin sum to 1
        y(t, f) = Σ_k a_k(f) conv(x, W_k)(t, f)

    A pattern in a spectrogram is another one at another height, and a convolution does
    not see where it is. Here every frequency bin of every sample mixes the experts with
    weights of its own; with `axis="time"` every frame does. Takes the place of
    `nnx.Conv`, with its argument names, for inputs (batch, frames, frequencies,
    channels). Nam et al., "Frequency Dynamic Convolution: Frequency-Adaptive Pattern
    Recognition for Sound Event Detection", Interspeech 2022, section 3.

    Attributes:
        kernel: The experts, shape (K, *kernel_size, C/g, O).
        bias: Their biases, shape (K, O), or None.
        attention: The `BinAttention`; `routing` calls it.

    Example:
        >>> layer = FrequencyDynamicConv(4, 8, (3, 3), padding=1, rngs=nnx.Rngs(0))
        >>> sounds = jnp.ones((2, 9, 7, 4))
        >>> layer(sounds).shape, layer.routing(sounds).shape
        ((2, 9, 7, 8), (2, 7, 4))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        axis: str = "frequency",
        reduction: int = 4,
        min_hidden: int = 4,
        norm: str = "batch",
        temperature: float = 31.0,
        rngs: nnx.Rngs,
        **options: Unpack[ExpertOptions],
    ):
        """Builds the layer.

        Args:
            in_features: C, the number of input channels.
            out_features: O, the number of output channels.
            kernel_size: A tuple of 2 ints, frames before frequencies.
            strides: An int, or one per spatial dimension.
            axis: Along what the kernel changes: `"frequency"`, the last spatial axis,
                or `"time"`, the first.
            reduction: The attention has max(C // reduction, min_hidden) hidden units.
            min_hidden: How many hidden units there are at least.
            norm: How these are normalised: `"batch"` as published, over the bins of all
                samples, `"layer"` or `"none"`.
            temperature: The initial T, as published; the authors do not change it. See
                `set_temperature`.
            rngs: Where the initial parameters come from.
            **options: The options of `ExpertConv`, as `DynamicConv` explains them. By
                default each expert is drawn Kaiming-normal by fan-in, as published.
                `implementation="experts"` is the convolution as published, to the
                outputs of all experts; the other names are those of `dynamic_conv`, for
                which each bin of a sample is a sample.

        Raises:
            TypeError: If an argument is of the wrong kind, such as a bare int as
                `kernel_size`.
            ValueError: If a value is out of range or does not fit the others.
        """
        options.setdefault("kernel_init", kaiming_fan_in)
        check_choice("axis", axis, AXES)
        position = AXES[axis]
        super().__init__(
            in_features, out_features, kernel_size, strides, rngs=rngs, **options
        )
        self.axis = axis
        geometry = self._geometry()
        check_implementation(self.implementation, of_bins(geometry, position)[1])
        self.attention = BinAttention(
            geometry,
            axis=axis,
            num_experts=self.num_experts,
            reduction=reduction,
            min_hidden=min_hidden,
            norm=norm,
            temperature=temperature,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            rngs=rngs,
        )

    def routing(self, inputs: jax.Array) -> jax.Array:
        """Returns the attention over the experts.

        Args:
            inputs: Shape (*batch, frames, frequencies, C).

        Returns:
            Shape (*batch, bins, K), for the bins of the outputs along the axis; those
            of a bin sum to 1.

        Raises:
            ValueError: If the inputs do not fit the layer.
        """
        flat, batch = self._flatten_batch(inputs)
        attention = self.attention(flat)
        return attention.reshape(*batch, *attention.shape[1:])

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer.

        Args:
            inputs: Shape (*batch, frames, frequencies, C), with any number of batch
                dimensions, also none.

        Returns:
            Shape (*batch, out_frames, out_frequencies, O).

        Raises:
            ValueError: If the inputs do not fit the layer.
        """
        flat, batch = self._flatten_batch(inputs)
        outputs = self._convolve(flat, self.attention(flat), axis=self.axis)
        return outputs.reshape(*batch, *outputs.shape[1:])

    def _geometry(self) -> Geometry:
        return Geometry.create(
            self.in_features,
            self.out_features,
            self.kernel_size,
            **self._geometry_options,
        )

    def _create_geometry(self, *sizes: Any, **options: Any) -> Geometry:
        geometry = Geometry.create(*sizes, **options)
        if geometry.rank != 2:
            raise ValueError(
                f"`kernel_size` (={geometry.kernel_size}) must be a tuple of 2 ints, "
                "of frames and of frequencies"
            )
        return geometry

    def _apply_experts(self, *operands: Any, **options: Any) -> jax.Array:
        return frequency_dynamic_conv(*operands, **options)
