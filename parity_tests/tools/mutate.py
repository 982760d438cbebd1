"""python -m parity_tests.tools.mutate: which planted faults do the tests notice?

Faults are planted in the libraries one at a time, in a copy of the checkout, as many in
each file. For each, the tests nearest to the file run, and if these pass, wider ones.
A fault that all of them let pass has survived: it is a gap in the tests, or it changes
nothing that can be seen. What came out is written after each fault, and the same
command goes on from there.
"""

import dataclasses
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from dynconv_jax.weights import write_file
from parity_tests.tools.checkout import ROOT
from parity_tests.tools.mutations import Mutation, mutations_of
from parity_tests.tools.nearest_tests import LIBRARIES, nearest_tests

PLACES = "functional", "layers", "routing.py", "weights"
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs")

# What runs the examples of a module.
EXAMPLES = "parity_tests/test_docstrings.py::test_examples_of_module_run"

# Tests that compile for machines of many devices, or in processes of their own, take
# minutes for a fault, and see none that the others do not, but in what they are named
# after.
LEFT_OUT = "train/", "benchmarks/", "sharding", "compiled_for_tpu", "test_imports"


@dataclasses.dataclass(frozen=True)
class Config:
    """How many faults to plant, where, and how widely to look."""

    count: int = 200
    """How many faults."""

    seed: int = 0
    """Which ones: the order in which they are drawn."""

    only: Path | None = None
    """A file or folder of the libraries, below the root, to plant them in."""

    near: int = 3
    """At least how many files of tests to run first."""

    wide: int = 12
    """How many files of tests to run in all, beside the module's own examples, before a
    fault has survived."""

    seconds: int = 300
    """After how long tests are ended; the fault then counts as neither."""

    out: Path = Path("runs/mutations.json")
    """Where to keep what came out."""


def choose(config: Config, root: Path = ROOT) -> list[Mutation]:
    """Draws the faults, as many from each file as there are, in turn.

    Raises:
        SystemExit: If there is nothing to plant a fault in.
    """
    drawn: list[list[Mutation]] = []
    for path in _sources(root):
        name = str(path.relative_to(root))
        if config.only is None or Path(name).is_relative_to(config.only):
            found = mutations_of(path.read_text(), name)
            random.Random(f"{config.seed} {name}").shuffle(found)
            drawn.append(found)
    random.Random(config.seed).shuffle(drawn)
    longest = max(map(len, drawn), default=0)
    in_turn = [
        found[turn]
        for turn in range(longest)
        for found in drawn[:]
        if turn < len(found)
    ]
    if not in_turn:
        raise SystemExit(
            f"mutate: error: --only (={config.only}) has nothing to plant a fault in; "
            f"name a file or folder of {', '.join(LIBRARIES)}"
        )
    return in_turn[: config.count]


def _sources(root: Path) -> Iterator[Path]:
    for library in LIBRARIES:
        for place in PLACES:
            path = root / library / place
            yield from sorted(path.rglob("*.py")) if path.is_dir() else ()
            yield from (path,) if path.is_file() else ()


