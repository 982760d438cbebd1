"""The frequency-dynamic convolution: a mixture of experts for each bin of an axis.

    y_i(t, f) = Σ_k a_ik(f) (conv(x_i, W_k) + b_k)(t, f)

The attention goes along one axis of the output, and is the same along the other. As
published, all experts convolve once, and their outputs are mixed (`"experts"`): K times
the arithmetic. But a bin is a one-dimensional convolution along the other axis, of the
rows that its window spans, with one mixed kernel. So the bins of all samples are the
samples of a dynamic convolution, with all the forms that it has.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from dynconv_jax.functional.checks import check_choice, take_arrays
from dynconv_jax.functional.dynamic import dynamic_conv
from dynconv_jax.functional.geometry import Geometry, PaddingLike, check_operands
from dynconv_jax.functional.numerics import Numerics, at_least_float32
from dynconv_jax.functional.sharding import leave_to_partitioner, of_convolution
from dynconv_jax.functional.static import conv_by_one_kernel
from dynconv_jax.functional.windows import gather_windows

# Which spatial axis the attention goes along.
AXES = {"time": 0, "frequency": 1}


def along(geometry: Geometry, position: int) -> Geometry:
    """Returns the one-dimensional geometry of a convolution along one of its axes.

    Example:
        >>> along(Geometry.create(3, 8, (3, 5), strides=(1, 2)), 1).strides
        (2,)
    """
    padding = geometry.padding
    return dataclasses.replace(
        geometry,
        kernel_size=(geometry.kernel_size[position],),
        strides=(geometry.strides[position],),
        padding=padding if isinstance(padding, str) else (padding[position],),
        kernel_dilation=(geometry.kernel_dilation[position],),
    )


def of_bins(geometry: Geometry, position: int) -> tuple[Geometry, Geometry]:
    """Returns what gathers the windows of bins, and the convolution along these.

    The second has the channels of all taps of a bin's window.
    """
    gathering, convolving = along(geometry, position), along(geometry, 1 - position)
    (taps,) = gathering.kernel_size
    width = geometry.in_features * taps
    return gathering, dataclasses.replace(convolving, in_features=width)


def frequency_dynamic_conv(
    inputs: Float[jax.Array, "batch frames frequencies in_features"],
    attention: Shaped[jax.Array, "batch bins experts"],
    kernel: Float[jax.Array, "experts *window in_per_group out_features"],
    bias: Float[jax.Array, "experts out_features"] | None = None,
    *,
    axis: str = "frequency",
    strides: int | Sequence[int] | None = 1,
    padding: PaddingLike = "SAME",
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
    implementation: str = "auto",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Float[jax.Array, "batch out_frames out_frequencies out_features"]:
    """Convolves every bin of every sample with a mixture of experts of its own.

    Nam et al., "Frequency Dynamic Convolution", Interspeech 2022, section 3.

    Args:
        inputs: The samples.
        attention: The weight of each expert for each bin of the outputs along `axis`.
        kernel: The experts, of the dtype of `inputs`; or float32 beside narrower
            inputs: they are then rounded to their dtype, and their gradient is not.
        bias: The bias of each expert, or None.
        axis: Where bins differ: `"frequency"`, the last spatial axis, or `"time"`, the
            first.
        strides: An int, or one per spatial dimension.
        padding: `"SAME"`, `"VALID"`, an int, or one int or (low, high) pair per spatial
            dimension.
        kernel_dilation: An int, or one per spatial dimension.
        feature_group_count: It must divide the features of inputs and of outputs.
        implementation: `"experts"`, one convolution to the outputs of all experts; or
            what `dynamic_conv` has besides, for the bins as samples, `"auto"` among
            them. All compute the same.
        precision: As in `jax.lax.conv_general_dilated`.
        preferred_element_type: The dtype of the output and of the sums behind it, as in
            `jax.lax.conv_general_dilated`.

    Returns:
        The outputs.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit, the kernel spans more than the padded input,
            or the axis or the implementation is unknown.

    Example:
        >>> sounds, attention = jnp.ones((2, 9, 6, 4)), jnp.full((2, 6, 3), 1 / 3)
        >>> frequency_dynamic_conv(sounds, attention, jnp.ones((3, 3, 3, 4, 8))).shape
        (2, 9, 6, 8)
    """
    inputs, attention, kernel, bias = take_arrays(
        inputs=inputs, attention=attention, kernel=kernel, bias=bias, optional=("bias",)
    )
    check_choice("axis", axis, AXES)
    position = AXES[axis]
    if inputs.ndim != 4:
        raise ValueError(
            f"`inputs` (shape {inputs.shape}) must be (batch, frames, frequencies, "
            "in_features)"
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
    bins = geometry.output_size(inputs.shape[1:3])[position]
    expected = (inputs.shape[0], bins, kernel.shape[0])
    if attention.shape != expected:
        raise ValueError(
            f"`attention` (shape {attention.shape}) must be (batch, bins, num_experts) "
            f"= {expected}, with the bins of the outputs along `axis` (={axis!r})"
        )
    numerics = Numerics(precision, preferred_element_type).settled

    def convolve(
        inputs: jax.Array, attention: jax.Array, kernel: jax.Array
    ) -> jax.Array:
        operands = inputs, attention, kernel, geometry, position, numerics
        if implementation == "experts":
            return _conv_by_experts(*operands)
        return _conv_by_bins(*operands, implementation)

    outputs = leave_to_partitioner(
        convolve,
        (inputs, attention, kernel),
        of_convolution(inputs, kernel, geometry.output_size(inputs.shape[1:3])),
        stack=kernel,
    )
    if bias is None:
        return outputs
    wide = at_least_float32(bias.dtype)
    own = jnp.matmul(attention.astype(wide), bias.astype(wide), precision=precision)
    return outputs + jnp.expand_dims(own, 2 - position).astype(outputs.dtype)


def _conv_by_experts(
    inputs: jax.Array,
    attention: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    position: int,
    numerics: Numerics,
) -> jax.Array:
    """Convolves once, with the outputs of all experts, and mixes these in each bin."""
    experts, groups = kernel.shape[0], geometry.feature_group_count
    width = geometry.out_features // groups
    # A group's outputs stay together: (*k, C/g, g·K·O/g).
    split = jnp.moveaxis(kernel.reshape(*kernel.shape[:-1], groups, width), 0, -2)
    joined = split.reshape(*kernel.shape[1:-1], -1)
    wide = dataclasses.replace(geometry, out_features=joined.shape[-1])
    outputs = conv_by_one_kernel(inputs, joined, wide, numerics)
    accumulator = at_least_float32(outputs.dtype)
    outputs = outputs.reshape(*outputs.shape[:3], groups, experts, width)
    weights = jnp.expand_dims(attention.astype(accumulator), (2 - position, 3, 5))
    # One by one, so that there is no copy of the products.
    mixed = functools.reduce(
        jnp.add,
        (
            outputs[..., index, :].astype(accumulator) * weights[..., index, :]
            for index in range(experts)
        ),
    )
    mixed = mixed.reshape(*mixed.shape[:3], groups * width)
    return mixed.astype(numerics.output_dtype(inputs.dtype))


def _conv_by_bins(
    inputs: jax.Array,
    attention: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    position: int,
    numerics: Numerics,
    implementation: str,
) -> jax.Array:
    """Convolves along the other axis, with each bin as a sample of its own."""
    if position == 0:  # the bins go last
        inputs, kernel = inputs.swapaxes(1, 2), kernel.swapaxes(1, 2)
    gathering, convolving = of_bins(geometry, position)
    windows = gather_windows(inputs, gathering)  # (B, T, F', k·C)
    batch, frames, bins, _ = windows.shape
    groups, (taps,) = geometry.feature_group_count, gathering.kernel_size
    if groups > 1 and taps > 1:  # a group's channels stay together, of all taps
        width = geometry.in_features // groups
        split = windows.reshape(batch, frames, bins, taps, groups, width)
        windows = split.swapaxes(3, 4).reshape(windows.shape)
    rows = windows.swapaxes(1, 2).reshape(batch * bins, *windows.shape[1::2])
    experts, length, _, width, features = kernel.shape
    outputs = dynamic_conv(
        rows,
        attention.reshape(batch * bins, experts),
        kernel.reshape(experts, length, taps * width, features),
        strides=convolving.strides,
        padding=convolving.padding,
        kernel_dilation=convolving.kernel_dilation,
        feature_group_count=groups,
        implementation=implementation,
        precision=numerics.precision,
        preferred_element_type=numerics.preferred_element_type,
    )
    outputs = outputs.reshape(batch, bins, *outputs.shape[1:])
    return outputs if position == 0 else outputs.swapaxes(1, 2)
