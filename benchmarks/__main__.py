"""python -m benchmarks: what a dynamic convolution costs, on this machine.

Times layers, depthwise layers and DynamicNet against PyTorch, against the mapped
convolution, against static convolutions and against the rate of a plain product, in
turn, each subject in a process of its own, and writes a page with tables and plots. On
a CPU everything is measured twice: in the environment as it is, and with an allocator
that keeps its pages. Absolute times differ between machines and from run to run; the
ratios are what to compare.
"""

import dataclasses
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import tyro

from benchmarks.machine import PAGES_KEPT
from benchmarks.measure import subjects
from benchmarks.report import write_report


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, and where the page goes."""

    quick: bool = False
    """A few shapes and rounds, in under two minutes."""

    rounds: int | None = None
    """How often to time each call; None takes 7, or 3 for a quick run."""

    out: Path = Path("runs/benchmarks")
    """The directory for `index.md`, `results.json` and the plots."""


def run_worker(index: int, environment: dict[str, str], config: Config) -> dict:
    """Measures one subject in its own process, which chooses its allocator at start."""
    rounds = config.rounds or (3 if config.quick else 7)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        options = dict(index=index, rounds=rounds, out=path)
        flags = [f"--{name}={value}" for name, value in options.items()]
        if config.quick:
            flags.append("--quick")
        subprocess.run(
            [sys.executable, "-m", "benchmarks.worker", *flags],
            env={**os.environ, **environment},
            check=True,
        )
        return json.loads(path.read_text())


def run_environment(environment: dict[str, str], config: Config) -> dict:
    """Measures all subjects, one after the other; returns them by dtype and part."""
    measured: dict[str, dict] = {}
    for index, (part, subject) in enumerate(subjects(config.quick)):
        print(f"{part}: {subject}", flush=True)
        found = run_worker(index, environment, config)
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
