"""python -m benchmarks.worker: a process of the benchmark, which computes when asked.

It holds what one framework computes of one subject. The process that asks (`Worker`)
writes a line of JSON to its standard input for every request, and reads a line back;
what libraries print goes to the standard error.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Self

import tyro

from benchmarks import machine
from benchmarks.breakdown import breakdown
from benchmarks.measure import Settings, calls, default_dtypes, subjects
from benchmarks.timing import call_in_a_row

FRAMEWORKS = ("jax", "torch")


@dataclasses.dataclass(frozen=True)
class Config:
    """What one process computes."""

    index: int
    """Which of the subjects."""

    framework: str
    """`jax` or `torch`."""

    dtype: str = "float32"
    """Of the computation."""

    quick: bool = False
    """Leave out what takes long."""


class Worker:
    """A process that computes, as the one that asks sees it.

    Attributes:
        names: What it computes.
        memory: GB that the compiled gradients need, for those that say so.
        machine: What a reader needs to know about the machine.
        dtypes: Those that are worth measuring.
    """

    def __init__(self, config: Config, environment: Mapping[str, str]) -> None:
        """Starts the process, and waits until it is ready.

        Raises:
            RuntimeError: If it ended instead; what it had to say it has printed.
        """
        flags = [
            f"--index={config.index}",
            f"--framework={config.framework}",
            f"--dtype={config.dtype}",
            *["--quick"] * config.quick,
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", *flags],
            # On a GPU both frameworks have to find memory.
            env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            ready = self._read()
        except RuntimeError:
            self.__exit__()
            raise
        self.names: list[str] = ready["names"]
        self.memory: dict[str, float] = ready["memory"]
        self.machine: dict[str, str] = ready["machine"]
        self.dtypes: list[str] = ready["dtypes"]

    def call(self, name: str, subject: str, count: int) -> list[float]:
        """Calls one of its names, so many times in a row; returns the seconds."""
        return self._ask(["call", name, subject, count])

    def breakdown(self, name: str, subject: str) -> dict[str, float]:
        """Returns where the time of a call goes, from the profiler."""
        return self._ask(["breakdown", name, subject])

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, request: list[Any]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"a process of the benchmark ended, with {self._process.wait()}"
            )
        return json.loads(line)


def main(config: Config) -> None:
    """Builds the calls of a subject, and answers requests until there are no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    part, subject = subjects(config.quick)[config.index]
    settings = Settings(0, config.quick, config.dtype)
    built = calls(part, subject, config.framework, settings)
    memory = {name: getattr(each, "memory", None) for name, each in built.items()}
    answer(
        {
            "names": list(built),
            "memory": {name: of for name, of in memory.items() if of is not None},
            "machine": machine.describe(),
            "dtypes": default_dtypes(),
        }
    )
    for line in sys.stdin:
        kind, name, subject, *count = json.loads(line)
        function = getattr(built[name], subject)
        answer(
            breakdown(function)
            if kind == "breakdown"
            else call_in_a_row(function, *count)
        )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
