"""A convolution that `jax.vmap` maps well, whatever it is mapped over.

With one kernel it is XLA's convolution. Mapped over kernels, as for an ensemble, a
hypernetwork or the gradients of single examples, XLA's becomes one convolution with a
group for each kernel, and so do its gradients; this one becomes batched products, or a
loop (`bilinear.py`, `stacks.py`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Shaped

from dynconv_jax.functional.bilinear import convolve
from dynconv_jax.functional.checks import take_arrays
from dynconv_jax.functional.conv_geometry import ConvGeometry
from dynconv_jax.functional.conv_operation import channels_last
from dynconv_jax.functional.geometry import PaddingLike
from dynconv_jax.functional.numerics import Numerics


def conv(
    inputs: Shaped[jax.Array, "batch *spatial in_features"],
    kernel: Shaped[jax.Array, "*window in_per_group out_features"],
    *,
    strides: int | Sequence[int] | None = 1,
    padding: PaddingLike = "SAME",
    input_dilation: int | Sequence[int] | None = 1,
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> Shaped[jax.Array, "batch *out_spatial out_features"]:
    """Convolves all samples with one kernel, and maps well over kernels.

    It is `jax.lax.conv_general_dilated` in the terms of `nnx.Conv`, and the same
    program as long as nothing is mapped over the kernel. Under `jax.vmap`, over inputs,
    kernel or both, it and its gradients become wider convolutions, batched products or
    loops, and never have a group for each kernel. Derivatives of any order and in
    either mode are of the same kind.

    Args:
        inputs: The samples, with 1, 2 or 3 spatial dimensions.
        kernel: The kernel, of the same dtype.
        strides: An int, or one per spatial dimension.
        padding: `"SAME"`, `"SAME_LOWER"`, `"VALID"`, an int, or one int or (low, high)
            pair per spatial dimension.
        input_dilation: An int, or one per spatial dimension. With more than 1 the
            padding must be numbers.
        kernel_dilation: An int, or one per spatial dimension.
        feature_group_count: It must divide the features of inputs and of outputs.
        precision: As in `jax.lax.conv_general_dilated`.
        preferred_element_type: The dtype of the output and of the sums behind it, as in
            `jax.lax.conv_general_dilated`.

    Returns:
        The outputs.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If shapes or dtypes do not fit one another, a value is out of range,
            or the kernel spans more than the padded input.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images, kernels = jnp.ones((8, 16, 9, 7, 4)), jnp.ones((8, 3, 3, 4, 6))
        >>> jax.vmap(conv)(images, kernels).shape  # eight models, each its own images
        (8, 16, 9, 7, 6)
    """
    inputs, kernel = take_arrays(inputs=inputs, kernel=kernel)
    geometry = _check(
        inputs,
        kernel,
        strides=strides,
        padding=padding,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
    )
    numerics = Numerics(precision, preferred_element_type)
    return convolve(inputs, kernel, geometry, numerics.settled)


def _check(inputs: jax.Array, kernel: jax.Array, **options: Any) -> ConvGeometry:
    """Checks operands against one another and returns their geometry."""
    rank = inputs.ndim - 2
    if not 1 <= rank <= 3:
        raise ValueError(
            f"`inputs` (shape {inputs.shape}) must be (batch, *spatial, features) with "
            "1, 2 or 3 spatial dimensions; map over further ones by `jax.vmap`"
        )
    if kernel.ndim != rank + 2:
        raise ValueError(
            f"`kernel` (shape {kernel.shape}) must be (*kernel_size, in_features / "
            f"feature_group_count, out_features): {rank + 2} dimensions for `inputs` "
            f"of shape {inputs.shape}; map over kernels by `jax.vmap`"
        )
    geometry = ConvGeometry.create(
        inputs.shape[-1], kernel.shape[-1], kernel.shape[:-2], **options
    )
    if kernel.shape != geometry.kernel_shape:
        raise ValueError(
            f"`kernel` (shape {kernel.shape}) must have the shape "
            f"{geometry.kernel_shape}, for `inputs` of shape {inputs.shape} and "
            f"`feature_group_count` (={geometry.feature_group_count})"
        )
    if inputs.dtype != kernel.dtype:
        raise ValueError(
            f"`inputs` ({inputs.dtype}) and `kernel` ({kernel.dtype}) must have the "
            "same dtype; cast one to the other"
        )
    geometry.output_size(inputs.shape[1:-1])
    return geometry


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> jax.Array:
    """Convolves as `conv`, by the arguments of `jax.lax.conv_general_dilated`.

    It is for what takes such a function, as `nnx.Conv` does by the argument of that
    name. What has its channels elsewhere than last, is complex, or is to be sharded in
    a way of its own, is left to XLA's convolution.

    Example:
        >>> from flax import nnx
        >>> layer = nnx.Conv(
        ...     *(3, 8, (3, 3)),
        ...     conv_general_dilated=conv_general_dilated,
        ...     rngs=nnx.Rngs(0),
        ... )
    """
    shapes = lhs.shape, rhs.shape
    is_last = lax.conv_dimension_numbers(
        *shapes, dimension_numbers
    ) == lax.conv_dimension_numbers(*shapes, channels_last(lhs.ndim - 2))
    is_real = not jnp.iscomplexobj(lhs) and not jnp.iscomplexobj(rhs)
    if not is_last or out_sharding is not None or not is_real:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count=feature_group_count,
            precision=precision,
            preferred_element_type=preferred_element_type,
            out_sharding=out_sharding,
        )
    return conv(
        lhs,
        rhs,
        strides=tuple(window_strides),
        padding=padding if isinstance(padding, str) else tuple(padding),
        input_dilation=lhs_dilation,
        kernel_dilation=rhs_dilation,
        feature_group_count=feature_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
