"""Parts of networks that are alike, compiled once.

Of the hundred layers of a deep network most are like others. In a program of the whole
the compiler works through each of them, which takes longer than to compute it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
from flax import nnx


@contextlib.contextmanager
def compiled_once(network: nnx.Module) -> Iterator[None]:
    """Has the parts that a network calls compiled, those that are alike together.

    Parts are the outermost modules below the network that are no sequence of others.
    They are alike if their structure, settings and shapes are, be it in one network or
    in several. What the network does between them is run operation by operation.

    Args:
        network: Its classes are changed meanwhile, for whoever calls them.
    """
    kinds = {type(module) for _, module in nnx.iter_modules(network)} - {type(network)}
    # All are looked up before the first is changed: some inherit theirs from others.
    calls = {
        kind: vars(base)["__call__"]
        for kind in kinds
        if not issubclass(kind, nnx.Sequential)
        for base in reversed(kind.__mro__)
        if "__call__" in vars(base)
    }
    with contextlib.ExitStack() as patches:
        for kind, call in calls.items():
            patches.enter_context(mock.patch.object(kind, "__call__", _once(call)))
        yield


_inside = False


def _once(call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a module's call, compiled unless it is inside of one that is."""

    @functools.wraps(call)
    def compiled(module: nnx.Module, *arrays: Any, **named: Any) -> Any:
        global _inside
        if _inside:
            return call(module, *arrays, **named)
        _inside = True
        try:
            graphdef, state = nnx.split(module)
            outputs, state = _run(call, graphdef, state, arrays, named)
        finally:
            _inside = False
        nnx.update(module, state)
        return outputs

    return compiled


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(call, graphdef, state, arrays, named):
    module = nnx.merge(graphdef, state, copy=True)
    return call(module, *arrays, **named), nnx.state(module)
