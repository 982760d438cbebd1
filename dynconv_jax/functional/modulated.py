"""The modulated convolution: a style scales the input channels of a sample's kernel.

    W_i = s_i ⊙ W                   over the input channels
    d_i = 1 / √(Σ W_i² + ε)         for each output channel, over all that it sums
    y_i = d_i ⊙ conv(x_i, W_i)

A factor of an input channel may meet the input in place of the kernel, one of an output
channel the output. So there is no kernel per sample: `"scaled"` convolves all samples
with W, and d is the root of a small matrix product. `"fused"` makes the kernels, as the
equations have it; it is the reference.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float, Shaped

from dynconv_jax.functional.checks import take_arrays
from dynconv_jax.functional.geometry import Geometry, PaddingLike, check_operands
from dynconv_jax.functional.numerics import (
    Numerics,
    at_least_float32,
    scale_channels,
    widest,
)
from dynconv_jax.functional.per_sample import add_bias, per_sample_conv
from dynconv_jax.functional.sharding import leave_to_partitioner, of_convolution
from dynconv_jax.functional.static import conv_by_one_kernel

IMPLEMENTATIONS = ("auto", "scaled", "fused")

# Keeps the norm of a kernel off zero.
EPSILON = 1e-8


def check_modulation(
    implementation: str, *, demodulate: bool, pre_normalize: bool
) -> None:
    """Checks the options of a modulated convolution.

    Raises:
        ValueError: If the implementation is unknown, or there is a normalisation that
            nothing undoes.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"`implementation` (={implementation!r}) must be one of "
            f"{', '.join(map(repr, IMPLEMENTATIONS))}"
        )
    check_normalization(demodulate=demodulate, pre_normalize=pre_normalize)


def check_normalization(*, demodulate: bool, pre_normalize: bool) -> None:
    """Raises a ValueError if there is a normalisation that nothing undoes."""
    if pre_normalize and not demodulate:
        raise ValueError(
            "`pre_normalize` (=True) needs `demodulate=True`, which undoes the change "
            "of scale; leave it off where the kernel is not demodulated"
        )


def check_styles(
    styles: jax.Array, gain: jax.Array, batch: int, in_features: int
) -> None:
    """Raises a ValueError unless there is a style, and a gain, for every channel."""
    expected = (batch, in_features)
    if styles.shape != expected:
        raise ValueError(
            f"`styles` (shape {styles.shape}) must be (batch, in_features) = {expected}"
        )
    if gain.shape not in ((), (in_features,), expected):
        raise ValueError(
            f"`gain` (shape {gain.shape}) must be a number, or have the shape "
            f"(in_features,) = {(in_features,)} or (batch, in_features) = {expected}"
        )


