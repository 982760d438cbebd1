"""`"pallas"` on a GPU: the product gathers windows and mixes experts on the chip.

Every other form writes the windows of all pixels, or the kernels of all samples, to
memory and reads them again. Here a program takes a tile of pixels and features; tap by
tap it loads the pixels that the tap sees and the experts' tiles, mixes these with the
sample's weights in registers, multiplies and sums. Nothing but inputs, experts and
outputs is in memory, forward and backward.

The experts' gradient is that of the sample's kernel, computed tap by tap, times the
weights, and summed in registers over the batch; its products with the experts are the
gradients of the weights. No sum is left to the order in which programs end.

The kernels are in `gpu_product.py` and `gpu_experts.py`; Triton compiles
them, which needs no device. They have been compiled for H100 and interpreted, never run
on a GPU: how fast they are there, and whether the compiler's code computes what the
interpreter does, is not known.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from dynconv_jax.functional.geometry import Geometry
from dynconv_jax.functional.numerics import Numerics, multiply_wide
from dynconv_jax.functional.pallas.gpu_tiles import Call, Layer
from dynconv_jax.functional.pallas.refusals import every_kernel_refuses
from dynconv_jax.functional.sharding import vary_alike

# Sums of all experts are kept in registers.
_MOST_EXPERTS = 32
# Offsets are counted in 32 bits.
_MOST_NUMBERS = 2**31 - 1
_DTYPES = ("bfloat16", "float32")
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
        spatial_attention: Whether taps have weights of their own; they may.
        device_count: Over how many devices the batch may be spread, where the program
            is left to XLA's partitioner; inside `jax.shard_map` it is 1.

    Returns:
        The reason, to be read behind the form's name; None where it can.

    Example:
        >>> geometry = Geometry.create(64, 64, (3, 3))
        >>> pallas_refuses(geometry, (8, 28, 28, 64), 64, "float32")
        'keeps the sums of at most 32 experts in registers, not of 64'
        >>> pallas_refuses(geometry, (8, 28, 28, 64), 4, "bfloat16") is None
        True
    """
    del spatial_attention
    reason = every_kernel_refuses(geometry, shape, device_count)
    if reason is not None:
        return reason
    if shape[0] == 0:
        return "has no program for an empty batch"
    dtypes = {str(jnp.dtype(dtype)), str(numerics.output_dtype(dtype))}
    if not dtypes <= set(_DTYPES):
        return (
            f"computes in {' and '.join(_DTYPES)}, not in "
            f"{' to '.join(sorted(dtypes - set(_DTYPES)))}"
        )
    if num_experts > _MOST_EXPERTS:
        return (
            f"keeps the sums of at most {_MOST_EXPERTS} experts in registers, not of "
            f"{num_experts}"
        )
    size = geometry.output_size(shape[1:-1])
    largest = max(
        math.prod(shape),
        shape[0] * math.prod(size) * geometry.out_features,
        num_experts * math.prod(geometry.kernel_shape),
    )
    if largest > _MOST_NUMBERS:
        return f"counts offsets in 32 bits, and an array has {largest} numbers"
    return None


