"""The forms of a per-sample convolution, by name.

A form is two functions. `arrange` lays a kernel out as the form's product takes it; it
only moves numbers, so experts are arranged once, before they are mixed, and never the
kernels of all samples after it. `convolve` applies arranged kernels.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Float

from dynconv_jax.functional.batched_taps import conv_by_batched_taps
from dynconv_jax.functional.conv_geometry import ConvGeometry
from dynconv_jax.functional.conv_operation import conv_by_xla
from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.looped_taps import conv_by_looped_taps
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.patches import arrange_for_patches, conv_by_patches
from dynconv_jax.functional.row_conv import arrange_for_row_conv, conv_by_row_conv
from dynconv_jax.functional.rows import arrange_for_rows, conv_by_rows
from dynconv_jax.functional.taps import arrange_for_taps, conv_by_taps


class Form(NamedTuple):
    """How to compute a per-sample convolution.

    Attributes:
        arrange: (kernel (..., *k, C/g, O), geometry) → the kernel as `convolve` takes
            it, with the same leading axes.
        convolve: (inputs (..., *S, C), arranged kernel, geometry, numerics) →
            (..., *S_out, O).
    """

    arrange: Callable[[jax.Array, Geometry], jax.Array]
    convolve: Callable[[jax.Array, jax.Array, Geometry, Numerics], jax.Array]


def conv_by_vmap(
    inputs: Float[jax.Array, "batch *spatial in_features"],
    kernel: Float[jax.Array, "batch *window in_per_group out_features"],
    geometry: Geometry,
    numerics: Numerics,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Convolves samples with kernels by XLA's own convolution, mapped.

    It is how one would write it down, and the reference for every other form. XLA makes
    one convolution with a group for every sample of it, whose two gradients together,
    with strides and in float64, were reported to end the process in a failed check of
    XLA's `algebraic_simplifier`; `"auto"` never chooses it.
    """
    undilated = ConvGeometry.of(geometry)

    def one(sample: jax.Array, own_kernel: jax.Array) -> jax.Array:
        return conv_by_xla(sample[None], own_kernel, undilated, numerics).squeeze(0)

    return jax.vmap(one)(inputs, kernel)


FORMS = {
    "patches": Form(arrange_for_patches, conv_by_patches),
    "rows": Form(arrange_for_rows, conv_by_rows),
    "taps": Form(arrange_for_taps, conv_by_taps),
    "batched taps": Form(arrange_for_taps, conv_by_batched_taps),
    "looped taps": Form(arrange_for_taps, conv_by_looped_taps),
    "row_conv": Form(arrange_for_row_conv, conv_by_row_conv),
    "vmap": Form(lambda kernel, geometry: kernel, conv_by_vmap),
}
