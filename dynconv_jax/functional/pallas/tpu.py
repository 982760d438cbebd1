"""`"pallas"`: kernels of our own for TPUs, that mix the experts on the chip.

Every other form writes a kernel, or windows, for each sample to memory. Here the
experts are loaded once, mixed for a sample where they are, and applied to it; the
gradient of the experts is summed over the batch in the same place.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.pallas import tpu_dense, tpu_depthwise, tpu_experts
from dynconv_jax.functional.pallas.refusals import every_kernel_refuses
from dynconv_jax.functional.pallas.tpu_layer import (
    VMEM_BYTES,
    Layer,
    rounded_up,
    sublanes,
)
from dynconv_jax.functional.pallas.tpu_plan import cycles as cycles_of_mixing
from dynconv_jax.functional.pallas.tpu_plan import has_room
from dynconv_jax.functional.sharding import manual_axes, vary_alike
from dynconv_jax.functional.windows import pad_spatial, window_slice

_PLAIN = Numerics()
_REMEDY = 'use `implementation="patches"`'


def pallas_refuses(
    geometry: Geometry,
    shape: Sequence[Any],
    num_experts: int,
    dtype: DTypeLike,
    *,
    numerics: Numerics = _PLAIN,
    spatial_attention: bool = False,
    device_count: int = 1,
) -> str | None:
    """Says why this form cannot compute a dynamic convolution.

    Args:
        geometry: The convolution.
        shape: The shape (B, *S, C) of the inputs.
        num_experts: K.
        dtype: The dtype of the inputs.
        numerics: The numerical options.
        spatial_attention: Whether taps have weights of their own.
        device_count: Over how many devices the batch may be spread, where the program
            is left to XLA's partitioner; inside `jax.shard_map` it is 1.

    Returns:
        The reason, to be read behind the form's name; None where it can.

    Example:
        >>> geometry = Geometry.create(64, 64, (3, 3))
        >>> pallas_refuses(geometry, (8, 28, 28, 64), 4, "float64")
        'computes in bfloat16 and float32, not in float64'
        >>> pallas_refuses(geometry, (8, 28, 28, 64), 4, "bfloat16") is None
        True
    """
    dtype = jnp.dtype(dtype)
    reason = every_kernel_refuses(geometry, shape, device_count)
    if reason is not None:
        return reason
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"computes in bfloat16 and float32, not in {dtype}"
    if numerics.output_dtype(dtype) != dtype:
        return (
            f"sums in float32 and returns {dtype} for inputs of {dtype}, not "
            f"{numerics.output_dtype(dtype)}"
        )
    if spatial_attention:
        return "has no weights for single taps"
    if geometry.feature_group_count > 1:
        return _depthwise_refuses(geometry, tuple(shape), dtype)
    if max(geometry.strides) > 1 and max(geometry.kernel_dilation) > 1:
        return "takes strides or dilation, not both"
    batch, experts = shape[0], _filled_experts(geometry, num_experts, dtype)
    layer = _layer(geometry, shape[1:-1], numerics, interpret=False)
    if not tpu_experts.takes(layer, batch, experts, dtype) and not has_room(
        layer, batch, experts, dtype
    ):
        return (
            "keeps an image and the experts in a core's memory and unrolls their "
            f"products: {num_experts} of {'×'.join(map(str, geometry.kernel_shape))} "
            f"on {'×'.join(map(str, shape[1:-1]))} pixels are too much"
        )
    return None


def _filled_experts(
    geometry: Geometry, num_experts: int, dtype: Any
) -> tuple[int, ...]:
    """Returns the shape of the experts with channels that fill whole tiles."""
    unit = sublanes(dtype)
    widths = (rounded_up(width, unit) for width in geometry.kernel_shape[2:])
    return (num_experts, *geometry.kernel_size, *widths)


def estimated_cycles(
    geometry: Geometry, shape: Sequence[int], num_experts: int, dtype: DTypeLike
) -> float:
    """Estimates what a dense convolution that is not refused takes of a v5e.

    Args:
        geometry: The convolution.
        shape: The shape (B, H, W, C) of the inputs.
        num_experts: K.
        dtype: The dtype of the inputs.

    Returns:
        The cycles, forward and backward, of the kernels that take it.
    """
    dtype = jnp.dtype(dtype)
    experts = _filled_experts(geometry, num_experts, dtype)
    layer = _layer(geometry, shape[1:-1], _PLAIN, interpret=False)
    mixed = cycles_of_mixing(layer, experts, dtype)
    of_sample = sum(mixed)
    if tpu_experts.takes(layer, shape[0], experts, dtype):
        of_sample = sum(tpu_experts.cycles(layer, experts))
    return shape[0] * of_sample


def _depthwise_refuses(
    geometry: Geometry, shape: tuple[int, ...], dtype: Any
) -> str | None:
    if tpu_depthwise.memory(geometry, shape, dtype) > VMEM_BYTES:
        return (
            "keeps images of a few samples in a core's memory, which has no room for "
            f"{'×'.join(map(str, shape[1:-1]))} pixels"
        )
    return None


def arrange(kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Lays out experts (K, *k, C, O): as they are, for they lie as the kernels want."""
    del geometry
    return kernel


