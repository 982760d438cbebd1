"""How things are timed: in turn, so that a noisy machine is noisy for all alike."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping

Function = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Timing:
    """The times of one function, in milliseconds.

    Attributes:
        median: The median over the rounds.
        low: The first quartile.
        high: The third quartile.
    """

    median: float
    low: float
    high: float

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
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing.of(times) for name, times in seconds.items()}
