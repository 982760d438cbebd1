"""`"pallas"`: kernels of our own, some for TPUs and some for GPUs.

They mix the experts on the chip, so that neither windows nor a kernel for every sample
lie in memory. The two have little in common but what they compute.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.pallas import gpu, tpu

_KERNELS = {"tpu": tpu, "gpu": gpu}
_FORM = "pallas ({})"


def form_for(platform: str) -> str:
    """Returns the name of the form on a platform."""
    return _FORM.format(platform)


def pallas_refuses(
    platform: str,
    geometry: Geometry,
    shape: Sequence[Any],
    num_experts: int,
    dtype: DTypeLike,
    **options: Any,
) -> str | None:
    """Says why the kernels of a platform cannot compute a dynamic convolution.

    Args:
        platform: `"cpu"`, `"gpu"` or `"tpu"`.
        geometry: The convolution.
        shape: The shape (B, *S, C) of the inputs.
        num_experts: K.
        dtype: The dtype of the inputs.
        **options: `numerics`, `spatial_attention` and `device_count`, as in
            `pallas/tpu.py`.

    Returns:
        The reason, to be read behind the form's name; None where they can.
    """
    if platform not in _KERNELS:
        return "is for TPUs and GPUs"
    return _KERNELS[platform].pallas_refuses(
        geometry, shape, num_experts, dtype, **options
    )


def pallas_cycles(
    platform: str,
    geometry: Geometry,
    shape: Sequence[int],
    num_experts: int,
    dtype: DTypeLike,
) -> float:
    """Estimates the cycles of a dense convolution that is not refused; of a TPU.

    Args:
        platform: As in `pallas_refuses`.
        geometry: The convolution.
        shape: The shape (B, *S, C) of the inputs.
        num_experts: K.
        dtype: The dtype of the inputs.

    Returns:
        The cycles, forward and backward; 0 for a platform without an estimate.
    """
    if platform != "tpu":
        return 0.0
    return tpu.estimated_cycles(geometry, shape, num_experts, dtype)


def conv_by_pallas(
    form: str,
    inputs: Float[jax.Array, "batch *spatial in_features"],
    attention: Shaped[jax.Array, "batch experts"] | None,
    kernel: Float[jax.Array, "experts *window in_per_group out_features"],
    geometry: Geometry,
    numerics: Numerics,
    spatial_attention: Shaped[jax.Array, "batch *window"] | None = None,
) -> Float[jax.Array, "batch *out_spatial out_features"]:
    """Convolves every sample with its own mixture of experts.

    Args:
        form: From `form_for`.
        inputs: The samples.
        attention: The weights, or None for a single expert with the weight 1.
        kernel: The experts, as wide as the inputs or wider.
        geometry: The convolution.
        numerics: Its numerical options.
        spatial_attention: The weights of the taps, or None.

    Returns:
        The outputs.

    Raises:
        ValueError: If the program is lowered for a platform without such kernels, or
            its kernels cannot compute this.
    """
    platform = next(
        (each for each in _KERNELS if form_for(each) == form),
        "cpu",
    )
    reason = pallas_refuses(
        *(platform, geometry, inputs.shape, kernel.shape[0], inputs.dtype),
        numerics=numerics,
        spatial_attention=spatial_attention is not None,
    )
    if reason is not None:
        raise ValueError(
            f"`implementation` (='pallas') {reason}, and this program is lowered for "
            f"a {platform.upper()}; use 'auto'"
        )
    if attention is None:
        attention = jnp.ones((inputs.shape[0], 1), inputs.dtype)
    kernels = _KERNELS[platform]
    options = {"spatial_attention": spatial_attention} if platform == "gpu" else {}
    arranged = kernels.arrange(kernel.astype(inputs.dtype), geometry)
    return kernels.convolve(inputs, attention, arranged, geometry, numerics, **options)
