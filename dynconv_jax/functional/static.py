"""Static convolutions: one kernel for all samples.

XLA has them, but not always as a product where a product is better. A 1×1 convolution
is one. And XLA's convolution on a CPU contracts over the input channels, a tap at a
time; of an image that is three numbers, and it runs at a tenth of the rate of a
product. Gathered windows have them all side by side.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Self

import jax
from jax import lax
from jaxtyping import Float

from dynconv_jax.functional.bilinear import convolve, kernel_gradient
from dynconv_jax.functional.chips import Target
from dynconv_jax.functional.conv import conv_general_dilated
from dynconv_jax.functional.conv_geometry import ConvGeometry
from dynconv_jax.functional.conv_operation import FEW_CHANNELS, channels_last
from dynconv_jax.functional.cost import devices_of_a_batch
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics, at_least_float32, is_widened
from dynconv_jax.functional.patches import arrange_for_patches, conv_by_patches
from dynconv_jax.functional.platforms import compute_where_lowered
from dynconv_jax.functional.sharding import is_sharded_inside

# Large windows do not pay: of 7×7 pixels (ResNet's stem) the product is slower.
_FEW_TAPS = 9


def static_conv(
    inputs: Float[jax.Array, "batch *spatial in_features"],
    kernel: Float[jax.Array, "*window in_per_group out_features"],
    geometry: Geometry,
    numerics: Numerics,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Convolves samples with one kernel, by XLA's convolution while that is not mapped.

    A float32 kernel beside narrower inputs is rounded to their dtype, and its gradient
    is not: what devices add up is float32.
    """
    if is_widened(kernel.dtype, inputs.dtype):
        return _conv_rounded(geometry, numerics, inputs, kernel)
    return convolve(inputs, kernel, ConvGeometry.of(geometry), numerics)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv_rounded(geometry, numerics, inputs, kernel):
    return static_conv(inputs, kernel.astype(inputs.dtype), geometry, numerics)


def _save_rounded(geometry, numerics, inputs, kernel):
    return _conv_rounded(geometry, numerics, inputs, kernel), (inputs, kernel)


def _pull_rounded(geometry, numerics, saved, cotangent):
    inputs, kernel = saved
    narrow = kernel.astype(inputs.dtype)
    _, pull = jax.vjp(
        lambda inputs: static_conv(inputs, narrow, geometry, numerics), inputs
    )
    of_kernel = kernel_gradient(
        inputs,
        cotangent.astype(inputs.dtype),
        ConvGeometry.of(geometry),
        numerics,
        at_least_float32(inputs.dtype),
    )
    return *pull(cotangent), of_kernel.astype(kernel.dtype)


_conv_rounded.defvjp(_save_rounded, _pull_rounded)


def conv_by_one_kernel(
    inputs: Float[jax.Array, "batch *spatial in_features"],
    kernel: Float[jax.Array, "*window in_per_group out_features"],
    geometry: Geometry,
    numerics: Numerics,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Convolves samples with one kernel."""
    if geometry.taps > 1:
        return static_conv(inputs, kernel, geometry, numerics)
    arranged = arrange_for_patches(kernel, geometry)
    return conv_by_patches(inputs, arranged, geometry, numerics)


@dataclasses.dataclass(frozen=True)
class _StaticConv:
    """XLA's convolution; it has no rule of its own to be careful with."""

    geometry: Geometry
    numerics: Numerics
    loops: bool = False

    def __call__(self, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        return static_conv(inputs, kernel, self.geometry, self.numerics)

    @property
    def plain(self) -> Self:
        return self

    @property
    def mappable(self) -> Self:
        return self


class _ByPatches(_StaticConv):
    def __call__(self, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        arranged = arrange_for_patches(kernel, self.geometry)
        return conv_by_patches(inputs, arranged, self.geometry, self.numerics)


@dataclasses.dataclass(frozen=True)
class _FewChannelConv:
    """A convolution of few channels, that is a product on a CPU."""

    geometry: Geometry
    numerics: Numerics

    def on(self, target: Target) -> _StaticConv:
        """Returns the convolution as it is computed in a place."""
        if target.platform != "cpu":
            return _StaticConv(self.geometry, self.numerics)
        # Of many models at once the windows would leave the cache of a CPU.
        is_local = devices_of_a_batch(target.device_count) == 1
        return _ByPatches(self.geometry, self.numerics, loops=is_local)


def few_channel_conv(
    inputs: Float[jax.Array, "batch *spatial in_features"],
    kernel: Float[jax.Array, "*window in_per_group out_features"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Convolves all samples with one kernel, as `jax.lax.conv_general_dilated` does.

    It is for the `conv_general_dilated` of an `nnx.Conv` that reads images. On a CPU,
    with up to four channels, windows of up to nine pixels and no unusual option, it is
    a product; otherwise XLA's convolution.

    Args:
        inputs: The samples.
        kernel: The kernel.
        window_strides: One per spatial dimension.
        padding: `"SAME"`, `"VALID"` or (low, high) pairs.
        **options: As `nnx.Conv` passes them.

    Returns:
        The outputs.

    Example:
        >>> import jax.numpy as jnp
        >>> images, kernel = jnp.ones((2, 9, 7, 3)), jnp.ones((3, 3, 3, 8))
        >>> few_channel_conv(images, kernel, (2, 2), "VALID").shape
        (2, 4, 3, 8)
    """
    rank = inputs.ndim - 2

    def resolved(numbers: Any) -> lax.ConvDimensionNumbers:
        return lax.conv_dimension_numbers(inputs.shape, kernel.shape, numbers)

    usual = dict(
        dimension_numbers=resolved(channels_last(rank)),
        lhs_dilation=(1,) * rank,
        rhs_dilation=(1,) * rank,
        feature_group_count=1,
        out_sharding=None,
    )
    options = {**usual, **options}
    options["dimension_numbers"] = resolved(options["dimension_numbers"])
    numerics = Numerics(options.get("precision"), options.get("preferred_element_type"))
    is_usual = {**options, **numerics._asdict()} == {**usual, **numerics._asdict()}
    channels = inputs.shape[-1]
    is_small = channels <= FEW_CHANNELS and math.prod(kernel.shape[:-2]) <= _FEW_TAPS
    is_usual &= not is_sharded_inside(inputs) and not is_sharded_inside(kernel)
    if not is_small or not is_usual:
        return conv_general_dilated(inputs, kernel, window_strides, padding, **options)
    geometry = Geometry.create(
        channels,
        kernel.shape[-1],
        kernel.shape[:-2],
        strides=tuple(window_strides),
        padding=padding,
    )
    convolve = _FewChannelConv(geometry, numerics.settled)
    return compute_where_lowered(convolve, inputs, kernel)
