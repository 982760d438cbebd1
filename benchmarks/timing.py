"""How things are timed: in turn, so that a noisy machine is noisy for all alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def interleave(
    functions: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Times functions in turn, round after round.

    Args:
        functions: What to time, by name. Each must return only when its work is done.
        rounds: How often to call each, after one call to warm up.

    Returns:
        For each name the seconds of its calls.

    Example:
        >>> [len(times) for times in interleave({"nothing": lambda: None}, 3).values()]
        [3]
    """
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def table(seconds: Mapping[str, list[float]], baseline: str) -> str:
    """Returns a Markdown table of medians, spreads and ratios to the baseline.

    The spread is the smallest and the largest time; a ratio above 1 means slower than
    the baseline.
    """
    base = statistics.median(seconds[baseline])
    lines = [
        f"| | median, ms | spread, ms | times {baseline} |",
        "|---|---:|---:|---:|",
    ]
    for name, times in seconds.items():
        median = statistics.median(times)
        lines.append(
            f"| {name} | {1e3 * median:.1f} | {1e3 * min(times):.1f} to "
            f"{1e3 * max(times):.1f} | {median / base:.2f} |"
        )
    return "\n".join(lines)
