"""Computations of which each platform has a form of its own.

Which form of a convolution is the fastest depends on the chip that runs it, and that is
known when a program is lowered, not when it is traced: one that is compiled ahead of
time, or exported, may be for another platform than that of the process. So what is
traced is one operation, and when it is lowered the function for that place is asked for
and traced instead: for the platform and the number of devices. A program for one
platform holds nothing of others; one for several asks which it runs on, where their
functions differ.

The operation can be differentiated in both modes, any number of times, and mapped. Its
tangent is an operation of the same kind, and so is the transpose of that: a gradient is
lowered as the gradient of the function for its place, with the operands alone kept
for it. (Within one program XLA computes but once what forward and backward share.)
Forward mode and higher derivatives are those of `plain` functions, since a function may
have a gradient rule that holds for one gradient.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import jax
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Primitive
from jax.interpreters import ad, batching, mlir

from dynconv_jax.functional.chips import Target, platform_of
from dynconv_jax.functional.sharding import vary_alike


class Function(Protocol):
    """A function of arrays, hashable, and equal to others that compute alike."""

    def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
        """Computes."""
        ...

    @property
    def plain(self) -> Self:
        """The same, of operations that can be differentiated in any way."""
        ...

    @property
    def mappable(self) -> Self:
        """The same, of operations that `jax.vmap` maps well."""
        ...

    @property
    def loops(self) -> bool:
        """Whether it takes a few samples at a time, which a map would take at once."""
        ...


class PlacedFunction(Protocol):
    """What has a function for each place, all of which compute the same; hashable."""

    def on(self, target: Target) -> Function:
        """Returns the function for a place."""
        ...


def compute_where_lowered(
    function: PlacedFunction, *operands: jax.Array | None
) -> jax.Array:
    """Computes by the function for the place that the program is lowered for.

    Args:
        function: Has a function for each place.
        *operands: What it is called with; the None are called with None.

    Returns:
        What the function for the place returns.
    """
    present = tuple(operand is not None for operand in operands)
    given = [operand for operand in operands if operand is not None]
    (result,) = _compute(*vary_alike(*given), function=_Present(function, present))
    return result


@dataclasses.dataclass(frozen=True)
class _Derived:
    """What is computed by way of a function."""

    function: Any

    @property
    def loops(self) -> bool:
        """Whether the function takes a few samples at a time."""
        return self.function.loops


@dataclasses.dataclass(frozen=True)
class _Present(_Derived):
    """A function of the operands that are not None, which returns a list."""

    present: tuple[bool, ...]

    def on(self, target: Target) -> "_Present":
        return _Present(self.function.on(target), self.present)

    def __call__(self, *operands: jax.Array) -> list[jax.Array]:
        rest = iter(operands)
        return [self.function(*(next(rest) if is_ else None for is_ in self.present))]

    @property
    def plain(self) -> "_Present":
        return _Present(self.function.plain, self.present)

    @property
    def mappable(self) -> "_Present":
        return _Present(self.function.mappable, self.present)

    @property
    def derived(self) -> "_Present":
        """The function whose gradient is taken: its own rule holds."""
        return self


@dataclasses.dataclass(frozen=True)
class _Tangent(_Derived):
    """(operands, tangents of those that move) → tangents of the results."""

    moving: tuple[bool, ...]

    def on(self, target: Target) -> "_Tangent":
        return _Tangent(self.function.on(target), self.moving)

    def __call__(self, *operands: jax.Array) -> list[jax.Array]:
        primals = operands[: len(self.moving)]
        of_moving = _of_moving(self.function.plain, self.moving, primals)
        moved = tuple(_select(primals, self.moving))
        return jax.jvp(of_moving, moved, operands[len(self.moving) :])[1]

    @property
    def plain(self) -> "_Tangent":
        return self

    @property
    def mappable(self) -> "_Tangent":
        return _Tangent(self.function.mappable, self.moving)

    @property
    def derived(self) -> "_Tangent":
        return self


@dataclasses.dataclass(frozen=True)
class _Cotangent(_Derived):
    """(operands, cotangents of the results) → cotangents of operands that move."""

    moving: tuple[bool, ...]

    def on(self, target: Target) -> "_Cotangent":
        return _Cotangent(self.function.on(target), self.moving)

    def __call__(self, *operands: jax.Array) -> list[jax.Array]:
        primals = operands[: len(self.moving)]
        of_moving = _of_moving(self.function.derived, self.moving, primals)
        _, pull = jax.vjp(of_moving, *_select(primals, self.moving))
        return list(pull(list(operands[len(self.moving) :])))

    @property
    def plain(self) -> "_Cotangent":
        return _Cotangent(self.function.plain, self.moving)

    @property
    def mappable(self) -> "_Cotangent":
        return _Cotangent(self.function.mappable, self.moving)

    @property
    def derived(self) -> "_Cotangent":
        return self.plain


@dataclasses.dataclass(frozen=True)
class _Mapped(_Derived):
    """A function mapped over the first axis of some of its operands."""

    mapped: tuple[bool, ...]

    def on(self, target: Target) -> "_Mapped":
        return _Mapped(self.function.on(target), self.mapped)

    def __call__(self, *operands: jax.Array) -> list[jax.Array]:
        if self.function.loops:  # one by one: mapped, the few samples were many
            of_one = _of_moving(self.function, self.mapped, operands)
            return lax.map(lambda each: of_one(*each), _select(operands, self.mapped))
        axes = [0 if mapped else None for mapped in self.mapped]
        return jax.vmap(self.function.mappable, in_axes=axes)(*operands)

    @property
    def plain(self) -> "_Mapped":
        return _Mapped(self.function.plain, self.mapped)

    @property
    def mappable(self) -> "_Mapped":
        return self

    @property
    def derived(self) -> "_Mapped":
        return self


def _select(values: Sequence[Any], flags: Sequence[bool]) -> list[Any]:
    return [value for value, flag in zip(values, flags, strict=True) if flag]


def _of_moving(
    function: Callable[..., list[jax.Array]],
    moving: Sequence[bool],
    primals: Sequence[jax.Array],
) -> Callable[..., list[jax.Array]]:
    """Returns the function of the operands that move, the others held."""

    def of_moving(*moved: jax.Array) -> list[jax.Array]:
        rest = iter(moved)
        return function(
            *(
                next(rest) if is_moving else primal
                for primal, is_moving in zip(primals, moving, strict=True)
            )
        )

    return of_moving


class PlacedOperation:
    """An operation of arrays that is a function of its own on each platform.

    What is traced is one equation; where it is lowered, the function for that place is
    asked for and traced in its stead.

    Args:
        name: What it is called in a traced program.
        on: From a place, and the parameters of an equation, to the function there, from
            arrays to a list of arrays. It must be hashable, and equal to others that
            compute alike.
        somewhere: From the parameters to a function that computes the same as those
            for any place, and whose types are those of the results. It loops over no
            samples: the types of a batch may say that devices share it, though this
            process has one.
    """

    def __init__(
        self,
        name: str,
        on: Callable[..., Callable[..., list[jax.Array]]],
        somewhere: Callable[..., Callable[..., list[jax.Array]]],
    ):
        self._on, self._somewhere = on, somewhere
        self.primitive = Primitive(name)
        self.primitive.multiple_results = True
        self.primitive.def_impl(self._run)
        self.primitive.def_abstract_eval(self._types_of_results)
        mlir.register_lowering(self.primitive, self._lower)
        _OPERATIONS[self.primitive] = self

    def __call__(self, *operands: jax.Array, **parameters: Any) -> list[jax.Array]:
        """Computes, with hashable parameters."""
        return self.primitive.bind(*operands, **parameters)

    def _run(self, *operands: jax.Array, **parameters: Any) -> list[jax.Array]:
        return _jitted(self.primitive, tuple(parameters.items()))(*operands)

    def _types_of_results(self, *types: Any, **parameters: Any) -> Any:
        function = self._somewhere(**parameters)
        return _traced_types(function, types, jax.sharding.get_abstract_mesh())

    def _lower(self, ctx: Any, *operands: Any, **parameters: Any) -> Any:
        device_count = getattr(ctx.module_context.axis_context, "num_devices", 1)
        chosen = {
            name: self._on(Target(platform_of(name), device_count), **parameters)
            for name in ctx.platforms or ctx.module_context.platforms
        }
        first, *others = dict.fromkeys(chosen.values())

        def compute(*operands: jax.Array) -> list[jax.Array]:
            if not others:
                return first(*operands)
            return lax.platform_dependent(*operands, **chosen)

        return mlir.lower_fun(compute, multiple_results=True)(ctx, *operands)

    def program_of(self, equation: JaxprEqn) -> Jaxpr:
        """Returns one of the programs that take the place of an equation."""
        types = [variable.aval for variable in equation.invars]
        return jax.make_jaxpr(self._somewhere(**equation.params))(*types).jaxpr


_OPERATIONS: dict[Primitive, PlacedOperation] = {}


@functools.lru_cache(maxsize=4096)
def _jitted(
    primitive: Primitive, parameters: tuple[tuple[str, Any], ...]
) -> Callable[..., list[jax.Array]]:
    return jax.jit(functools.partial(primitive.bind, **dict(parameters)))


@functools.lru_cache(maxsize=4096)
def _traced_types(function: Any, types: tuple[Any, ...], mesh: Any) -> Any:
    return jax.make_jaxpr(function)(*types).out_avals


def is_computed_where_lowered(equation: JaxprEqn) -> bool:
    """Tells whether an equation of a traced program is such an operation."""
    return equation.primitive in _OPERATIONS


def program_of(equation: JaxprEqn) -> Jaxpr:
    """Returns one of the programs that take the place of such an equation.

    For who reads traced programs, as to count what they compute; all compute the same.
    """
    return _OPERATIONS[equation.primitive].program_of(equation)


def _on(target: Target, function: Any) -> Any:
    return function.on(target)


def _somewhere(function: Any) -> Any:
    return function.on(Target("cpu", device_count=2)).plain


_compute = PlacedOperation("compute_where_lowered", _on, _somewhere)


def _differentiate(
    primals: Sequence[jax.Array], tangents: Sequence[Any], function: Any
) -> tuple[list[jax.Array], list[jax.Array]]:
    moving = tuple(not isinstance(tangent, ad.Zero) for tangent in tangents)
    moved = _select(tangents, moving)
    return (
        _compute(*primals, function=function),
        _compute(*primals, *moved, function=_Tangent(function, moving)),
    )


def _transpose(cotangents: Sequence[Any], *operands: Any, function: Any) -> list[Any]:
    """Transposes the operation in the tangents, in which it is linear."""
    moving = function.moving
    primals = operands[: len(moving)]
    given = [ad.instantiate_zeros(each) for each in cotangents]
    gradient = _Cotangent(function.function, moving)
    results = _compute(*primals, *given, function=gradient)
    return [*(None for _ in primals), *results]


def _map(
    operands: Sequence[jax.Array],
    axes: Sequence[int | None],
    function: Any,
) -> tuple[list[jax.Array], list[int]]:
    size = next(
        operand.shape[axis]
        for operand, axis in zip(operands, axes, strict=True)
        if axis is not None
    )
    if isinstance(function, _Tangent):
        # Of an operand that moves, the tangent is mapped as the operand is, so that
        # the operation stays the tangent of another.
        moving = function.moving
        own, tangents = list(axes[: len(moving)]), iter(axes[len(moving) :])
        given = [next(tangents) if moves else None for moves in moving]
        mapped = tuple(
            not (one is None and other is None)
            for one, other in zip(own, given, strict=True)
        )
        moved = tuple(_select(mapped, moving))
        function = _Tangent(_Mapped(function.function, mapped), moving)
        mapped = (*mapped, *moved)
    else:
        mapped = tuple(axis is not None for axis in axes)
        function = _Mapped(function, mapped)
    in_front = [
        batching.bdim_at_front(operand, axis, size) if is_mapped else operand
        for operand, axis, is_mapped in zip(operands, axes, mapped, strict=True)
    ]
    results = _compute(*in_front, function=function)
    return results, [0] * len(results)


ad.primitive_jvps[_compute.primitive] = _differentiate
ad.primitive_transposes[_compute.primitive] = _transpose
batching.primitive_batchers[_compute.primitive] = _map
