"""The convolution as an operation between three arrays, each of which two others give.

    inputs (N, *S, C)      kernel (*k, C/g, O)      outputs (N, *S', O)

Of inputs and kernel it gives the outputs; of kernel and outputs the gradient of the
inputs; of inputs and outputs that of the kernel. Each of the three is linear in both of
its operands, and its transposes are the two others. So derivatives of any order, in
either mode, are operations of this kind.

And so is what `jax.vmap` makes of them. Where one operand is mapped, the new axis joins
one that it shares with the result, and that the other operand has not: the batch, the
input channels, or the output channels. Where both are, it is a stack of convolutions,
which has one more axis in front of all three arrays; mapped again, it is a longer one.
A convolution with a kernel that is not mapped is XLA's. How a stack is computed
(`stacks.py`) is chosen for the place that the program is lowered for; it never has a
group for each kernel.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching

from dynconv_jax.functional.chips import Target
from dynconv_jax.functional.conv_geometry import ConvGeometry
from dynconv_jax.functional.conv_operation import ConvOperation
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.platforms import PlacedOperation
from dynconv_jax.functional.sharding import vary_alike
from dynconv_jax.functional.stacks import stack_on

# The axis that two of the three arrays share, and the third has not; by the third.
_SHARED = {"kernel": "batch", "inputs": "out_features", "outputs": "in_features"}


def convolve(
    inputs: jax.Array, kernel: jax.Array, geometry: ConvGeometry, numerics: Numerics
) -> jax.Array:
    """Convolves inputs (N, *S, C) with a kernel (*k, C/g, O).

    Args:
        inputs: The inputs.
        kernel: Of the same dtype.
        geometry: The convolution.
        numerics: Its numerical options, settled.

    Returns:
        The outputs (N, *S', O).
    """
    operation = _operation("outputs", inputs, geometry, numerics)
    return _bind(operation, *vary_alike(inputs, kernel))


def kernel_gradient(
    inputs: jax.Array,
    outputs: jax.Array,
    geometry: ConvGeometry,
    numerics: Numerics,
    dtype: Any,
) -> jax.Array:
    """Computes the gradient of a kernel in a dtype that is wider than its operands'.

    Args:
        inputs: The inputs.
        outputs: The cotangent of the outputs, of the same dtype.
        geometry: The convolution.
        numerics: Its numerical options, settled.
        dtype: What it is summed in and returned as.

    Returns:
        The gradient (*k, C/g, O).
    """
    operation = _operation("kernel", inputs, geometry, numerics)
    operation = dataclasses.replace(operation, kernel_dtype=dtype)
    return _bind(operation, *vary_alike(inputs, outputs))


def _operation(
    result: str, inputs: jax.Array, geometry: ConvGeometry, numerics: Numerics
) -> ConvOperation:
    spatial = inputs.shape[1:-1]
    settled = dataclasses.replace(geometry, padding=geometry.pads(spatial))
    return ConvOperation(result, settled, tuple(spatial), numerics)


def _bind(operation: ConvOperation, *operands: jax.Array) -> jax.Array:
    (result,) = _conv(*operands, operation=operation)
    return result


@dataclasses.dataclass(frozen=True)
class _PlacedStack:
    """A stack as it is computed in a place, for operands of any shape."""

    operation: ConvOperation
    target: Target

    def __call__(self, first: jax.Array, second: jax.Array) -> list[jax.Array]:
        return stack_on(self.target, self.operation, first, second)(first, second)


def _on(target: Target, operation: ConvOperation) -> Callable[..., list[jax.Array]]:
    return _PlacedStack(operation, target) if operation.is_stacked else operation


def _somewhere(operation: ConvOperation) -> Callable[..., list[jax.Array]]:
    return _on(Target("cpu", device_count=2), operation)


_conv = PlacedOperation("conv", _on, _somewhere)


def _differentiate(
    primals: Sequence[jax.Array], tangents: Sequence[Any], operation: ConvOperation
) -> tuple[list[jax.Array], list[Any]]:
    terms = [
        _bind(operation, *(tangent if at == index else primals[at] for at in (0, 1)))
        for index, tangent in enumerate(tangents)
        if not isinstance(tangent, ad.Zero)
    ]
    return [_bind(operation, *primals)], [sum(terms[1:], start=terms[0])]


def _transpose(
    cotangents: Sequence[Any], *operands: Any, operation: ConvOperation
) -> list[Any]:
    (cotangent,) = cotangents
    found: list[Any] = []
    for role, operand in zip(operation.operands, operands, strict=True):
        if not ad.is_undefined_primal(operand):
            found.append(None)
        elif isinstance(cotangent, ad.Zero):
            found.append(ad.Zero(operand.aval))
        else:
            known = dict(zip(operation.operands, operands, strict=True))
            if operation.kernel_dtype is not None:  # of a narrow kernel, once rounded
                given = next(each for each in operands if each is not operand)
                cotangent = cotangent.astype(given.dtype)
            known[operation.result] = cotangent
            transposed = dataclasses.replace(operation, result=role, kernel_dtype=None)
            found.append(
                _bind(transposed, *(known[each] for each in transposed.operands))
            )
    return found


def _map(
    operands: Sequence[jax.Array],
    axes: Sequence[int | None],
    operation: ConvOperation,
) -> tuple[list[jax.Array], list[int]]:
    if None in axes:
        result, axis = _map_one(operands, axes, operation)
    else:
        result, axis = _map_both(operands, axes, operation)
    return [result], [axis]


def _map_both(operands, axes, operation):
    """Makes a stack of the operation, or a longer one."""
    arrays = [
        jnp.moveaxis(operand, axis, 0)
        for operand, axis in zip(operands, axes, strict=True)
    ]
    if not operation.is_stacked:
        return _bind(dataclasses.replace(operation, is_stacked=True), *arrays), 0
    size = arrays[0].shape[:2]
    merged = (array.reshape(-1, *array.shape[2:]) for array in arrays)
    result = _bind(operation, *merged)
    return result.reshape(*size, *result.shape[1:]), 0


def _map_one(operands, axes, operation):
    """Lets the axis of the one operand join another, which the result has too."""
    position = 0 if axes[0] is not None else 1
    mapped, other = operation.operands[position], operation.operands[1 - position]
    size = operands[position].shape[axes[position]]
    arrays, axis = list(operands), axes[position]
    shared = _SHARED[other]
    # XLA's convolution is for kernels that are not mapped: these are a stack of one.
    becomes_stack = not operation.is_stacked and "kernel" in (mapped, operation.result)
    if becomes_stack:
        operation = dataclasses.replace(operation, is_stacked=True)
        arrays, axis = [array[None] for array in arrays], axis + 1
    moved = jnp.moveaxis(arrays[position], axis, 0)
    arrays[position] = _join(moved, *_place(operation, mapped, shared))
    result, axis = _joined(operation, arrays, shared, size)
    return (jnp.squeeze(result, 0), axis - 1) if becomes_stack else (result, axis)


def _joined(operation, arrays, shared, size):
    """Computes where `size` mapped entries have joined an axis; takes them apart."""
    geometry = operation.geometry
    if shared != "batch":
        wide = {shared: getattr(geometry, shared) * size}
        geometry = dataclasses.replace(geometry, **wide)
    result = _bind(dataclasses.replace(operation, geometry=geometry), *arrays)
    return _part(result, size, *_place(operation, operation.result, shared))


def _place(operation: ConvOperation, role: str, shared: str) -> tuple[int, int]:
    """Returns where an array has an axis, counted from behind, and in how many parts.

    The channels of groups lie one group after the other.
    """
    geometry = operation.geometry
    if shared == "batch":
        return -geometry.rank - 2, 1
    if role == "kernel" and shared == "in_features":  # those of a group
        return -2, 1
    return -1, geometry.feature_group_count


def _join(array: jax.Array, axis: int, parts: int) -> jax.Array:
    """Merges the first axis into another, counted from behind, ahead of each part."""
    size, rest = array.shape[0], array.shape[1:]
    axis += len(rest)
    split = array.reshape(
        size, *rest[:axis], parts, rest[axis] // parts, *rest[axis + 1 :]
    )
    moved = jnp.moveaxis(split, 0, axis + 1)
    return moved.reshape(*rest[:axis], size * rest[axis], *rest[axis + 1 :])


def _part(array: jax.Array, size: int, axis: int, parts: int) -> tuple[jax.Array, int]:
    """Takes apart what `_join` has merged; returns the array and where the axis is."""
    shape = array.shape
    axis += array.ndim
    each = shape[axis] // (parts * size)
    split = array.reshape(*shape[:axis], parts, size, each, *shape[axis + 1 :])
    in_front = jnp.moveaxis(split, axis + 1, axis)
    return in_front.reshape(*shape[:axis], size, parts * each, *shape[axis + 1 :]), axis


ad.primitive_jvps[_conv.primitive] = _differentiate
ad.primitive_transposes[_conv.primitive] = _transpose
batching.primitive_batchers[_conv.primitive] = _map
