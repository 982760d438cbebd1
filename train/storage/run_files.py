"""The files of a run: what they are called, and how those that tell of it are read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.data.dataset import Domain
from train.errors import TrainError

CONFIG = "config.json"
DOMAIN = "domain.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
WEIGHTS = "model.safetensors"
BEST_WEIGHTS = "best.safetensors"
EMA_WEIGHTS = "ema.safetensors"
PICTURE = "routing.png"
REPORT = "report.html"
FILES = (
    *(CONFIG, DOMAIN, METRICS, SUMMARY, WEIGHTS, BEST_WEIGHTS, EMA_WEIGHTS),
    *(PICTURE, REPORT),
)
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
FOLDERS = (CHECKPOINTS, TENSORBOARD)
LOCK = ".lock"


def read_config(path: Path) -> dict[str, Any]:
    """Returns the flags of the run in the directory `path`.

    Raises:
        TrainError: If there is none.
    """
    try:
        flags = json.loads((path / CONFIG).read_bytes())
        if not isinstance(flags, dict):
            raise ValueError("no flags in it")
    except (OSError, ValueError) as error:
        raise TrainError(
            f"{path} holds no run: {CONFIG} cannot be read ({error}); give the "
            "directory of a run"
        ) from error
    return flags


def read_domain(path: Path) -> Domain:
    """Returns what the images of the run in the directory `path` are like.

    Raises:
        TrainError: If it does not say.
    """
    return Domain.of(read_identity(path))


def read_identity(path: Path) -> dict[str, Any]:
    """Returns what the images of the run in the directory `path` are told by.

    Raises:
        TrainError: If it does not say.
    """
    try:
        images = json.loads((path / DOMAIN).read_bytes())
        Domain.of(images)
        return images
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TrainError(
            f"{path / DOMAIN} cannot be read ({error}); remove it and give the run's "
            "command again to write it anew"
        ) from error


def read_summary(path: Path) -> dict[str, Any] | None:
    """Returns the figures of the run in the directory `path`, None if not finished.

    Raises:
        TrainError: If they cannot be read.
    """
    try:
        return json.loads((path / SUMMARY).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise TrainError(
            f"{path / SUMMARY} cannot be read ({error}); remove it and give the run's "
            "command again to finish it anew"
        ) from error


def refuse_other_images(
    found: Mapping[str, Any], known: Mapping[str, Any], path: Path
) -> None:
    """Refuses images that are not those of a run, as far as both are described.

    Args:
        found: What the images are told by, or only what they are like.
        known: The same of those of the run.
        path: The directory of the run.

    Raises:
        TrainError: If they are others.
    """
    # One text has several spellings: a run may have begun with another of its classes.
    known = dict(known) | Domain.of(known).to_json()
    for name in [name for name in found if name in known]:
        if found[name] != known[name]:
            raise TrainError(
                f"the images have {name} {found[name]}, and those that the run in "
                f"{path} began with {known[name]}; give the same images"
            )
