"""What a run leaves behind: the files of its directory."""

import contextlib
import datetime
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from dynconv_jax.weights import save_weights, write_file
from train.config import Config
from train.errors import TrainError, TrainingFailed

METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PICTURE = "routing.png"
FILES = (METRICS, SUMMARY, CONFIG, WEIGHTS, PICTURE)
COLORS = "PuOr_r"  # of the picture: light in the middle of the scale


class RunDirectory:
    """The directory of one run.

    A file in it is complete or absent; the metrics are appended line by line.

    Attributes:
        path: Where it is.
    """

    def __init__(self, config: Config):
        """Creates or accepts the directory, and writes the configuration into it.

        Args:
            config: The flags; `out` and `overwrite` say where and how.

        Raises:
            TrainError: If the directory cannot be written, or holds something and
                `overwrite` was not given.
        """
        if config.out is None:
            self.path = _fresh_directory(config.preset)
        else:
            self.path = config.out
            _claim(config.out, config.overwrite)
        with self._writing():
            for name in FILES:  # A run that fails must not keep another's results.
                (self.path / name).unlink(missing_ok=True)
        self._write_json(CONFIG, config.to_json() | {"out": str(self.path)})

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends one line to the metrics."""
        with self._writing(), open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def finish(
        self,
        model: nnx.Module,
        attention: Mapping[str, np.ndarray],
        summary: Mapping[str, Any],
    ) -> None:
        """Writes the results.

        Args:
            model: The trained model.
            attention: For every router its mean attention by class, (classes, K).
            summary: The figures of the run; written last, so that it stands for a
                complete run.
        """
        with self._writing():
            save_weights(model, self.path / WEIGHTS)
        self._write(PICTURE, draw_routing(attention))
        self._write_json(SUMMARY, summary)

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self._write(name, (json.dumps(content, indent=2) + "\n").encode())

    def _write(self, name: str, content: bytes) -> None:
        with self._writing():
            write_file(self.path / name, content)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingFailed(
                f"--out (={self.path}) could not be written: {error.strerror}; free "
                "the space or choose another directory"
            ) from error


def _fresh_directory(preset: str) -> Path:
    """Creates a directory below runs/ that no other run has."""
    name = f"{preset}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    candidates = [name] + [f"{name}-{number}" for number in range(2, 100)]
    try:
        for candidate in candidates:
            path = Path("runs") / candidate
            with contextlib.suppress(FileExistsError):
                path.mkdir(parents=True)
                return path
        raise FileExistsError(0, "all names are taken")
    except OSError as error:
        raise TrainError(
            f"--out was not given, and runs/{name} cannot be created: "
            f"{error.strerror}; give --out a directory that can be written"
        ) from error


def _claim(path: Path, overwrite: bool) -> None:
    """Creates a directory, or accepts one that is free."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        is_empty = not any(path.iterdir())
    except OSError as error:
        raise TrainError(
            f"--out (={path}) is not a directory that can be written: "
            f"{error.strerror}; choose another one"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise TrainError(f"--out (={path}) cannot be written; choose another directory")
    if not is_empty and not overwrite:
        raise TrainError(
            f"--out (={path}) is not empty; choose another directory, or give "
            "--overwrite to replace the results in it"
        )


def draw_routing(attention: Mapping[str, np.ndarray]) -> bytes:
    """Draws what the routers learned: for each a heat map, classes by experts.

    Args:
        attention: For every router its mean attention by class, (classes, K).

    Returns:
        The picture, as PNG.
    """
    columns = min(4, len(attention))
    rows = math.ceil(len(attention) / columns)
    classes, experts = next(iter(attention.values())).shape
    panel = (1.2 + 0.55 * experts, 1.2 + 0.38 * classes)
    # A Figure of its own, not pyplot's: no display is opened and no state is shared.
    figure = Figure((columns * panel[0] + 1.2, rows * panel[1]), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    even = 1 / experts
    highest = max(float(each.max()) for each in attention.values())
    # White is an even share. The scale does not shrink with the differences, or routers
    # that learned nothing would look as if they had.
    norm = TwoSlopeNorm(vmin=0, vcenter=even, vmax=max(highest, 2 * even))
    for axes in grid.flat[len(attention) :]:
        axes.remove()
    for axes, (path, table) in zip(grid.flat, attention.items(), strict=False):
        axes.imshow(table, cmap=COLORS, norm=norm, aspect="auto")
        axes.set_title(path.removesuffix(".router") or "router", fontsize=11)
        axes.set_xlabel("expert")
        axes.set_xticks(range(table.shape[1]))
        axes.set_yticks(range(table.shape[0]))
        axes.tick_params(length=0)
        if table.shape[1] > 8:  # The numbers would run into one another.
            continue
        for (row, column), value in np.ndenumerate(table):
            is_dark = abs(float(norm(value)) - 0.5) > 0.35
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                color="white" if is_dark else "black",
                fontsize=8,
            )
    for axes in grid[:, 0]:
        axes.set_ylabel("class")
    figure.colorbar(
        ScalarMappable(norm, COLORS),
        ax=figure.axes,
        label="mean attention (white: an even share)",
        aspect=30,
        pad=0.02,
    )
    figure.suptitle("Attention over the experts, by class of the test images")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
