"""The per-sample convolution: every sample of a batch with a kernel of its own.

    y_i = conv(x_i, W_i) + b_i

Two equivalent forms. `"vmap"` maps XLA's own convolution over the batch, which is how
one would write it down; XLA turns that into a convolution with B·g groups, and the
gradient of such a convolution is slow, hungry and impossible to export with a free
batch size. `"patches"` gathers the windows of a sample side by side and contracts them
with the sample's kernel; mapped over the batch this is one batched matrix product,
forward and backward, and so it is the form behind `"auto"`.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.functional.geometry import Geometry, PaddingLike

IMPLEMENTATIONS = ("auto", "patches", "experts", "vmap")


def check_implementation(implementation: str) -> None:
    """Raises a ValueError unless `implementation` is one of `IMPLEMENTATIONS`."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"`implementation` (={implementation!r}) must be one of "
            f"{', '.join(map(repr, IMPLEMENTATIONS))}"
        )


def check_operands(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    *,
    stack: str,
    stack_size: int,
    **options,
) -> Geometry:
    """Checks stacked kernels against inputs and returns their common geometry.

    Args:
        inputs: Shape (B, *S, C).
        kernel: Shape (stack_size, *k, C/g, O).
        bias: Shape (stack_size, O), or None.
        stack: What the leading axis of the kernel is, for the messages.
        stack_size: The size that axis must have.
        **options: `strides`, `padding`, `kernel_dilation`, `feature_group_count`.

    Raises:
        ValueError: If shapes or dtypes do not fit one another.
    """
    rank = inputs.ndim - 2
    if not 1 <= rank <= 3:
        raise ValueError(
            f"`inputs` (shape {inputs.shape}) must be (batch, *spatial, features) with "
            "1, 2 or 3 spatial dimensions"
        )
    if kernel.ndim != rank + 3:
        raise ValueError(
            f"`kernel` (shape {kernel.shape}) must be ({stack}, *kernel_size, "
            f"in_features / feature_group_count, out_features): {rank + 3} dimensions "
            f"for `inputs` of shape {inputs.shape}"
        )
    geometry = Geometry.create(
        inputs.shape[-1], kernel.shape[-1], kernel.shape[1:-2], **options
    )
    if kernel.shape != (stack_size, *geometry.kernel_shape):
        raise ValueError(
            f"`kernel` (shape {kernel.shape}) must have the shape "
            f"{(stack_size, *geometry.kernel_shape)}, that is ({stack}, *kernel_size, "
            "in_features / feature_group_count, out_features), for `inputs` of shape "
            f"{inputs.shape} and `feature_group_count` "
            f"(={geometry.feature_group_count})"
        )
    if bias is not None and bias.shape != (stack_size, geometry.out_features):
        raise ValueError(
            f"`bias` (shape {bias.shape}) must be ({stack}, out_features) = "
            f"{(stack_size, geometry.out_features)}"
        )
    if inputs.dtype != kernel.dtype:
        raise ValueError(
            f"`inputs` ({inputs.dtype}) and `kernel` ({kernel.dtype}) must have the "
            "same dtype; cast one to the other"
        )
    geometry.output_size(inputs.shape[1:-1])
    return geometry


def gather_patches(inputs: jax.Array, geometry: Geometry) -> jax.Array:
    """Lays the windows of a convolution side by side on the channel axis.

    Args:
        inputs: Shape (..., *S, C).
        geometry: The convolution whose windows are gathered.

    Returns:
        Shape (..., *S_out, taps·C), the taps in row-major order, channels innermost.
    """
    batch = inputs.shape[: -geometry.rank - 1]
    spatial = inputs.shape[-geometry.rank - 1 : -1]
    output_size = geometry.output_size(spatial)
    untouched = ((0, 0, 0),) * len(batch)
    pads = tuple((low, high, 0) for low, high in geometry.pads(spatial))
    zero = jnp.zeros((), inputs.dtype)
    padded = lax.pad(inputs, zero, (*untouched, *pads, (0, 0, 0)))

    slices = []
    for tap in itertools.product(*map(range, geometry.kernel_size)):
        window = [slice(None)] * padded.ndim
        for axis, (offset, dilation, size, stride) in enumerate(
            zip(
                tap,
                geometry.kernel_dilation,
                output_size,
                geometry.strides,
                strict=True,
            ),
            start=len(batch),
        ):
            start = offset * dilation
            window[axis] = slice(start, start + (size - 1) * stride + 1, stride)
        slices.append(padded[tuple(window)])
    return lax.concatenate(slices, padded.ndim - 1)