def unit_power(array: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Returns an array over its root mean square along some axes."""
    mean = jnp.mean(lax.square(array), axis=tuple(axes), keepdims=True)
    return array * lax.rsqrt(mean + EPSILON)


def _by_group(
    styles: Float[jax.Array, "batch in_features"], geometry: Geometry
) -> jax.Array:
    """Returns the style that each weight of a kernel meets, (B, ..., C/g, O)."""
    groups = geometry.feature_group_count
    split = styles.reshape(styles.shape[0], groups, styles.shape[1] // groups)
    repeated = jnp.repeat(split.mT, geometry.out_features // groups, axis=-1)
    return jnp.expand_dims(repeated, tuple(range(1, geometry.rank + 1)))


def modulated_kernels(
    kernel: Float[jax.Array, "#batch *window in_per_group out_features"],
    styles: Float[jax.Array, "batch in_features"],
    gain: Float[jax.Array, "batch in_features"],
    geometry: Geometry,
    *,
    demodulate: bool,
) -> Float[jax.Array, "batch *window in_per_group out_features"]:
    """Returns the kernel of each sample, as the equations have it; for `"fused"`.

    Args:
        kernel: One kernel, or one of each sample, in float32 at least.
        styles: The factors of the input channels, in the same dtype.
        gain: Those after the demodulation.
        geometry: The convolution.
        demodulate: Whether there is one.
    """
    kernels = kernel * _by_group(styles, geometry)
    if demodulate:
        axes = tuple(range(1, kernels.ndim - 1))
        norms = lax.square(kernels).sum(axes, keepdims=True)
        kernels = kernels * lax.rsqrt(norms + EPSILON)
    return kernels * _by_group(gain, geometry)


def demodulation(
    squares: Float[jax.Array, "batch parts"],
    power: Float[jax.Array, "parts_per_group out_features"],
    groups: int,
) -> Float[jax.Array, "batch out_features"]:
    """Returns d, one over the norms of the modulated kernels.

    Args:
        squares: The squared styles of the input channels, in float32 at least; or of
            further parts that a kernel's square is a sum of, those of a group together.
        power: Σ W² over the taps, of each part, in the same dtype.
        groups: The number of channel groups.

    Returns:
        d, in that dtype.
    """
    (batch, parts), outputs = squares.shape, power.shape[-1]
    if groups == 1:
        sums = jnp.matmul(squares, power, precision="highest")
    else:
        split = jnp.einsum(
            "bgc,cgo->bgo",
            squares.reshape(batch, groups, parts // groups),
            power.reshape(parts // groups, groups, outputs // groups),
            precision="highest",
        )
        sums = split.reshape(batch, outputs)
    # A sum of products, unlike one of squares, may be less than 0 by rounding.
    return lax.rsqrt(jnp.maximum(sums, 0) + EPSILON)


def modulated_conv(
    inputs: Float[jax.Array, "batch *spatial in_features"],
    styles: Shaped[jax.Array, "batch in_features"],
    kernel: Float[jax.Array, "*window in_per_group out_features"],
    bias: Float[jax.Array, "out_features"] | None = None,
    *,
    demodulate: bool = True,
    pre_normalize: bool = False,
    gain: ArrayLike = 1.0,
    strides: int | Sequence[int] | None = 1,
    padding: PaddingLike = "SAME",
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
    implementation: str = "auto",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Convolves every sample with a kernel whose input channels its style scales.

    Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020,
    section 2.2.

    Args:
        inputs: The samples, with 1, 2 or 3 spatial dimensions.
        styles: The factors of the input channels.
        kernel: The kernel of all samples, of the dtype of `inputs`; or float32 beside
            narrower inputs: it is then rounded to their dtype, its gradient is not.
        bias: Added to the outputs, or None.
        demodulate: Whether each output channel of a sample's kernel is divided by its
            norm. A layer that makes an image of features is published without.
        pre_normalize: Whether style and kernel are brought to a mean square of 1 first,
            as in StyleGAN3. Demodulation undoes it but for ε; numbers in between stay
            small, for narrow dtypes. Each style is normalised alone, those of a batch
            together in the authors' code.
        gain: Multiplies the kernels after they were demodulated: a number, or one of
            each input channel, (C,) or (B, C). The input gain of StyleGAN3, among
            others.
        strides: An int, or one per spatial dimension.
        padding: `"SAME"`, `"VALID"`, an int, or one int or (low, high) pair per spatial
            dimension.
        kernel_dilation: An int, or one per spatial dimension.
        feature_group_count: It must divide the features of inputs and of outputs.
        implementation: `"scaled"`, which scales inputs and outputs of one convolution;
            `"fused"`, a kernel for each sample, by `per_sample_conv`; or `"auto"`,
            which is `"scaled"`. All compute the same.
        precision: As in `jax.lax.conv_general_dilated`.
        preferred_element_type: The dtype of the output and of the sums behind it, as in
            `jax.lax.conv_general_dilated`.

    Returns:
        The outputs.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit, the kernel spans more than the padded input,
            the implementation is unknown, or `pre_normalize` is on where `demodulate`
            is off.

    Example:
        >>> images, styles = jnp.ones((2, 9, 7, 4)), jnp.ones((2, 4))
        >>> modulated_conv(images, styles, jnp.ones((3, 3, 4, 8)), strides=2).shape
        (2, 5, 4, 8)
    """
    inputs, styles, kernel, bias = take_arrays(
        inputs=inputs, styles=styles, kernel=kernel, bias=bias, optional=("bias",)
    )
    check_modulation(implementation, demodulate=demodulate, pre_normalize=pre_normalize)
    geometry = check_operands(
        inputs,
        kernel,
        bias,
        stack=None,
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
    )
    wide = at_least_float32(widest(styles.dtype, kernel.dtype))
    styles, gain = styles.astype(wide), jnp.asarray(gain, wide)
    check_styles(styles, gain, inputs.shape[0], inputs.shape[-1])
    groups = geometry.feature_group_count
    numerics = Numerics(precision, preferred_element_type).settled
    if pre_normalize:
        styles = unit_power(styles, (1,))
    gain = jnp.broadcast_to(gain, styles.shape)

    def convolve(
        inputs: jax.Array, styles: jax.Array, gain: jax.Array, kernel: jax.Array
    ) -> jax.Array:
        own = kernel.astype(wide)
        if pre_normalize:
            own = unit_power(own, range(own.ndim - 1))
        if implementation == "fused":
            kernels = modulated_kernels(
                own[None], styles, gain, geometry, demodulate=demodulate
            )
            return per_sample_conv(
                inputs,
                kernels.astype(inputs.dtype),
                strides=strides,
                padding=padding,
                kernel_dilation=kernel_dilation,
                feature_group_count=feature_group_count,
                precision=precision,
                preferred_element_type=preferred_element_type,
            )
        scaled = scale_channels(inputs, styles * gain)
        outputs = conv_by_one_kernel(
            scaled, own.astype(kernel.dtype), geometry, numerics
        )
        if not demodulate:
            return outputs
        power = lax.square(own).sum(tuple(range(own.ndim - 2)))
        squares = lax.square(styles)
        return scale_channels(outputs, demodulation(squares, power, groups))

    outputs = leave_to_partitioner(
        convolve,
        (inputs, styles, gain, kernel),
        of_convolution(inputs, kernel, geometry.output_size(inputs.shape[1:-1])),
        stack=kernel,
    )
    return add_bias(outputs, None if bias is None else bias[None])
