"""Studies without training: a run is a process that leaves the files of one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from dynconv_jax import list_convolutions
from train.commands.study.flags import StudyFlags
from train.commands.study.plan import (
    COUNTS,
)
from train.flags.config import Config

MEMBERS = [name for name in list_convolutions() if name != "static"]

FINISH = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
out.mkdir()
for name, content in zip(("config.json", "summary.json"), sys.argv[2:]):
    (out / name).write_text(content)
"""


def summary_of(config: Config, accuracy: float = 0.9, rate: float = 1000.0) -> dict:
    """Returns what a finished run says of itself."""
    width = float(config.model_options[0].partition("=")[2])
    return {
        "test_accuracy": accuracy,
        "images_per_second": rate,
        "params_sha256": "0" * 64,
        **{name: count(config.conv or "", width) for name, count in COUNTS.items()},
    }


def python(program: str, *arguments: str) -> subprocess.Popen:
    """Starts a small program."""
    return subprocess.Popen([sys.executable, "-S", "-c", program, *arguments])


def finish(config: Config, summary: dict) -> subprocess.Popen:
    """Starts a process that does nothing but leave the files of a finished run."""
    contents = map(json.dumps, (config.to_json(), summary))
    return python(FINISH, str(config.out), *contents)


class Trainer:
    """Stands in for the training, and counts; dynamic nets are better, and slower."""

    def __init__(self):
        self.started: list[str] = []

    def __call__(self, config: Config) -> subprocess.Popen:
        """Starts a run."""
        assert config.out is not None
        self.started.append(config.out.name)
        is_static = config.conv == "static"
        accuracy = (0.88 if is_static else 0.9) + 0.01 * config.seed
        if config.conv == "dynamic":
            accuracy += 0.002 * (config.seed - 0.5)  # all but the same difference
        return finish(config, summary_of(config, accuracy, 1500 if is_static else 1000))


def small(tmp_path, **options) -> StudyFlags:
    """Returns the flags of a study of two members and two seeds."""
    given: dict[str, Any] = dict(convs=("dynamic", "odconv"), seeds=2, steps=50)
    folders = dict(out=tmp_path / "runs", page=tmp_path / "page")
    return StudyFlags(**given | folders | options)


def page_of(flags: StudyFlags) -> Path:
    """Returns the folder of the page, which a study here has."""
    assert flags.page is not None
    return flags.page
