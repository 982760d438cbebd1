"""The dynamic convolution: experts mixed per sample, then applied to that sample.

    W(x_i) = Σ_k a_ik W_k        b(x_i) = Σ_k a_ik b_k        y_i = conv(x_i, W(x_i))

Convolution is linear in its kernel, so the mixture may be taken before the convolution
(one kernel per sample, see `per_sample.py`) or after it (`"experts"`: one dense product
to K·O outputs, then their weighted sum). The second does K times the arithmetic but
never writes a kernel per sample.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.functional.geometry import Geometry, PaddingLike
from dynconv_jax.functional.per_sample import (
    add_bias,
    check_implementation,
    check_operands,
    conv_by_patches,
    per_sample_conv,
)


def mix_kernels(
    attention: jax.Array,
    kernel: jax.Array,
    *,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Mixes K stacked experts into one array per sample, Σ_k a_ik W_k.

    Args:
        attention: Shape (B, K). It is cast to the dtype of `kernel`.
        kernel: Shape (K, ...): kernels, or biases.
        precision: As in `jax.numpy.tensordot`.

    Returns:
        Shape (B, ...), in the dtype of `kernel`.

    Raises:
        ValueError: If the two do not agree on K, or the kernels are not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> mix_kernels(jnp.full((2, 4), 0.25), jnp.ones((4, 3, 3, 8, 16))).shape
        (2, 3, 3, 8, 16)
    """
    if attention.ndim != 2 or attention.shape[1] != kernel.shape[0]:
        raise ValueError(
            f"`attention` (shape {attention.shape}) must be (batch, num_experts) with "
            f"the {kernel.shape[0]} experts of `kernel` (shape {kernel.shape})"
        )
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise ValueError(
            f"`kernel` ({kernel.dtype}) must be floating, to be mixed; cast it to "
            "float32"
        )
    return jnp.tensordot(
        attention.astype(kernel.dtype), kernel, axes=1, precision=precision
    )


def _conv_by_experts(
    inputs: jax.Array,
    attention: jax.Array,
    kernel: jax.Array,
    geometry: Geometry,
    precision: lax.PrecisionLike,
    preferred_element_type: DTypeLike | None,
) -> jax.Array:
    """Applies all experts (K, *k, C/g, O) to all samples, then sums by attention."""
    groups = geometry.feature_group_count
    experts = kernel.shape[0]
    # (K, *k, C/g, g, O/g) -> (*k, C/g, g, K, O/g): a group's outputs stay together.
    width = geometry.out_features // groups
    split = kernel.reshape(*kernel.shape[:-1], groups, width)
    stacked = jnp.moveaxis(split, 0, -2).reshape(*geometry.kernel_shape[:-1], -1)
    wide = Geometry(
        in_features=geometry.in_features,
        out_features=experts * geometry.out_features,
        kernel_size=geometry.kernel_size,
        strides=geometry.strides,
        padding=geometry.padding,
        kernel_dilation=geometry.kernel_dilation,
        feature_group_count=groups,
    )
    outputs = conv_by_patches(inputs, stacked, wide, precision, preferred_element_type)
    outputs = outputs.reshape(*outputs.shape[:-1], groups, experts, width)
    weights = attention.astype(outputs.dtype).reshape(
        attention.shape[0], *(1,) * (geometry.rank + 1), experts, 1
    )
    # Slices multiplied and added fuse into one pass; an einsum would not.
    mixed = weights[..., 0, :] * outputs[..., 0, :]
    for expert in range(1, experts):
        mixed += weights[..., expert, :] * outputs[..., expert, :]
    return mixed.reshape(*mixed.shape[:-2], geometry.out_features)


def dynamic_conv(
    inputs: jax.Array,
    attention: jax.Array,
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
    """Convolves every sample with its own mixture of K experts.

    Args:
        inputs: Shape (B, *S, C), with 1, 2 or 3 spatial dimensions.
        attention: Shape (B, K), the weight of each expert for each sample. The rows
            need not sum to 1.
        kernel: Shape (K, *k, C/g, O), of the dtype of `inputs`.
        bias: Shape (K, O), or None.
        strides: An int, or one per spatial dimension.
        padding: `"SAME"`, `"VALID"`, an int, or one int or (low, high) pair per spatial
            dimension.
        kernel_dilation: An int, or one per spatial dimension.
        feature_group_count: g; it must divide C and O.
        implementation: `"auto"`, `"patches"`, `"experts"` or `"vmap"`. All compute the
            same.
        precision: As in `jax.lax.conv_general_dilated`.
        preferred_element_type: The dtype of the output and of the sums behind it, as in
            `jax.lax.conv_general_dilated`.

    Returns:
        Shape (B, *S_out, O).

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes do not fit, the kernel spans more than the padded input,
            or the implementation is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> attention = jnp.array([[0.7, 0.3], [0.1, 0.9]])
        >>> experts = jnp.ones((2, 3, 4, 8))
        >>> dynamic_conv(jnp.ones((2, 10, 4)), attention, experts).shape
        (2, 10, 8)
    """
    check_implementation(implementation)
    options: dict[str, Any] = dict(
        strides=strides,
        padding=padding,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
    )
    geometry = check_operands(
        inputs,
        kernel,
        bias,
        stack="num_experts",
        stack_size=kernel.shape[0] if kernel.ndim else 0,
        **options,
    )
    expected = (inputs.shape[0], kernel.shape[0])
    if attention.shape != expected:
        raise ValueError(
            f"`attention` (shape {attention.shape}) must be (batch, num_experts) = "
            f"{expected}"
        )
    if bias is not None:
        bias = mix_kernels(attention, bias, precision=precision)
    if implementation == "experts":
        outputs = _conv_by_experts(
            inputs, attention, kernel, geometry, precision, preferred_element_type
        )
        return add_bias(outputs, bias)
    return per_sample_conv(
        inputs,
        mix_kernels(attention, kernel, precision=precision),
        bias,
        implementation=implementation,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **options,
    )
