"""Functions that are timed in processes of their own, a row of calls a turn."""

import concurrent.futures
import contextlib
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.timing import Function, call_in_a_row

# A turn is a row of calls, of this many seconds or of one call.
TURN = 0.2

_functions: Mapping[Any, Function]  # of the process, by name


def _prepare(prepare: Callable[..., Mapping[Any, Function]], *arguments: Any) -> None:
    global _functions
    _functions = prepare(*arguments)


def _turn(name: Any) -> float:
    """Calls a function for about the seconds of a turn; returns those of a call."""
    (first,) = call_in_a_row(_functions[name], 1)
    return statistics.median(call_in_a_row(_functions[name], 1 + int(TURN / first)))


def _names() -> list[Any]:
    return list(_functions)


@contextlib.contextmanager
def process_of(
    prepare: Callable[..., Mapping[Any, Function]], *arguments: Any
) -> Iterator[dict[Any, Callable[[int], list[float]]]]:
    """Starts a process that computes, and gives what asks it for turns.

    Args:
        prepare: Makes the functions, by name; called in the process.
        *arguments: What it is called with.

    Yields:
        For each name what times the function in so many turns, as `timing.in_turn`
        takes it: it returns the seconds of a call, for each turn.
    """
    with concurrent.futures.ProcessPoolExecutor(
        1,
        multiprocessing.get_context("spawn"),
        initializer=_prepare,
        initargs=(prepare, *arguments),
    ) as pool:

        def caller(name: Any) -> Callable[[int], list[float]]:
            return lambda count: [
                pool.submit(_turn, name).result() for _ in range(count)
            ]

        yield {name: caller(name) for name in pool.submit(_names).result()}
