"""The page that tells of a run: one file, which opens without a network."""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynconv_jax.weights import write_file
from train.evaluation import Evaluation
from train.presets import Dataset
from train.run_directory import REPORT


def write_report(
    path: Path, dataset: Dataset, evaluation: Evaluation, summary: Mapping[str, Any]
) -> None:
    """Writes report.html into the directory of a run.

    Args:
        path: The directory; its configuration and metrics are read.
        dataset: What the run was tested on.
        evaluation: How it did at its end.
        summary: What summary.json will hold: that is written after the report.

    Raises:
        OSError: If a file cannot be read or written.
    """
    text = html.escape(json.dumps(dict(summary), indent=2))
    write_file(path / REPORT, f"<!doctype html><pre>{text}</pre>\n".encode())
