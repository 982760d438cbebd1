"""`"pallas"`: kernels of our own for TPUs, that mix the experts on the chip.

Every other form writes a kernel, or windows, for each sample to memory. Here the
experts are loaded once, mixed for a sample where they are, and applied to it; the
gradient of the experts is summed over the batch in the same place. A stride is folded
into the channels first: s² neighbouring pixels are one, which every s-th window sees.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from dynconv_jax.functional import (
    pallas_dense,
    pallas_depthwise,
    pallas_experts,
)
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.pallas_dense import Layer
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
    if geometry.rank != 2:
        return f"is for 2 spatial dimensions, not {geometry.rank}"
    if not all(isinstance(size, int) for size in shape):
        return f"must know all sizes, not {', '.join(map(str, shape))}"
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"computes in bfloat16 and float32, not in {dtype}"
    if numerics.output_dtype(dtype) != dtype:
        return (
            f"sums in float32 and returns {dtype} for inputs of {dtype}, not "
            f"{numerics.output_dtype(dtype)}"
        )
    if spatial_attention:
        return "has no weights for single taps"
    if device_count > 1:
        return (
            "is a kernel that XLA cannot divide over devices; call it inside "
            "`jax.shard_map`"
        )
    if geometry.feature_group_count > 1:
        return _depthwise_refuses(geometry, tuple(shape), dtype)
    if max(geometry.strides) > 1 and max(geometry.kernel_dilation) > 1:
        return "takes strides or dilation, not both"
    problem = _fold(geometry, shape, dtype)
    experts = (num_experts, *problem.window, problem.features, problem.outputs)
    layer = problem.layer(numerics, interpret=False)
    batch = shape[0]
    if not pallas_experts.takes(layer, batch, experts, dtype) and (
        pallas_dense.forward_tiles(layer, batch, experts, dtype) is None
        or pallas_dense.backward_tiles(layer, batch, experts, dtype) is None
    ):
        return (
            "keeps an image and the experts in a core's memory, which has no room for "
            f"{num_experts} of {'×'.join(map(str, geometry.kernel_shape))}"
        )
    return None


def _depthwise_refuses(
    geometry: Geometry, shape: tuple[int, ...], dtype: Any
) -> str | None:
    if (
        not geometry.in_features
        == geometry.out_features
        == geometry.feature_group_count
    ):
        return (
            "is for dense convolutions, or depthwise with as many outputs as inputs, "
            f"not for {geometry.feature_group_count} groups of "
            f"{geometry.in_features}→{geometry.out_features} channels"
        )
    if pallas_depthwise.memory(geometry, shape, dtype) > pallas_dense.VMEM_BYTES:
        return (
            "keeps images of a few samples in a core's memory, which has no room for "
            f"{'×'.join(map(str, shape[1:-1]))} pixels"
        )
    return None


def arrange(kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Lays out experts (K, *k, C, O): as they are, for they lie as the kernels want."""
    del geometry
    return kernel


@dataclasses.dataclass(frozen=True)
class _Folded:
    """A convolution of stride 1 that computes one of any stride.

    Attributes:
        block: How many pixels of each axis are one.
        skip: How many taps of zero stand before the kernel's.
        window: The size of the kernel, in blocks.
        low: The padding before the image, in blocks.
        inputs: The size of the image, in blocks.
        outputs_size: The size of the result.
        dilation: The step between the taps.
        features: The channels of a block, filled up to whole tiles.
        outputs: The channels of the result, filled up likewise.
    """

    block: tuple[int, int]
    skip: tuple[int, int]
    window: tuple[int, int]
    low: tuple[int, int]
    inputs: tuple[int, int]
    outputs_size: tuple[int, int]
    dilation: tuple[int, int]
    features: int
    outputs: int

    def layer(self, numerics: Numerics, *, interpret: bool) -> Layer:
        return Layer(
            window=self.window,
            dilation=self.dilation,
            low=self.low,
            inputs=self.inputs,
            outputs=self.outputs_size,
            precision=_mosaic_precision(numerics.precision),
            interpret=interpret,
        )


def _mosaic_precision(precision: Any) -> lax.Precision | None:
    """Returns the one of the two precisions of Mosaic that is no less than asked."""
    named = precision if isinstance(precision, tuple) else (precision,)
    wide = {lax.Precision.HIGH, lax.Precision.HIGHEST}
    known = (None if each is None else lax.Precision(each) for each in named)
    return lax.Precision.HIGHEST if wide & set(known) else None


