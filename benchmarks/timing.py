"""How things are timed: in turn, so that a noisy machine is noisy for all alike.

What is called between others finds the caches and the allocator as they have left them,
as a layer of a network does; what is called again and again finds its own. The two
differ by up to a factor of two.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping

Function = Callable[[], object]
# Calls something so many times, one after the other; returns the seconds of each.
Caller = Callable[[int], list[float]]

# When a call has ended, its threads wait actively for a moment and hold the cores.
_PAUSE = 0.01
# Calls in a row may take so many seconds altogether; of slow calls there are fewer.
_LONGEST_LOOP = 1.5


@dataclasses.dataclass(frozen=True)
class Timing:
    """The times of one function, in milliseconds.

    Attributes:
        median: The median over the rounds.
        low: The first quartile.
        high: The third quartile.
        steady: The median over calls of itself in a row, if there were such.
    """

    median: float
    low: float
    high: float
    steady: float | None = None

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        """Summarises the times of the rounds."""
        low, median, high = (
            statistics.quantiles(seconds, n=4, method="inclusive")
            if len(seconds) > 1
            else seconds * 3
        )
        return cls(1e3 * median, 1e3 * low, 1e3 * high)


def interleave(functions: Mapping[str, Function], rounds: int) -> dict[str, Timing]:
    """Times functions in turn, round after round.

    Args:
        functions: What to time, by name. Each must return only when its work is done.
        rounds: How often to call each, after one call to warm up.

    Returns:
        The timing of each.

    Example:
        >>> timings = interleave({"nothing": lambda: None}, rounds=3)
        >>> timings["nothing"].low <= timings["nothing"].median
        True
    """
    callers = {
        name: functools.partial(call_in_a_row, function)
        for name, function in functions.items()
    }
    return {name: Timing.of(times) for name, times in _rounds(callers, rounds).items()}


def call_in_a_row(function: Function, count: int) -> list[float]:
    """Calls a function so many times; returns the seconds of each call."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


def in_turn(callers: Mapping[str, Caller], rounds: int) -> dict[str, Timing]:
    """Times what is called, each between the others.

    Args:
        callers: What calls, by name, each perhaps in another process.
        rounds: How often to call each, after one call to warm up.

    Returns:
        The timing of each.
    """
    turns = _rounds(callers, rounds, _PAUSE)
    return {name: Timing.of(seconds) for name, seconds in turns.items()}


def in_turn_and_in_a_row(
    callers: Mapping[str, Caller], rounds: int
) -> dict[str, Timing]:
    """Times what is called, each between the others, and then each in a row.

    Args:
        callers: What calls, by name, each perhaps in another process.
        rounds: How often to call each between the others, after one call to warm up,
            and at most how often in a row, not counting the first call of the row.

    Returns:
        The timing of each.
    """
    found = {}
    for name, timing in in_turn(callers, rounds).items():
        count = int(1e3 * _LONGEST_LOOP / timing.median) if timing.median else rounds
        row = callers[name](1 + min(rounds, max(2, count)))[1:]
        found[name] = dataclasses.replace(timing, steady=Timing.of(row).median)
    return found


def _rounds(
    callers: Mapping[str, Caller], rounds: int, pause: float = 0.0
) -> dict[str, list[float]]:
    for caller in callers.values():
        caller(1)
    seconds: dict[str, list[float]] = {name: [] for name in callers}
    for _ in range(rounds):
        for name, caller in callers.items():
            time.sleep(pause)
            seconds[name] += caller(1)
    return seconds
