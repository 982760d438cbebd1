"""python -m benchmarks: what a dynamic convolution costs, on this machine.

Times layers, depthwise layers and DynamicNet against PyTorch, against the mapped
convolution, against static convolutions and against the rate of a plain product, in
turn, each framework in a process of its own, and writes a page with tables and plots.
There are two times of everything: of a call between those of others, and of one in a
row of its own. On a CPU all is measured in two environments: as it is, and with an
allocator that keeps its pages. Absolute times differ between machines and from run to
run; the ratios are what to compare.
"""

import contextlib
import dataclasses
import datetime
import sys
import time
from pathlib import Path

import tyro

from benchmarks.machine import PAGES_KEPT
from benchmarks.measure import Settings, measure, subjects
from benchmarks.report import write_report
from benchmarks.worker import FRAMEWORKS, Worker
from benchmarks.worker import Config as WorkerConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and where the page goes."""

    quick: bool = False
    """A few shapes and rounds, in under two minutes."""

    rounds: int | None = None
    """How often to time each call; None takes 7, or 3 for a quick run."""

    out: Path = Path("runs/benchmarks")
    """The directory for `index.md`, `results.json`, the plots and the tables."""


def run_subject(index: int, environment: dict[str, str], config: Config) -> dict:
    """Measures one subject, for every dtype; returns the records and the machine.

    Each framework has a process of its own, which chooses its allocator at start; they
    compute in turn.
    """
    part, subject = subjects(config.quick)[index]
    rounds = config.rounds or (3 if config.quick else 7)
    records, dtypes, machine = {}, ["float32"], {}
    while len(records) < len(dtypes):
        dtype = dtypes[len(records)]
        with contextlib.ExitStack() as processes:
            workers = {
                framework: processes.enter_context(
                    Worker(
                        WorkerConfig(index, framework, dtype, config.quick), environment
                    )
                )
                for framework in FRAMEWORKS
            }
            settings = Settings(rounds, config.quick, dtype)
            records[dtype] = measure(part, subject, workers, settings)
            dtypes, machine = workers["jax"].dtypes, workers["jax"].machine
    return {"machine": machine, "results": records}


def run_environment(environment: dict[str, str], config: Config) -> dict:
    """Measures all subjects, one after the other; returns them by dtype and part."""
    measured: dict[str, dict] = {}
    for index, (part, subject) in enumerate(subjects(config.quick)):
        start = time.monotonic()
        print(f"{part}: {subject}", end="", flush=True)
        found = run_subject(index, environment, config)
        print(f" ({time.monotonic() - start:.0f} s)", flush=True)
        for dtype, record in found["results"].items():
            by_part = measured.setdefault(dtype, {"machine": found["machine"]})
            by_part.setdefault(part, []).append(record)
    return measured


def main(config: Config) -> None:
    """Measures and writes the page."""
    environments = {"as found": {}}
    if sys.platform == "linux" and not Path("/dev/nvidia0").exists():
        environments["pages kept"] = {"GLIBC_TUNABLES": PAGES_KEPT}
    results: dict = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "environments": {},
    }
    for name, environment in environments.items():
        print(f"-- {name}", flush=True)
        results["environments"][name] = run_environment(environment, config)
    page = write_report(results, config.out)
    print(f"\n{page.read_text()}\nwritten to {page}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