def _fold(geometry: Geometry, shape: Sequence[int], dtype: Any) -> _Folded:
    spatial = shape[1:-1]
    axes = zip(
        geometry.kernel_size,
        geometry.strides,
        spatial,
        geometry.pads(spatial),
        strict=True,
    )
    skips, windows, lows, sizes = [], [], [], []
    for taps, stride, size, (low, _) in axes:
        blocks = -(-low // stride)
        lows.append(blocks)
        skips.append(blocks * stride - low)
        windows.append(-(-(skips[-1] + taps) // stride))
        sizes.append(-(-size // stride))
    unit = pallas_dense.sublanes(dtype)
    features = geometry.in_features * math.prod(geometry.strides)
    return _Folded(
        block=_pair(geometry.strides),
        skip=_pair(skips),
        window=_pair(windows),
        low=_pair(lows),
        inputs=_pair(sizes),
        outputs_size=_pair(geometry.output_size(spatial)),
        dilation=_pair(geometry.kernel_dilation),
        features=pallas_dense.rounded_up(features, unit),
        outputs=pallas_dense.rounded_up(geometry.out_features, unit),
    )


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second


def _fold_inputs(inputs: jax.Array, folded: _Folded) -> jax.Array:
    batch, *spatial, features = inputs.shape
    (tall, wide), (rows, columns) = folded.block, folded.inputs
    if folded.block != (1, 1):
        blocks = (rows * tall - spatial[0], columns * wide - spatial[1])
        filled = _pad_end(inputs, 0, *blocks, 0)
        split = filled.reshape(batch, rows, tall, columns, wide, features)
        inputs = split.transpose(0, 1, 3, 2, 4, 5)
        inputs = inputs.reshape(batch, rows, columns, tall * wide * features)
    return _pad_end(inputs, 0, 0, 0, folded.features - inputs.shape[-1])


def _fold_experts(experts: jax.Array, folded: _Folded) -> jax.Array:
    num_experts, *taps, features, outputs = experts.shape
    if folded.block != (1, 1):
        (tall, wide), (rows, columns) = folded.block, folded.window
        pads = [(0, 0)]
        for axis in range(2):
            whole = folded.window[axis] * folded.block[axis]
            skip = folded.skip[axis]
            pads.append((skip, whole - skip - taps[axis]))
        filled = jnp.pad(experts, (*pads, (0, 0), (0, 0)))
        split = filled.reshape(
            num_experts, rows, tall, columns, wide, features, outputs
        )
        experts = split.transpose(0, 1, 3, 2, 4, 5, 6)
        experts = experts.reshape(
            num_experts, rows, columns, tall * wide * features, outputs
        )
    missing = folded.features - experts.shape[-2], folded.outputs - outputs
    return _pad_end(experts, 0, 0, 0, *missing)


def _pad_end(array: jax.Array, *missing: int) -> jax.Array:
    """Fills axes up with zeros at their ends."""
    if not any(missing):
        return array
    return jnp.pad(array, [(0, each) for each in missing])


def convolve(
    inputs: jax.Array,
    attention: jax.Array,
    arranged: jax.Array,
    geometry: Geometry,
    numerics: Numerics,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Convolves every sample with its own mixture of experts, mixed on the chip.

    It has a gradient rule of its own, for reverse mode, and for one derivative. Mixed
    kernels are rounded to the dtype of the inputs; sums, those of the experts' gradient
    too, are float32.

    Args:
        inputs: Shape (B, H, W, C), bfloat16 or float32.
        attention: Shape (B, K).
        arranged: From `arrange`, in the dtype of the inputs.
        geometry: The convolution, one that `pallas_refuses` does not refuse.
        numerics: Its numerical options.
        interpret: Whether to run on the host in place of a TPU, slowly, for tests.

    Returns:
        Shape (B, H_out, W_out, O).

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
    inputs, geometry = _cropped(inputs, geometry)
    if geometry.is_depthwise and geometry.feature_group_count > 1:
        return _convolve_depthwise(inputs, attention, arranged, geometry, interpret)
    if geometry.kernel_size == (1, 1) and max(geometry.strides) > 1:
        # What no window sees is left out before, not folded in.
        inputs, geometry = _strided(inputs, geometry)
    folded = _fold(geometry, inputs.shape, inputs.dtype)
    outputs = _convolve(
        folded.layer(numerics, interpret=interpret),
        _fold_inputs(inputs, folded),
        attention,
        _fold_experts(arranged, folded),
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
    mixed = jnp.einsum("bk,kto->tbo", attention.astype(taps.dtype), taps)
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
    if not _has_few_pixels(layer, inputs, experts):
        return pallas_dense.forward(layer, inputs, attention, experts)
    inner = _batch_inside(inputs)
    return _batch_first(pallas_experts.forward(layer, inner, attention, experts))


def _has_few_pixels(layer, inputs, experts):
    batch, dtype = inputs.shape[0], inputs.dtype
    return pallas_experts.takes(layer, batch, experts.shape, dtype)


def _batch_inside(images):
    return jnp.transpose(images, (1, 2, 0, 3))


def _batch_first(images):
    return jnp.transpose(images, (2, 0, 1, 3))


def _forward(layer, inputs, attention, experts):
    saved = inputs, attention, experts
    return _convolve(layer, *saved), saved


def _backward(layer, saved, cotangent):
    def backward(inputs, attention, experts, cotangent):
        operands = inputs, attention, experts, cotangent
        if not _has_few_pixels(layer, inputs, experts):
            return pallas_dense.backward(layer, *operands)
        of_inputs, *others = pallas_experts.backward(
            *(layer, _batch_inside(inputs), attention, experts),
            _batch_inside(cotangent),
        )
        return _batch_first(of_inputs), *others

    return _gradients(backward, saved, (*saved, cotangent))


_convolve.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve_taps(geometry, interpret, inputs, kernel):
    return pallas_depthwise.forward(geometry, interpret, inputs, kernel)


def _forward_taps(geometry, interpret, inputs, kernel):
    outputs = pallas_depthwise.forward(geometry, interpret, inputs, kernel)
    return outputs, (inputs, kernel)


def _backward_taps(geometry, interpret, saved, cotangent):
    backward = functools.partial(pallas_depthwise.backward, geometry, interpret)
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
