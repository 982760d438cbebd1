"""How long a compiled program runs: on the device by the profiler, else on the wall."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

# A program is called so often between two looks at the clock, that it takes this long.
LEAST_SECONDS = 0.05
ROUNDS = 7
CALLS = 20


def device_microseconds(profile: Any, calls: int) -> float | None:
    """Returns the time of one call on the first device that a profile has.

    Of a TPU it is that of its modules; of a GPU, that in which any of its streams has
    work. None where there is no device in it, as of a CPU.

    Args:
        profile: A `ProfileData` of nothing but the calls.
        calls: How many there were.

    Example:
        >>> text = '''planes { name: "/device:GPU:0"
        ...   lines { name: "Stream #1" events { offset_ps: 0 duration_ps: 6000000 } } }
        ... '''
        >>> device_microseconds(ProfileData.from_text_proto(text), 2)
        3.0
    """
    for plane in sorted(profile.planes, key=lambda each: each.name):
        if plane.name.startswith("/device:TPU"):
            kept = [line for line in plane.lines if line.name == "XLA Modules"]
        elif plane.name.startswith("/device:GPU"):
            kept = [line for line in plane.lines if line.name.startswith("Stream")]
        else:
            continue
        spans = [
            (event.start_ns, event.start_ns + event.duration_ns)
            for line in kept
            for event in line.events
        ]
        if spans:
            return 1e-3 * _covered(spans) / calls
    return None


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Returns how long at least one of the spans lasts."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def microseconds(call: Callable[[], object]) -> tuple[float, str]:
    """Times a call.

    Args:
        call: Starts the program; returns what is ready when it is done.

    Returns:
        The time of one call, and what measured it: `profiler`, or `wall`.
    """
    jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready([call() for _ in range(CALLS)])
        for path in Path(folder).rglob("*.xplane.pb"):
            found = device_microseconds(ProfileData.from_file(str(path)), CALLS)
            if found:
                return found, "profiler"
    return 1e6 * _wall_seconds(call), "wall"


def _wall_seconds(call: Callable[[], object]) -> float:
    def seconds(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls - 1):
            call()
        jax.block_until_ready(call())
        return time.perf_counter() - start

    calls = max(1, round(LEAST_SECONDS / max(seconds(1), 1e-9)))
    return statistics.median(seconds(calls) / calls for _ in range(ROUNDS))
