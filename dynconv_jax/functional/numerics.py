"""How sums are taken: the precision of products and the dtype of accumulation."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike
from jaxtyping import Float

# Says of a product of float32 numbers that they may be rounded first.
_ROUNDED = {jnp.dtype(jnp.bfloat16): lax.DotAlgorithmPreset.BF16_BF16_F32}


def at_least_float32(dtype: DTypeLike) -> jnp.dtype:
    """Returns `dtype`, or float32 where it is narrower or not floating."""
    is_floating = jnp.issubdtype(dtype, jnp.floating)
    if is_floating and jnp.finfo(dtype).bits >= 32:
        return jax.dtypes.canonicalize_dtype(dtype)
    return jnp.dtype(jnp.float32)


def is_widened(dtype: DTypeLike, narrow: DTypeLike) -> bool:
    """Returns whether `narrow` is floating, and `dtype` float32 in its place."""
    is_floating = jnp.issubdtype(narrow, jnp.floating)
    return is_floating and narrow != dtype == at_least_float32(narrow)


def keep_wide(parameter: jax.Array, promoted: jax.Array) -> jax.Array:
    """Returns a parameter as wide as sums are, where promotion would round it.

    It is for what is mixed, and so rounded there: a gradient of a rounded parameter is
    rounded too, and by some compilers before devices add up theirs.

    Args:
        parameter: As it is stored.
        promoted: The same in the dtype of the computation.
    """
    if widest(parameter.dtype, promoted.dtype) == promoted.dtype:
        return promoted
    return parameter.astype(at_least_float32(promoted.dtype))


def as_arrays(*operands: Any) -> tuple[Any, ...]:
    """Returns operands as arrays of JAX, each in the dtype that JAX gives it."""
    return tuple(None if each is None else jnp.asarray(each) for each in operands)


def widest(*dtypes: DTypeLike) -> jnp.dtype:
    """Returns the dtype that all are promoted to, whatever JAX is told of promotion.

    Under `jax.numpy_dtype_promotion("strict")` it may be asked for: what is then cast
    to it is cast on purpose.
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def as_floating(numbers: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Returns numbers as they are; or integers and truth values in a dtype.

    Example:
        >>> as_floating(jnp.array([1, 2]), jnp.bfloat16)
        Array([1, 2], dtype=bfloat16)
    """
    numbers = jnp.asarray(numbers)
    is_floating = jnp.issubdtype(numbers.dtype, jnp.floating)
    return numbers if is_floating else numbers.astype(dtype)


def multiply_wide(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the product of two arrays in the wider of their dtypes."""
    dtype = widest(first.dtype, second.dtype)
    return first.astype(dtype) * second.astype(dtype)


def scale_channels(
    features: Float[jax.Array, "batch *spatial channels"],
    weights: Float[jax.Array, "batch channels"],
) -> Float[jax.Array, "batch *spatial channels"]:
    """Multiplies each channel of a sample by a weight, and rounds once.

    The result has the dtype of the features, also where the weights are wider.
    """
    spatial = tuple(range(1, features.ndim - 1))
    per_pixel = jnp.expand_dims(weights, spatial)
    return multiply_wide(features, per_pixel).astype(features.dtype)


def contract_rounded(
    subscripts: str,
    first: jax.Array,
    second: jax.Array,
    dtype: DTypeLike,
    output_dtype: DTypeLike,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Returns `jnp.einsum` of two arrays that are rounded for it.

    The gradient of a kernel is a sum over the batch, which may lie on many devices:
    each sums its own samples, and an all-reduce adds these up. By JAX's own rule a
    product of bfloat16 numbers has bfloat16 gradients: the sum of every device would be
    rounded, and they would be added up in eight bits. Here the gradients are float32
    sums of products of narrow numbers. They are rounded only to the dtype that the
    operand came in: a float32 parameter is to be given as it is, for what was rounded
    before has a gradient that is rounded, and some compilers then round before the
    all-reduce.

    Args:
        subscripts: As in `jnp.einsum`.
        first: An array.
        second: An array.
        dtype: What both are rounded to. From float32 up this is `jnp.einsum`.
        output_dtype: The dtype of the result.
        precision: As in `jnp.einsum`.

    Example:
        >>> experts = jnp.arange(6.0).reshape(2, 3)
        >>> attention, narrow = jnp.array([0.5, 0.5]), jnp.bfloat16
        >>> contract_rounded("k,kn->n", attention, experts, narrow, narrow)
        Array([1.5, 2.5, 3.5], dtype=bfloat16)
    """
    dtype, output_dtype = jnp.dtype(dtype), jnp.dtype(output_dtype)
    contract = _contract if dtype == at_least_float32(dtype) else _contract_narrow
    return contract(subscripts, first, second, dtype, output_dtype, precision)


def _contract(subscripts, first, second, dtype, output_dtype, precision):
    return jnp.einsum(
        subscripts,
        first.astype(dtype),
        second.astype(dtype),
        precision=precision,
        preferred_element_type=None if dtype == output_dtype else output_dtype,
    )


_contract_narrow = jax.custom_jvp(_contract, nondiff_argnums=(0, 3, 4, 5))


def _differentiate(subscripts, dtype, output_dtype, precision, primals, tangents):
    algorithm = _ROUNDED.get(dtype) if precision is None else precision

    def product(first, second):
        # What counts is its transpose: the cotangent is widened, and rounded for the
        # product, of which nothing is left in the program; the result is float32.
        wide = _contract(
            subscripts, first, second, jnp.dtype(jnp.float32), jnp.float32, algorithm
        )
        return wide.astype(output_dtype)

    rounded = [primal.astype(dtype).astype(jnp.float32) for primal in primals]
    terms = [
        product(*(tangent if index == other else rounded[other] for other in (0, 1)))
        for index, tangent in enumerate(tangents)
        if not isinstance(tangent, SymbolicZero)
    ]
    # By the precision that was asked for: the same product as without a gradient, which
    # a compiler then computes once for both.
    outputs = _contract_narrow(subscripts, *primals, dtype, output_dtype, precision)
    return outputs, functools.reduce(jnp.add, terms, jnp.zeros_like(outputs))


_contract_narrow.defjvp(_differentiate, symbolic_zeros=True)


class Numerics(NamedTuple):
    """The numerical options of a convolution.

    Attributes:
        precision: As in `jax.lax.conv_general_dilated`.
        preferred_element_type: The dtype of the output and of the sums behind it, as in
            `jax.lax.conv_general_dilated`.
    """

    precision: lax.PrecisionLike = None
    preferred_element_type: DTypeLike | None = None

    @property
    def settled(self) -> "Numerics":
        """The options with what `jax.default_matmul_precision` says now."""
        # JAX's types do not know its own options.
        default = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009
        return self if self.precision else self._replace(precision=default)

    def output_dtype(self, dtype: DTypeLike) -> jnp.dtype:
        """Returns the dtype of the output for operands of `dtype`."""
        return jnp.dtype(self.preferred_element_type or dtype)

    def contract(
        self, subscripts: str, windows: jax.Array, kernel: jax.Array
    ) -> jax.Array:
        """Returns `jnp.einsum` of the two, in the dtype of the output.

        A float32 kernel beside narrower windows is rounded to their dtype.
        """
        if is_widened(kernel.dtype, windows.dtype):
            narrow = windows.dtype, self.output_dtype(windows.dtype)
            return contract_rounded(
                subscripts, windows, kernel, *narrow, self.precision
            )
        return jnp.einsum(
            subscripts,
            windows,
            kernel,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
        )

    def multiply(self, windows: jax.Array, kernel: jax.Array, rank: int) -> jax.Array:
        """Multiplies windows by kernels, at every pixel.

        Args:
            windows: Shape (..., *S, P), with `rank` axes in S.
            kernel: Shape (..., P, O), with the leading axes of the windows, or none; as
                in `contract`.
            rank: The number of spatial dimensions.

        Returns:
            Shape (..., *S, O), in the dtype of the output.
        """
        *outer, rows = windows.shape
        batch, pixels = outer[:-rank], outer[-rank:]
        if not all(isinstance(size, int) for size in pixels):
            # Whether a product of symbolic sizes is positive is beyond JAX.
            axes = "xyz"[:rank]
            return self.contract(f"...{axes}p,...po->...{axes}o", windows, kernel)
        # One axis of pixels is faster: the gradient needs no transpose.
        flat = windows.reshape(*batch, math.prod(pixels), rows)
        outputs = self.contract("...np,...po->...no", flat, kernel)
        return outputs.reshape(*outer, outputs.shape[-1])

    def widened(self, dtype: DTypeLike) -> "Numerics":
        """Returns the options for partial sums that are still to be added up."""
        wide = at_least_float32(self.output_dtype(dtype))
        return self._replace(preferred_element_type=wide)