def arrange(kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """Lays out a kernel (..., kh, kw, C/g, O) as (..., taps, C/g, O)."""
    batch = kernel.shape[: -geometry.rank - 2]
    return kernel.reshape(*batch, geometry.taps, *kernel.shape[-2:])


def convolve(
    inputs: Float[jax.Array, "batch height width in_features"],
    attention: Shaped[jax.Array, "batch experts"] | None,
    arranged: Float[jax.Array, "experts taps in_per_group out_features"],
    geometry: Geometry,
    numerics: Numerics,
    *,
    spatial_attention: Shaped[jax.Array, "batch rows columns"] | None = None,
    interpret: bool = False,
) -> Float[jax.Array, "batch out_height out_width out_features"]:
    """Convolves every sample with its own mixture of experts, mixed on the chip.

    Sums are taken in float32, and experts mixed in float32 with weights that are not
    rounded; the mixture is rounded to the dtype of the experts before it is multiplied.
    It can be differentiated any number of times in reverse mode, and mapped.

    Args:
        inputs: The samples, bfloat16 or float32.
        attention: The weights, or None for a single expert with the weight 1.
        arranged: The experts from `arrange`.
        geometry: The convolution, one that `pallas_refuses` does not refuse.
        numerics: Its numerical options. Without a precision, float32 is multiplied as
            XLA does it on a GPU, in TF32.
        spatial_attention: The weights of the taps, or None.
        interpret: Whether to run on the host in place of a GPU, slowly, for tests.

    Returns:
        The outputs.

    Raises:
        ValueError: If the form cannot compute this; the message says why.

    Example:
        >>> geometry = Geometry.create(4, 8, (3, 3), strides=2)
        >>> experts = arrange(jnp.ones((2, 3, 3, 4, 8)), geometry)
        >>> images, attention = jnp.ones((1, 5, 4, 4)), jnp.ones((1, 2)) / 2
        >>> y = convolve(
        ...     images, attention, experts, geometry, Numerics(), interpret=True
        ... )
        >>> y.shape, float(y[0, 1, 0, 0])
        ((1, 3, 2, 8), 36.0)
    """
    reason = pallas_refuses(
        geometry, inputs.shape, arranged.shape[0], inputs.dtype, numerics=numerics
    )
    if reason is not None:
        raise ValueError(f"this form {reason}; {_REMEDY}")
    batch, *spatial, _ = inputs.shape
    layer = Layer.of(batch, tuple(spatial), arranged.shape[0], geometry)
    if spatial_attention is None:
        if attention is None:
            attention = jnp.ones((batch, layer.experts), inputs.dtype)
        weights = attention[:, None, :]
    else:
        weights = spatial_attention.reshape(batch, layer.taps, 1)
        if attention is not None:
            weights = multiply_wide(weights, attention[:, None, :])
    call = Call(layer, numerics.precision, interpret)
    dtype = numerics.output_dtype(inputs.dtype)
    return _outputs(call, dtype, *vary_alike(weights, arranged, inputs))


# Outputs, and the gradients of each of their factors, are the derivatives of one form,
#     q(w, E, x, g) = Σ g · conv(x, Σ_k w_k E_k),
# which is linear in each. So is every derivative of a derivative, and the three below
# are one another's gradients.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _outputs(call, dtype, weights, experts, inputs) -> Any:
    """Returns dq/dg in a dtype."""
    # Not every build of JAX has Triton; who does not ask for it need not have it.
    from dynconv_jax.functional.pallas.gpu_product import apply_mixed

    return apply_mixed(call, dtype, weights, experts, inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _input_gradient(call, dtype, weights, experts, cotangent) -> Any:
    """Returns dq/dx in a dtype."""
    from dynconv_jax.functional.pallas.gpu_product import apply_mixed

    return apply_mixed(call, dtype, weights, experts, cotangent, mirrored=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _other_gradients(call, weights, experts, inputs, cotangent) -> Any:
    """Returns dq/dw and dq/dE, in the dtypes of the two."""
    from dynconv_jax.functional.pallas.gpu_experts import pull_experts

    return pull_experts(call, weights, experts, inputs, cotangent)


def _save_outputs(call, dtype, *factors):
    return _outputs(call, dtype, *factors), factors


def _pull_outputs(call, dtype, factors, cotangent):
    weights, experts, inputs = factors
    others: Any = _other_gradients(call, weights, experts, inputs, cotangent)
    return (
        *others,
        _input_gradient(call, inputs.dtype, weights, experts, cotangent),
    )


def _save_input_gradient(call, dtype, *factors):
    return _input_gradient(call, dtype, *factors), factors


def _pull_input_gradient(call, dtype, factors, inputs):
    weights, experts, cotangent = factors
    others: Any = _other_gradients(call, weights, experts, inputs, cotangent)
    return (
        *others,
        _outputs(call, cotangent.dtype, weights, experts, inputs),
    )


def _save_other_gradients(call, *factors):
    return _other_gradients(call, *factors), factors


def _pull_other_gradients(call, factors, cotangents):
    weights, experts, inputs, cotangent = factors
    other_weights, other_experts = cotangents
    pairs = (other_weights, experts), (weights, other_experts)
    others: Any = [_other_gradients(call, *pair, inputs, cotangent) for pair in pairs]
    of_inputs: Any = [
        _input_gradient(call, inputs.dtype, *pair, cotangent) for pair in pairs
    ]
    of_cotangent: Any = [
        _outputs(call, cotangent.dtype, *pair, inputs) for pair in pairs
    ]
    return others[1][0], others[0][1], sum(of_inputs), sum(of_cotangent)


_outputs.defvjp(_save_outputs, _pull_outputs)
_input_gradient.defvjp(_save_input_gradient, _pull_input_gradient)
_other_gradients.defvjp(_save_other_gradients, _pull_other_gradients)
