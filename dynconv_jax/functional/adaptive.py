"""The adaptive convolution: experts mixed by an attention, then modulated by a style.

    W_i = s_i ⊙ Σ_k a_ik W_k        over the input channels
    d_i = 1 / √(Σ W_i² + ε)         for each output channel, over all that it sums
    y_i = d_i ⊙ conv(x_i, W_i)

The style scales inputs and d outputs of a dynamic convolution, as in `modulated.py`; so
its forms serve, and no more kernels are made than theirs. The square of a mixture is a
sum over pairs of experts, Σ_kl a_ik a_il (W_k ⊙ W_l), whose products are summed over
the taps once for all samples. `"fused"` makes the kernels, as the equations have it;
it is the reference.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float, Shaped

from dynconv_jax.functional.checks import take_arrays
from dynconv_jax.functional.dynamic import check_attentions, dynamic_conv
from dynconv_jax.functional.geometry import Geometry, PaddingLike, check_operands
from dynconv_jax.functional.mixing import mix_kernels
from dynconv_jax.functional.modulated import (
    check_styles,
    demodulation,
    modulated_kernels,
)
from dynconv_jax.functional.numerics import (
    at_least_float32,
    scale_channels,
    widest,
)
from dynconv_jax.functional.per_sample import add_bias, per_sample_conv
from dynconv_jax.functional.sharding import leave_to_partitioner, of_convolution


def _of_mixtures(
    styles: jax.Array,
    attention: jax.Array | None,
    kernel: jax.Array,
    geometry: Geometry,
) -> jax.Array:
    """Returns d, one over the norms of the modulated mixtures, (B, O)."""
    groups = geometry.feature_group_count
    num_experts, taps = kernel.shape[0], tuple(range(1, kernel.ndim - 2))
    batch, channels = styles.shape
    pairs, weights = [], []
    for index in range(num_experts):
        pairs.append((kernel[index : index + 1] * kernel[index:]).sum(taps))
        if attention is not None:
            # Each pair stands for two, but that of an expert with itself.
            count = jnp.array([[1, *[2] * (num_experts - index - 1)]], styles.dtype)
            own = attention[:, index : index + 1] * attention[:, index:]
            weights.append(count * own)
    # (P, C/g, O) for P pairs; each is a part of the square, beside the channels.
    powers = jnp.concatenate(pairs)
    squares = lax.square(styles)
    if attention is not None:
        by_pair = jnp.concatenate(weights, axis=1)[:, None, :, None]
        split = squares.reshape(batch, groups, 1, channels // groups)
        squares = (split * by_pair).reshape(batch, len(powers) * channels)
    power = powers.reshape(len(powers) * channels // groups, powers.shape[-1])
    return demodulation(squares, power, groups)


def adaptive_conv(
    inputs: Float[jax.Array, "batch *spatial in_features"],
    styles: Shaped[jax.Array, "batch in_features"],
    attention: Shaped[jax.Array, "batch experts"] | None,
    kernel: Float[jax.Array, "experts *window in_per_group out_features"],
    bias: Float[jax.Array, "experts out_features"] | None = None,
    *,
    demodulate: bool = True,
    gain: ArrayLike = 1.0,
    strides: int | Sequence[int] | None = 1,
    padding: PaddingLike = "SAME",
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
    implementation: str = "auto",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Convolves every sample with a mixture of experts that its style modulates.

    Kang et al., "Scaling up GANs for Text-to-Image Synthesis" (GigaGAN), CVPR 2023,
    on sample-adaptive kernel selection.

    Args:
        inputs: The samples, with 1, 2 or 3 spatial dimensions.
        styles: The factors of the input channels.
        attention: The weight of each expert for each sample; None is for a single
            expert, whose weight is then 1.
        kernel: The experts, of the dtype of `inputs`; or float32 beside narrower
            inputs: they are then rounded to their dtype, and their gradient is not.
        bias: The bias of each expert, mixed and added to the outputs, or None.
        demodulate: Whether each output channel of a sample's kernel is divided by its
            norm.
        gain: Multiplies the kernels after they were demodulated: a number, or one of
            each input channel, (C,) or (B, C).
        strides: An int, or one per spatial dimension.
        padding: `"SAME"`, `"VALID"`, an int, or one int or (low, high) pair per spatial
            dimension.
        kernel_dilation: An int, or one per spatial dimension.
        feature_group_count: It must divide the features of inputs and of outputs.
        implementation: That of `dynamic_conv`, which scaled inputs go through; or
            `"fused"`, the modulated kernel of each sample and `per_sample_conv`. All
            compute the same.
        precision: As in `jax.lax.conv_general_dilated`.
        preferred_element_type: The dtype of the output and of the sums behind it, as in
            `jax.lax.conv_general_dilated`.

    Returns:
        The outputs.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit, the kernel spans more than the padded input,
            or the implementation is unknown or cannot compute this.

    Example:
        >>> images, styles = jnp.ones((2, 9, 7, 4)), jnp.ones((2, 4))
        >>> attention = jnp.array([[0.7, 0.3], [0.1, 0.9]])
        >>> experts = jnp.ones((2, 3, 3, 4, 8))
        >>> adaptive_conv(images, styles, attention, experts, strides=2).shape
        (2, 5, 4, 8)
    """
    inputs, styles, attention, kernel, bias = take_arrays(
        inputs=inputs,
        styles=styles,
        attention=attention,
        kernel=kernel,
        bias=bias,
        optional=("attention", "bias"),
    )
    geometry = check_operands(
        inputs,
        kernel,
        bias,
        stack="num_experts",
        stack_size=kernel.shape[0] if kernel.ndim else 0,
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
    )
    check_attentions(inputs, attention, None, kernel)
    wide = at_least_float32(widest(styles.dtype, kernel.dtype))
    styles, gain = styles.astype(wide), jnp.asarray(gain, wide)
    check_styles(styles, gain, inputs.shape[0], inputs.shape[-1])
    gain = jnp.broadcast_to(gain, styles.shape)
    weights = None if attention is None else attention.astype(wide)
    if bias is not None and attention is not None:
        bias = mix_kernels(attention, bias, precision=precision)
    options: dict[str, Any] = dict(
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )

    def convolve(
        inputs: jax.Array,
        styles: jax.Array,
        gain: jax.Array,
        attention: jax.Array | None,
        kernel: jax.Array,
    ) -> jax.Array:
        own = kernel.astype(wide)
        if implementation == "fused":
            mixed = own if attention is None else mix_kernels(attention, own)
            kernels = modulated_kernels(
                mixed, styles, gain, geometry, demodulate=demodulate
            )
            return per_sample_conv(inputs, kernels.astype(inputs.dtype), **options)
        outputs = dynamic_conv(
            scale_channels(inputs, styles * gain),
            attention,
            kernel,
            implementation=implementation,
            **options,
        )
        if not demodulate:
            return outputs
        return scale_channels(outputs, _of_mixtures(styles, attention, own, geometry))

    outputs = leave_to_partitioner(
        convolve,
        (inputs, styles, gain, weights, kernel),
        of_convolution(inputs, kernel, geometry.output_size(inputs.shape[1:-1])),
        stack=kernel,
    )
    return add_bias(outputs, bias)
