"""Holds functions to the shapes of their annotations, for `pytest --check-shapes`.

The annotations are those of jaxtyping. What is given and what is returned is compared
with them when a function has returned: bad arguments are refused by the function, in
its own words, as they are without the option.
"""

import functools
import importlib.machinery
import inspect
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import AbstractArray, jaxtyped


class ShapeError(AssertionError):
    """An array is not of the shape, or the kind of dtype, that an annotation says."""


def install(packages: Sequence[str]) -> None:
    """Has the modules of packages checked that are imported from now on.

    Raises:
        RuntimeError: If one is imported already.
    """
    early = sorted(set(packages) & sys.modules.keys())
    if early:
        raise RuntimeError(f"{early} imported before its shapes could be checked")
    sys.meta_path.insert(0, _Finder(packages))


class _Finder:
    def __init__(self, packages: Sequence[str]):
        self._packages = packages

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self._packages:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: types.ModuleType) -> None:
        super().exec_module(module)
        check_module(module)


def check_module(module: types.ModuleType) -> None:
    """Puts a checked function in place of each that a module defines.

    Not of those inside functions, and not where the module has used one already, such
    as in a table.
    """
    for name, value in list(vars(module).items()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            for attribute, method in list(vars(value).items()):
                if inspect.isfunction(method):
                    _replace(value, attribute, method)
        elif callable(value) and hasattr(value, "__annotations__"):
            _replace(module, name, value)


def _replace(owner: Any, name: str, function: Callable[..., Any]) -> None:
    hints = {
        name: hint
        for name, hint in typing.get_type_hints(function).items()
        if _says_shapes(hint)
    }
    if hints:
        setattr(owner, name, _checked(function, hints))


def _checked(function: Callable[..., Any], hints: dict[str, Any]) -> Any:
    signature = inspect.signature(function)
    torch = sys.modules.get("torch")

    def compare(result, args, kwargs):
        # A trace would keep the comparisons.
        if torch and (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            return
        arguments = signature.bind(*args, **kwargs).arguments
        found = {**arguments, "return": result}
        with jaxtyped("context"):
            for name, hint in hints.items():
                if name not in found or _fits(found[name], hint):
                    continue
                beside = {
                    each: _shown(found[each])
                    for each in hints
                    if each in found and each != name
                }
                raise ShapeError(
                    f"{function.__module__}.{function.__qualname__}: {name} is "
                    f"{_shown(found[name])}, not {hint}; beside it, {beside}"
                )

    @functools.wraps(function)
    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        compare(result, args, kwargs)
        return result

    return call


def _says_shapes(hint: Any) -> bool:
    return _is_shape(hint) or any(map(_says_shapes, typing.get_args(hint)))


def _is_shape(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, AbstractArray)


def _fits(value: Any, hint: Any) -> bool:
    """Returns whether a value fits; sizes are those of the same names before."""
    if _is_shape(hint):
        # Of any kind of array: a tracer, one of NumPy, one that is quantized.
        return isinstance(value, hint.dtype[Any, hint.dim_str])
    parts = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if typing.get_origin(hint) is tuple:
        return len(value) == len(parts) and all(map(_fits, value, parts))
    return isinstance(value, hint)


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{value.dtype} {tuple(shape)}"