def _layer(
    geometry: Geometry, spatial: Sequence[int], numerics: Numerics, *, interpret: bool
) -> Layer:
    return Layer(
        window=_pair(geometry.kernel_size),
        strides=_pair(geometry.strides),
        dilation=_pair(geometry.kernel_dilation),
        low=_pair([low for low, _ in geometry.pads(spatial)]),
        inputs=_pair(spatial),
        outputs=_pair(geometry.output_size(spatial)),
        precision=_mosaic_precision(numerics.precision),
        interpret=interpret,
    )


def _mosaic_precision(precision: Any) -> lax.Precision | None:
    """Returns the one of the two precisions of Mosaic that is no less than asked."""
    named = precision if isinstance(precision, tuple) else (precision,)
    wide = {lax.Precision.HIGH, lax.Precision.HIGHEST}
    known = (None if each is None else lax.Precision(each) for each in named)
    return lax.Precision.HIGHEST if wide & set(known) else None


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second


def _pad_end(array: jax.Array, *missing: int) -> jax.Array:
    """Fills axes up with zeros at their ends."""
    if not any(missing):
        return array
    return jnp.pad(array, [(0, each) for each in missing])


def convolve(
    inputs: Float[jax.Array, "batch height width in_features"],
    attention: Shaped[jax.Array, "batch experts"],
    arranged: Float[jax.Array, "experts rows columns in_per_group out_features"],
    geometry: Geometry,
    numerics: Numerics,
    *,
    interpret: bool = False,
) -> Float[jax.Array, "batch out_height out_width out_features"]:
    """Convolves every sample with its own mixture of experts, mixed on the chip.

    It has a gradient rule of its own, for reverse mode, and for one derivative. Mixed
    kernels are rounded to the dtype of the inputs; sums, those of the experts' gradient
    too, are float32.

    Args:
        inputs: The samples, bfloat16 or float32.
        attention: The weights of the experts.
        arranged: From `arrange`, in the dtype of the inputs.
        geometry: The convolution, one that `pallas_refuses` does not refuse.
        numerics: Its numerical options.
        interpret: Whether to run on the host in place of a TPU, slowly, for tests.

    Returns:
        The outputs.

    Raises:
        ValueError: If the form cannot compute this; the message says why.
        NotImplementedError: If it is differentiated twice.

    Example:
        >>> geometry = Geometry.create(8, 8, (1, 1))
        >>> images, experts = jnp.ones((2, 4, 4, 8)), jnp.ones((3, 1, 1, 8, 8))
        >>> attention = jnp.ones((2, 3))
        >>> y = convolve(
        ...     images, attention, arrange(experts, geometry), geometry, Numerics(),
        ...     interpret=True,
        ... )
        >>> y.shape, float(y[0, 0, 0, 0])
        ((2, 4, 4, 8), 24.0)
    """
    reason = pallas_refuses(
        geometry, inputs.shape, arranged.shape[0], inputs.dtype, numerics=numerics
    )
    if reason is not None:
        raise ValueError(f"this form {reason}; {_REMEDY}")
    if manual_axes(inputs) is not None:
        # What is summed over devices is then the gradient before it is rounded.
        arranged = arranged.astype(jnp.float32)
    inputs, attention, arranged = vary_alike(inputs, attention, arranged)
    inputs, geometry = _cropped(inputs, geometry)
    if geometry.is_depthwise and geometry.feature_group_count > 1:
        return _convolve_depthwise(inputs, attention, arranged, geometry, interpret)
    if geometry.kernel_size == (1, 1) and max(geometry.strides) > 1:
        # What no window sees is left out before, not folded in.
        inputs, geometry = _strided(inputs, geometry)
    layer = _layer(geometry, inputs.shape[1:-1], numerics, interpret=interpret)
    # Channels are filled up to whole tiles, which takes nothing where they are.
    unit = sublanes(inputs.dtype)
    features, width = (
        rounded_up(each, unit) - each
        for each in (geometry.in_features, geometry.out_features)
    )
    outputs: jax.Array = _convolve(
        layer,
        _pad_end(inputs, 0, 0, 0, features),
        attention,
        _pad_end(arranged, 0, 0, 0, features, width),
    )
    return outputs[..., : geometry.out_features]


