"""python -m benchmarks.worker: one process of the benchmark, see `__main__.py`."""

import dataclasses
import json
from pathlib import Path

import tyro

from benchmarks import machine
from benchmarks.measure import Settings, default_dtypes, measure, subjects


@dataclasses.dataclass(frozen=True)
class Config:
    """What one process measures."""

    index: int
    """Which of the subjects."""

    rounds: int
    """How often to time each call."""

    out: Path
    """The file that the measurements are written to (JSON)."""

    quick: bool = False
    """Leave out what takes long."""


def main(config: Config) -> None:
    """Measures one subject, for every dtype, and writes what came out."""
    part, subject = subjects(config.quick)[config.index]
    results = {
        dtype: measure(part, subject, Settings(config.rounds, config.quick, dtype))
        for dtype in default_dtypes()
    }
    found = {"machine": machine.describe(), "part": part, "results": results}
    config.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