def conv_by_patches(
    inputs: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    precision: lax.PrecisionLike,
    preferred_element_type: DTypeLike | None,
) -> jax.Array:
    """Convolves `inputs` with one kernel, as a product of gathered patches.

    Args:
        inputs: Shape (..., *S, C).
        kernel: Shape (*k, C/g, O).
        geometry: The convolution.
        precision: As in `jax.lax.dot_general`.
        preferred_element_type: As in `jax.lax.dot_general`.

    Returns:
        Shape (..., *S_out, O).
    """
    patches = gather_patches(inputs, geometry)
    groups = geometry.feature_group_count
    outer = patches.shape[:-1]
    # One group is the same contraction with the group axis left out, so that XLA sees
    # a plain matrix product.
    if groups == 1:
        operands = patches, kernel.reshape(-1, geometry.out_features)
        subscripts = "...p,po->...o"
    else:
        taps, width = geometry.taps, geometry.in_features // groups
        operands = (
            patches.reshape(*outer, taps, groups, width),
            kernel.reshape(taps, width, groups, geometry.out_features // groups),
        )
        subscripts = "...tgc,tcgo->...go"
    outputs = jnp.einsum(
        subscripts,
        *operands,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return outputs.reshape(*outer, geometry.out_features)


def conv_by_lax(
    inputs: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    precision: lax.PrecisionLike,
    preferred_element_type: DTypeLike | None,
) -> jax.Array:
    """Convolves one sample (*S, C) with one kernel (*k, C/g, O), by XLA's own."""
    spatial = "DHW"[-geometry.rank :]
    return lax.conv_general_dilated(
        inputs[None],
        kernel,
        window_strides=geometry.strides,
        padding=geometry.pads(inputs.shape[:-1]),
        rhs_dilation=geometry.kernel_dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=geometry.feature_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )[0]


def add_bias(outputs: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Adds a bias (B, O) to outputs (B, *S, O)."""
    if bias is None:
        return outputs
    spatial = tuple(range(1, outputs.ndim - 1))
    return outputs + jnp.expand_dims(bias.astype(outputs.dtype), spatial)


def per_sample_conv(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: int | Sequence[int] | None = 1,
    padding: PaddingLike = "SAME",
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
    implementation: str = "auto",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> jax.Array:
    """Convolves every sample with its own kernel.

    Args:
        inputs: Shape (B, *S, C), with 1, 2 or 3 spatial dimensions.
        kernel: Shape (B, *k, C/g, O), of the same dtype.
        bias: Shape (B, O), or None.
        strides: An int, or one per spatial dimension.
        padding: `"SAME"`, `"VALID"`, an int, or one int or (low, high) pair per spatial
            dimension.
        kernel_dilation: An int, or one per spatial dimension.
        feature_group_count: g; it must divide C and O.
        implementation: `"auto"`, `"patches"` or `"vmap"`; the module's docstring says
            how they differ. All compute the same.
        precision: As in `jax.lax.conv_general_dilated`.
        preferred_element_type: The dtype of the output and of the sums behind it, as in
            `jax.lax.conv_general_dilated`.

    Returns:
        Shape (B, *S_out, O).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit, the kernel spans more than the padded input,
            or the implementation is unknown or is `"experts"`, which needs the
            attention (see `dynamic_conv`).

    Example:
        >>> import jax.numpy as jnp
        >>> images = jnp.ones((2, 9, 7, 4))
        >>> kernels = jnp.ones((2, 3, 3, 4, 8))
        >>> per_sample_conv(images, kernels, strides=2, padding=1).shape
        (2, 5, 4, 8)
    """
    check_implementation(implementation)
    if implementation == "experts":
        raise ValueError(
            "`implementation` (='experts') sums the outputs of all experts and so "
            "needs their attention; call `dynamic_conv`, or use 'patches' or 'vmap'"
        )
    geometry = check_operands(
        inputs,
        kernel,
        bias,
        stack="batch",
        stack_size=inputs.shape[0],
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
    )
    conv = conv_by_lax if implementation == "vmap" else conv_by_patches
    outputs = jax.vmap(
        lambda sample, own_kernel: conv(
            sample, own_kernel, geometry, precision, preferred_element_type
        )
    )(inputs, kernel)
    return add_bias(outputs, bias)
