"""What a run has left in its directory, read back."""

import dataclasses
from pathlib import Path
from typing import Any

from train.errors import TrainError
from train.flags.config import Config
from train.flags.recipe import USUAL
from train.storage.read_json import Unreadable, convert
from train.storage.run_files import CONFIG, read_config, read_metrics

Row = dict[str, Any]

# Flags without which it is no run. Others may have come later, and are as by default.
NEEDED = ("preset", "model", "steps", "batch_size", "seed")

# Flags that `Config.to_json` fills in where they were left out.
DERIVED = (
    *("warmup_steps", "decay_every", "temperature_steps", "assignment_steps"),
    *USUAL,
)


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

        --out, --overwrite and --config, which say where a run is and where its flags
        came from, and not what it is, are in neither.
        """
        flags = self.config.to_json()
        usual = Config().to_json() | _derived_anew(self.config)
        for name in ("out", "overwrite", "config"):
            del flags[name]
        changed = {n: value for n, value in flags.items() if value != usual[n]}
        return changed, {n: v for n, v in flags.items() if n not in changed}


def read_run(path: Path) -> Run:
    """Reads flags and metrics of the run in a directory.

    Raises:
        TrainError: If there is none, or a file of it cannot be read.
    """
    config = _as_config(read_config(path), path)
    rows = [row for _, row in read_metrics(path)]
    return Run(
        path,
        config,
        training=[row for row in rows if "loss" in row],
        tests=[row for row in rows if "test_loss" in row or "val_loss" in row],
    )


def _as_config(flags: dict[str, Any], path: Path) -> Config:
    """Returns flags as JSON has them in their own types."""
    known = {field.name for field in dataclasses.fields(Config)}
    file = path / CONFIG
    for name in flags:
        if name not in known:
            raise TrainError(
                f"the run in {path} is of another version of this program: it has no "
                f"flag {name!r}, which is in {CONFIG}"
            )
    for name in NEEDED:
        if name not in flags:
            raise TrainError(f"{file} has no {name!r}; give the directory of a run")
    try:
        return convert(flags, Config, as_path)
    except Unreadable as error:
        raise TrainError(
            f"{file} cannot be read ({error}); write there what the run was given"
        ) from error
    except TrainError as error:  # of a value that no run could have had
        raise TrainError(f"{file}: {error}") from error


def as_path(kind: type, value: Any) -> Path:
    """Reads, for msgspec, the one type that JSON has not."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"expected `str`, got `{type(value).__name__}`")


def _derived_anew(config: Config) -> dict[str, Any]:
    """Returns what the derived flags would have been, had they been left out."""
    anew = dataclasses.replace(config, **dict.fromkeys(DERIVED)).to_json()
    derived = {name: anew[name] for name in DERIVED}
    if config.epochs is not None:  # Nothing else gave the steps.
        derived["steps"] = config.total_steps
    return derived