def _cropped(inputs: jax.Array, geometry: Geometry) -> tuple[jax.Array, Geometry]:
    """Cuts off what negative padding crops; the padding is given in numbers then."""
    pads = geometry.pads(inputs.shape[1:-1])
    left = tuple((max(low, 0), max(high, 0)) for low, high in pads)
    cuts = [(min(low, 0), min(high, 0)) for low, high in pads]
    return pad_spatial(inputs, cuts), dataclasses.replace(geometry, padding=left)


def _convolve_depthwise(inputs, attention, experts, geometry, interpret):
    """Mixes experts as they are few, and convolves with the batch inside."""
    taps = experts.reshape(experts.shape[0], geometry.taps, geometry.out_features)
    mixed = jnp.einsum(
        "bk,kto->tbo", attention.astype(jnp.float32), taps.astype(jnp.float32)
    )
    outputs = _convolve_taps(geometry, interpret, _batch_inside(inputs), mixed)
    return _batch_first(outputs)


def _strided(inputs: jax.Array, geometry: Geometry) -> tuple[jax.Array, Geometry]:
    spatial = inputs.shape[1:-1]
    padded = pad_spatial(inputs, geometry.pads(spatial))
    size = geometry.output_size(spatial)
    seen = window_slice(padded, (0, 0), size, geometry.strides)
    return seen, dataclasses.replace(geometry, strides=(1, 1), padding="VALID")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(layer, inputs, attention, experts):
    experts = experts.astype(inputs.dtype)
    if not _has_few_pixels(layer, inputs, experts):
        return tpu_dense.forward(layer, inputs, attention, experts)
    inner = _batch_inside(inputs)
    return _batch_first(tpu_experts.forward(layer, inner, attention, experts))


def _has_few_pixels(layer, inputs, experts):
    batch, dtype = inputs.shape[0], inputs.dtype
    return tpu_experts.takes(layer, batch, experts.shape, dtype)


def _batch_inside(images):
    return jnp.transpose(images, (1, 2, 0, 3))


def _batch_first(images):
    return jnp.transpose(images, (2, 0, 1, 3))


def _forward(layer, inputs, attention, experts):
    saved = inputs, attention, experts
    return _convolve(layer, *saved), saved


def _backward(layer, saved, cotangent):
    def backward(inputs, attention, experts, cotangent):
        narrow = experts.astype(inputs.dtype)
        if not _has_few_pixels(layer, inputs, experts):
            return tpu_dense.backward(layer, inputs, attention, narrow, cotangent)
        of_inputs, *others = tpu_experts.backward(
            *(layer, _batch_inside(inputs), attention, narrow),
            _batch_inside(cotangent),
            experts.dtype,
        )
        return _batch_first(of_inputs), *others

    return _gradients(backward, saved, (*saved, cotangent))


_convolve.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve_taps(geometry, interpret, inputs, kernel):
    return tpu_depthwise.forward(geometry, interpret, inputs, kernel)


def _forward_taps(geometry, interpret, inputs, kernel):
    return _convolve_taps(geometry, interpret, inputs, kernel), (inputs, kernel)


def _backward_taps(geometry, interpret, saved, cotangent):
    backward = functools.partial(tpu_depthwise.backward, geometry, interpret)
    return _gradients(backward, saved, (*saved, cotangent))


_convolve_taps.defvjp(_forward_taps, _backward_taps)


def _gradients(backward, operands, arguments):
    """Returns gradients in the dtypes of the operands; once, or it is refused."""
    once = jax.custom_jvp(lambda *arguments: backward(*arguments))
    once.defjvp(_refuse_second_derivative)
    return tuple(
        gradient.astype(operand.dtype)
        for gradient, operand in zip(once(*arguments), operands, strict=True)
    )


def _refuse_second_derivative(primals, tangents):
    raise NotImplementedError(
        f"the gradient of this form cannot be differentiated again; {_REMEDY}"
    )
