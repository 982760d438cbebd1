"""What a run has left in its directory, read back."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from train.errors import TrainError
from train.flags.config import Config
from train.storage.run_files import METRICS, read_config

Row = dict[str, Any]

# Flags that `Config.to_json` fills in where they were left out.
DERIVED = ("warmup_steps", "decay_every", "temperature_steps", "assignment_steps")


@dataclasses.dataclass(frozen=True)
class Run:
    """The files of a run, read.

    Attributes:
        path: The directory.
        config: Its flags.
        training: The rows of metrics.jsonl of training steps.
        tests: Those of evaluations.
    """

    path: Path
    config: Config
    training: list[Row]
    tests: list[Row]

    @property
    def name(self) -> str:
        """What to call it: the name of the directory."""
        return self.path.resolve().name

    def split_flags(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the flags that differ from their defaults, and the others.

        --out and --overwrite, which say where a run is and not what, are in neither.
        """
        flags = self.config.to_json()
        usual = Config().to_json() | _derived_anew(self.config)
        del flags["out"], flags["overwrite"]
        changed = {n: value for n, value in flags.items() if value != usual[n]}
        return changed, {n: v for n, v in flags.items() if n not in changed}


def read_run(path: Path) -> Run:
    """Reads flags and metrics of the run in a directory.

    Raises:
        TrainError: If there is none, or a file of it cannot be read.
    """
    config = _as_config(read_config(path), path)
    try:
        text = (path / METRICS).read_text("utf-8")
        # A run that died may have left half a line.
        rows = [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]
    except FileNotFoundError:
        rows = []
    except (OSError, ValueError) as error:
        raise TrainError(f"{path / METRICS} cannot be read: {error}") from error
    return Run(
        path,
        config,
        training=[row for row in rows if "loss" in row],
        tests=[row for row in rows if "test_loss" in row],
    )


def _as_config(flags: dict[str, Any], path: Path) -> Config:
    """Returns flags as JSON has them in their own types."""
    hints = typing.get_type_hints(Config)
    values: dict[str, Any] = {}
    for name, value in flags.items():
        if name not in hints:
            raise TrainError(
                f"the run in {path} is of another version of this program: it has no "
                f"flag {name!r}"
            )
        if isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, str) and Path in typing.get_args(hints[name]):
            value = Path(value)
        values[name] = value
    return Config(**values)


def _derived_anew(config: Config) -> dict[str, Any]:
    """Returns what the derived flags would have been, had they been left out."""
    anew = dataclasses.replace(config, **dict.fromkeys(DERIVED)).to_json()
    return {name: anew[name] for name in DERIVED}
