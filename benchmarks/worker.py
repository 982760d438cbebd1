"""python -m benchmarks.worker: one process of the benchmark, see `__main__.py`."""

import dataclasses
import json
from pathlib import Path

import tyro

from benchmarks.measure import Settings, default_dtypes, measure


@dataclasses.dataclass(frozen=True)
class Config:
    """What one process measures."""

    rounds: int
    """How often to time each call."""

    out: Path
    """The file that the measurements are written to (JSON)."""

    quick: bool = False
    """Leave out what takes long."""


def main(config: Config) -> None:
    """Measures, for every dtype, and writes what came out."""
    results = {}
    for dtype in default_dtypes():
        settings = Settings(config.rounds, config.quick, dtype)
        results[dtype] = measure(settings, lambda subject: print(subject, flush=True))
    config.out.write_text(json.dumps(results))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
