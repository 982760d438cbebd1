"""Where the time of a compiled call goes, by kind of operation, from the profiler."""

import collections
import re
import tempfile
from pathlib import Path

import jax

from benchmarks.timing import Function

_CALLS = 10

# The kind of an operation of XLA's CPU backend, by how its name begins; the first match
# counts. A fusion is named after what it fuses, so the kinds blur a little.
_KINDS = (
    ("products", r"dot|ynn_fusion|convolution|custom-call"),
    ("gathering windows", r"concatenate|.*pad|gather"),
    ("loop: slices, copies, zeros", r".*dynamic|.*broadcast_fusion|wrapped_broad|copy"),
    ("reductions", r".*reduce"),
    ("elementwise", r".*(add|multiply|subtract|maximum|select|divide|fusion|compare)"),
)


def breakdown(call: Function) -> dict[str, float]:
    """Profiles a call, and returns the milliseconds by kind of operation.

    Operations on different cores overlap, so the sum may exceed the time of the call.
    """
    call()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(_CALLS):
                call()
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
        milliseconds: dict[str, float] = collections.defaultdict(float)
        for plane in data.planes:
            for line in plane.lines:
                for event in line.events:
                    kind = _kind(event.name)
                    if kind:
                        milliseconds[kind] += 1e-6 * event.duration_ns / _CALLS
    return dict(sorted(milliseconds.items(), key=lambda item: -item[1]))


def _kind(name: str) -> str | None:
    # Operations have names of one word and a number; the rest is Python and runtime.
    if not re.fullmatch(r"[a-z][a-z_\-]*[\w.\-]*", name) or name.startswith("while"):
        return None
    for kind, pattern in _KINDS:
        if re.match(pattern, name):
            return kind
    return "other"
