"""Arrays whose types tell how they lie on devices: axes of a mesh that are `Explicit`.

With such types every operation says how its result is sharded. That is enough for a
batch that is sharded, with which nothing is done here. It is not for images or kernels
that are sharded inside: a padded or sliced axis may not divide over the devices, pixels
do not merge into one axis, and a loop takes no sharded samples. There the axes of the
mesh are left to XLA's partitioner, as if they were automatic.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def _spec(array: jax.Array) -> tuple[tuple[str, ...], ...]:
    """Returns for each axis of an array the explicit axes of the mesh that shard it."""
    sharding = getattr(jax.typeof(array), "sharding", None)
    if sharding is None or sharding.mesh.empty:
        return ((),) * array.ndim
    kinds = dict(zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True))
    entries = (*sharding.spec, *(None,) * array.ndim)[: array.ndim]
    return tuple(
        tuple(
            name
            for name in ((entry,) if isinstance(entry, str) else entry or ())
            if kinds[name] == AxisType.Explicit
        )
        for entry in entries
    )


def _names(entries: Iterable[tuple[str, ...]]) -> set[str]:
    return {name for entry in entries for name in entry}


def batch_shards(array: jax.Array) -> int:
    """Returns over how many devices explicit axes of a mesh shard the first axis."""
    names = _spec(array)[0]
    return math.prod(jax.typeof(array).sharding.mesh.shape[name] for name in names)


def is_sharded_inside(array: jax.Array) -> bool:
    """Returns whether any axis but the first is sharded by explicit axes of a mesh."""
    return bool(_names(_spec(array)[1:]))


def leave_to_partitioner(
    function: Callable[..., jax.Array],
    operands: Sequence[jax.Array | None],
    result: Sequence[tuple[jax.Array, int, int] | None],
    *,
    stack: jax.Array | None = None,
    gathers: bool = False,
) -> jax.Array:
    """Calls a function, with automatic axes in place of explicit ones it cannot take.

    It can take those that shard the batch, which is the first axis of every operand.

    Args:
        function: Of the operands.
        operands: Its arguments.
        result: For each axis of the result an array and an axis of it, whose sharding
            it is to have where that divides it, and its size; or None for a whole axis.
        stack: The operand whose first axis is no batch, if any: the experts.
        gathers: Whether the function takes no sharded batch either.

    Returns:
        What the function returns.
    """
    left: set[str] = set()
    for operand in operands:
        if operand is not None:
            is_whole = gathers or operand is stack
            left |= _names(_spec(operand)[0 if is_whole else 1 :])
    if not left:
        return function(*operands)
    first = next(operand for operand in operands if operand is not None)
    mesh = jax.typeof(first).sharding.mesh
    kept: list[tuple[str, ...] | None] = []
    for each in result:
        kept.append(None)
        if each is None:
            continue
        array, axis, size = each
        names = _spec(array)[axis]
        is_divisible = size % math.prod(mesh.shape[name] for name in names) == 0
        if names and is_divisible and not _names(filter(None, kept)) & set(names):
            kept[-1] = names
    sharding = NamedSharding(mesh, PartitionSpec(*kept))
    automatic: Any = jax.sharding.auto_axes(
        function, axes=tuple(sorted(left)), out_sharding=sharding
    )
    return automatic(*operands)


def of_convolution(
    inputs: jax.Array, kernel: jax.Array, size: Sequence[int]
) -> list[tuple[jax.Array, int, int]]:
    """Returns the `result` of a convolution for `leave_to_partitioner`.

    Args:
        inputs: Shape (B, *S, C).
        kernel: Shape (..., O).
        size: The spatial size of the outputs.
    """
    pixels = [(inputs, axis, each) for axis, each in enumerate(size, start=1)]
    return [(inputs, 0, inputs.shape[0]), *pixels, (kernel, -1, kernel.shape[-1])]


def manual_axes(array: jax.Array) -> Any:
    """Returns over which axes of a `jax.shard_map` an array varies, as JAX says it.

    None where it varies over none.
    """
    found = getattr(jax.typeof(array), "manual_axis_type", None)
    return found if found is not None and found.varying else None


def vary_alike(*arrays: jax.Array) -> list[jax.Array]:
    """Returns arrays that vary over the same axes of a mesh, inside `jax.shard_map`.

    Operations of JAX see to it themselves; a gradient rule that says how each of its
    operands varies cannot. The gradient of one that is the same on all devices is the
    sum over them. Outside they are returned as they are.
    """

    def varying(array: jax.Array) -> frozenset[str]:
        kind = manual_axes(array)
        return kind.varying if kind is not None else frozenset()

    axes = frozenset().union(*map(varying, arrays))
    return [
        jax.lax.pcast(array, tuple(sorted(axes - varying(array))), to="varying")
        for array in arrays
    ]


def type_like(array: jax.Array, shape: Sequence[int], dtype: Any, axes: int) -> Any:
    """Returns the type of an array that lies on devices as another does.

    Args:
        array: The other. Inside `jax.shard_map` both vary over the same axes.
        shape: The shape of the type.
        dtype: Its dtype.
        axes: How many axes in front are sharded alike by explicit axes of a mesh; the
            others are whole.
    """
    over: dict[str, Any] = {}
    if (sharding := _sharding_like(array, axes)) is not None:
        over = {"sharding": sharding, "manual_axis_type": manual_axes(array)}
    return jax.ShapeDtypeStruct(tuple(shape), dtype, **over)


def zeros_like(
    array: jax.Array, shape: Sequence[int], dtype: Any, axes: int
) -> jax.Array:
    """Returns zeros of the type of `type_like`."""
    sharding = _sharding_like(array, axes)
    return jax.lax.full_like(array, 0, dtype, tuple(shape), sharding=sharding)


def _sharding_like(array: jax.Array, axes: int) -> NamedSharding | None:
    sharding = getattr(jax.typeof(array), "sharding", None)
    if sharding is None or sharding.mesh.empty:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*_spec(array)[:axes]))