class Checkout:
    """A copy of the checkout, in which tests are run."""

    def __init__(self, folder: Path, seconds: int):
        """Copies the checkout to a folder and starts the process that runs tests."""
        self.root = folder / "checkout"
        shutil.copytree(ROOT, self.root, ignore=NOT_COPIED)
        self._seconds = seconds
        environment = {
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # as tests have it; read on import
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self._server = subprocess.Popen(
            [sys.executable, "-m", "parity_tests.tools.forked_pytest"],
            cwd=self.root,
            env=environment | os.environ,  # whose cache may be kept
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def test(self, files: Iterable[str]) -> tuple[int | None, str]:
        """Runs files of tests; returns pytest's status and the end of its output."""
        flags = "-x", "-q", "-n0", "-pno:cacheprovider", "--tb=no", "--no-header"
        assert self._server.stdin and self._server.stdout
        order = {"arguments": [*flags, *files], "seconds": self._seconds}
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return answer["status"], answer["output"]

    def write(self, name: str, source: str) -> None:
        """Writes a source, and has Python compile it again."""
        path = self.root / name
        path.write_text(source)
        # Another source of the same size in the same second would pass for the first.
        Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)

    def close(self) -> None:
        """Ends the process that runs tests."""
        with self._server:  # which closes its input, and waits
            pass


class Record:
    """What came out so far, in a file that is written after each fault."""

    def __init__(self, path: Path):
        """Reads what an earlier command has left."""
        self._path = path
        self._content: dict[str, Any] = {"sound": {}, "faults": []}
        if path.exists():
            self._content = json.loads(path.read_text())
        path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def sound(self) -> dict[str, bool]:
        """Whether a file of tests passes where no fault is planted."""
        return self._content["sound"]

    def find(self, mutation: Mutation) -> dict[str, Any] | None:
        """Returns what came out of a fault, or None if it was not planted yet."""
        wanted = dataclasses.asdict(mutation)
        for row in self._content["faults"]:
            if wanted.items() <= row.items():
                return row
        return None

    def add(self, mutation: Mutation, **outcome: Any) -> None:
        """Notes what came out of a fault."""
        self._content["faults"].append(dataclasses.asdict(mutation) | outcome)
        self.write()

    def write(self) -> None:
        """Writes the file beside its place and renames it."""
        write_file(self._path, json.dumps(self._content, indent=1).encode())


def concerned(mutation: Mutation, config: Config) -> tuple[list[str], list[str]]:
    """Returns the tests to run first, files, and those to run then: examples, files."""
    files = [
        (distance, file)
        for distance, file in nearest_tests(mutation.path)
        if distance == 0 or not any(part in file for part in LEFT_OUT)
    ]
    named = sum(distance == 0 for distance, _ in files)
    names = [file for _, file in files][: config.wide]
    near = named or config.near
    module = ".".join(Path(mutation.path).with_suffix("").parts)
    return names[:near], [f"{EXAMPLES}[{module}]", *names[near:]]


def plant(mutation: Mutation, checkout: Checkout, record: Record, config: Config):
    """Plants a fault, runs the tests and takes it out again; notes what came out."""
    source = (checkout.root / mutation.path).read_text()
    outcome, told, seconds = "untested", "", 0.0
    ran: list[str] = []
    for files in concerned(mutation, config):
        files = [file for file in files if _is_sound(file, checkout, record)]
        if not files:
            continue
        ran += files
        began = time.monotonic()
        checkout.write(mutation.path, mutation.apply(source))
        try:
            status, output = checkout.test(files)
        finally:
            checkout.write(mutation.path, source)
        seconds += time.monotonic() - began
        outcome = {None: "ended", 0: "survived"}.get(status, "noticed")
        if status != 0:
            lines = [line for line in output.splitlines() if "FAILED" in line]
            told = (lines or output.splitlines() or [""])[-1]
            break
    record.add(
        mutation, outcome=outcome, told=told, seconds=round(seconds, 1), tests=ran
    )


def _is_sound(file: str, checkout: Checkout, record: Record) -> bool:
    """Whether tests pass where no fault is planted: others would notice any."""
    if file not in record.sound:
        status, output = checkout.test([file])
        record.sound[file] = status == 0
        record.write()
        if status != 0:
            print(f"mutate: {file} fails without a fault, and is left out", flush=True)
            print(output, flush=True)
    return record.sound[file]


def report(mutations: Sequence[Mutation], record: Record) -> str:
    """Returns how many faults were noticed, and each that was not."""
    rows = [row for row in map(record.find, mutations) if row]
    counts = {
        outcome: sum(row["outcome"] == outcome for row in rows)
        for outcome in ("noticed", "survived", "ended", "untested")
    }
    lines = [
        f"{counts['noticed']} of {len(rows)} faults were noticed, "
        f"{counts['survived']} survived, {counts['ended']} ran out of time, "
        f"{counts['untested']} had no test that passes without a fault."
    ]
    for row in sorted(rows, key=lambda row: (row["path"], row["line"])):
        if row["outcome"] != "noticed":
            place = f"{row['path']}:{row['line']}"
            change = f"{row['before']}  ->  {row['after']}"
            lines.append(f"{row['outcome']}  {place}  {row['kind']}: {change}")
    return "\n".join(lines)


def main(config: Config) -> None:
    """Plants the faults that were not planted yet, and tells of all."""
    mutations = choose(config)
    record = Record(config.out)
    left = [mutation for mutation in mutations if record.find(mutation) is None]
    with tempfile.TemporaryDirectory() as folder:
        checkout = Checkout(Path(folder), config.seconds)
        try:
            for number, mutation in enumerate(left, 1):
                plant(mutation, checkout, record, config)
                row = record.find(mutation)
                assert row
                print(
                    f"{number}/{len(left)}  {row['outcome']}  {row['seconds']} s  "
                    f"{row['path']}:{row['line']}  {row['before']} -> {row['after']}",
                    flush=True,
                )
        finally:
            checkout.close()
    print(report(mutations, record))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
