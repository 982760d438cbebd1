"""The directory of a run: whose it is, what is in it, and that it stays whole."""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from flax import nnx

from dynconv_jax.weights import save_weights, write_file
from train.data.dataset import Dataset
from train.errors import TrainError, TrainingFailed
from train.flags.checks import flag_of
from train.flags.config import Config
from train.storage.clear import clear_run, halves_in
from train.storage.lock import Lock
from train.storage.run_files import (
    CHECKPOINTS,
    CONFIG,
    DOMAIN,
    LOCK,
    METRICS,
    RUN_ID,
    SUMMARY,
    has_twin,
    read_config,
    read_identity,
    read_length,
    read_metrics,
    read_run_id,
    read_summary,
    refuse_other_images,
)

# Flags that may change from one start of a run to the next: what is computed does not
# depend on them.
FREE = frozenset(
    {
        *("config", "out", "overwrite", "data", "class_map"),
        *("workers", "on_bad_image", "max_image_pixels"),
        *("checkpoint_every", "keep_checkpoints", "twin"),
        "epochs",  # which are steps by now
        *("coordinator", "num_processes", "process_id", "fsdp"),
    }
)


class RunDirectory:
    """The directory of one run; a context manager, and locked while it is open.

    A file in it is complete or absent; the metrics are appended line by line. In a run
    of several processes one writes, and for the others writing is no work.

    Attributes:
        path: Where it is.
        is_writer: Whether this process writes.
        run_id: A name that no other run has, which the writer knows; None in a run
            that an earlier version of the program began.
    """

    def __init__(
        self, config: Config, is_writer: bool = True, dataset: Dataset | None = None
    ):
        """Creates, accepts or goes on with the directory.

        Args:
            config: The flags; `out` and `overwrite` say where and how.
            is_writer: Whether this process writes.
            dataset: What the run is trained on; it writes down what that is like, for
                those who use the network.

        Raises:
            TrainError: If the directory cannot be written, is in use, holds a run with
                other flags or images, or holds something else; with `overwrite`, only
                for the first two reasons.
        """
        self.is_writer = is_writer
        self._config = config
        self._lock = None
        self._is_claimed = False
        self.run_id: str | None = None
        if not is_writer:
            config.require("out", config.out is not None, "be given to all processes")
        self.path = config.out or _fresh_directory(config.preset)
        if is_writer:
            _create(self.path)
            with self.writing():
                self._lock = Lock(self.path / LOCK)
            try:
                self._claim(dataset)
            except BaseException:
                self._lock.release()
                raise

    def __enter__(self) -> Self:
        """Returns the directory."""
        return self

    def __exit__(self, *_) -> None:
        """Lets other runs in."""
        if self._lock is not None:
            self._lock.release()

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the flags on which the result depends."""
        return _fingerprint(self._config)

    @property
    def earlier_fingerprints(self) -> list[str]:
        """Those of the run before each of its restarts, when it was to end there."""
        restarts = self._config.restarts
        return [
            _fingerprint(
                dataclasses.replace(
                    self._config, steps=end, restarts=restarts[:index], epochs=None
                )
            )
            for index, end in enumerate(restarts)
        ]

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends one line to the metrics."""
        line = json.dumps(record) + "\n"
        with self.writing() as is_mine:
            if is_mine:
                with open(self.path / METRICS, "a", encoding="utf-8") as file:
                    file.write(line)

    def rewind(self, step: int) -> None:
        """Drops the metrics after `step`, and a last line that was written by half.

        A run that goes on after `step` writes them again.

        Raises:
            TrainError: If a line cannot be read that is not the last.
        """
        with self.writing() as is_mine:
            path = self.path / METRICS
            if not is_mine or not path.exists():
                return
            rows = read_metrics(self.path)
            content = b"".join(line for line, row in rows if row["step"] <= step)
            if content != path.read_bytes():
                write_file(path, content)

    def write(self, name: str, content: bytes) -> None:
        """Writes the file `name`."""
        with self.writing() as is_mine:
            if is_mine:
                write_file(self.path / name, content)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes the file `name` as JSON."""
        self.write(name, (json.dumps(content, indent=2) + "\n").encode())

    def write_weights(self, name: str, model: nnx.Module) -> None:
        """Writes the parameters and statistics of `model` as safetensors."""
        with self.writing() as is_mine:
            if is_mine:
                save_weights(model, self.path / name)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary, last, because it stands for a complete run."""
        self.write_json(SUMMARY, summary)

    @contextlib.contextmanager
    def writing(self) -> Iterator[bool]:
        """Says whether to write, and turns an `OSError` into a `TrainingFailed`.

        Raises:
            TrainingFailed: If the directory is no longer that of the run, too.
        """
        try:
            self.check_is_there()
            yield self.is_writer
        except OSError as error:
            raise TrainingFailed(
                f"--out (={self.path}) could not be written: "
                f"{error.strerror or error}; free the space or choose another directory"
                f"{self._last_good()}"
            ) from error

    def check_is_there(self) -> None:
        """Sees to it that nothing is written where the run is no longer.

        To be called before anything is: what is removed or moved under a run is not
        to come back by half, and what is in its place is not the run's.

        Raises:
            TrainingFailed: If the directory was removed, moved or emptied since the run
                began.
            OSError: If that cannot be told.
        """
        if self._lock is None or not self._is_claimed:
            return
        if not self._lock.is_held() or not (self.path / CONFIG).exists():
            raise TrainingFailed(
                f"--out (={self.path}) was removed or replaced while the run was going "
                f"on (its {LOCK} or {CONFIG} is gone, or another's), so it stopped; "
                "the same command starts it anew, or goes on if the files are back"
            )

    def _last_good(self) -> str:
        """Names the last checkpoint, if there is one, in words that end a message."""
        from train.storage.checkpoint_content import complete_steps

        folder = self.path / CHECKPOINTS
        latest = max(complete_steps(folder), default=None)
        if latest is None:
            return ""
        return f" (the last good checkpoint: {folder / str(latest)})"

    def _claim(self, dataset: Dataset | None) -> None:
        """Makes the directory that of this run."""
        with self.writing():
            halves = halves_in(self.path)
            names = {each.name for each in self.path.iterdir()} - {LOCK}
            names -= {each.name for each in halves}
            if self._config.overwrite:
                clear_run(self.path)
            elif CONFIG in names:
                _refuse_other_flags(self.path, self._config)
                if dataset is not None and DOMAIN in names:
                    known = read_identity(self.path)
                    refuse_other_images(dataset.identity(), known, self.path)
            elif names:
                raise TrainError(
                    f"--out (={self.path}) is not empty, and holds no run to go on "
                    "with; choose another directory, or give --overwrite to add the "
                    "results to it"
                )
            for half in halves:
                half.unlink()
        is_new = CONFIG not in names or self._config.overwrite
        self.run_id = uuid.uuid4().hex if is_new else read_run_id(self.path)
        if _finished_summary(self.path, self._config) is None:
            flags = self._config.to_json() | {"out": str(self.path)}
            name = {} if self.run_id is None else {RUN_ID: self.run_id}
            self.write_json(CONFIG, flags | name)
            if _is_shorter(read_summary(self.path), self._config):
                with self.writing():  # After the flags: a run may die between the two.
                    (self.path / SUMMARY).unlink()
        self._is_claimed = True
        if dataset is not None and not (self.path / DOMAIN).exists():
            self.write_json(DOMAIN, dataset.identity())


def find_finished(config: Config) -> dict[str, Any] | None:
    """Returns the summary of the run that is asked for, if it is finished already.

    Raises:
        TrainError: If a run with other flags is, or its summary cannot be read.
    """
    path = config.out
    if path is None or config.overwrite or read_summary(path) is None:
        return None
    # What the network is used with may have been lost; then it is written anew.
    has_domain = (path / DOMAIN).exists()
    if config.epochs is not None and has_domain:
        images = read_identity(path).get("train_images")
        config = config if images is None else config.for_images(images)
    if not config.has_length:
        return None
    config = with_restarts(config)
    _refuse_other_flags(path, config)
    return _finished_summary(path, config) if has_domain else None


def with_restarts(config: Config) -> Config:
    """Returns flags of known length with the restarts of the run in their directory.

    If that is finished, and shorter than asked for, one is added where it ended.

    Raises:
        TrainError: If there is a run, and its files cannot be read.
    """
    if config.out is None or config.overwrite or not (config.out / CONFIG).exists():
        return config
    # In this order: who makes the run longer writes the flags first, and then removes
    # the summary.
    is_finished = read_summary(config.out) is not None
    steps, restarts = read_length(config.out)
    if config.restarts not in ((), restarts) or steps is None:
        return config  # which is refused for these
    if config.total_steps < steps:
        return config
    if is_finished and steps < config.total_steps:
        restarts = *restarts, steps
    return dataclasses.replace(config, restarts=restarts)


def _fingerprint(config: Config) -> str:
    flags = json.dumps(decisive_flags(config), sort_keys=True)
    return hashlib.sha256(flags.encode()).hexdigest()


def _finished_summary(path: Path, config: Config) -> dict[str, Any] | None:
    """Returns the summary of a run that has all that the flags ask for.

    One that was finished without its static twin goes on where that is asked for, and
    so does one with fewer steps.
    """
    summary = read_summary(path)
    if summary is None or _is_shorter(summary, config):
        return None
    return summary if has_twin(summary) or not config.twin else None


def _is_shorter(summary: Mapping[str, Any] | None, config: Config) -> bool:
    """Tells whether a finished run has fewer steps behind it than are asked for.

    One that stopped early has all: told to be longer, it would stop there again.
    """
    if summary is None or summary.get("stopped_early"):
        return False
    return summary.get("steps", config.total_steps) < config.total_steps


def decisive_flags(config: Config) -> dict[str, Any]:
    """Returns the flags on which the result of a run depends, as JSON has them."""
    flags = json.loads(json.dumps(config.to_json()))
    return {name: value for name, value in flags.items() if name not in FREE}


def _refuse_other_flags(path: Path, config: Config) -> None:
    """Refuses to go on with a run under flags that would make it another."""
    before = {n: v for n, v in read_config(path).items() if n not in FREE}
    now = decisive_flags(config)
    steps, restarts = read_length(path)
    if config.restarts == (*restarts, steps) and (path / SUMMARY).exists():
        before |= {name: now[name] for name in ("steps", "restarts")}  # made longer
    differences = [
        f"{flag_of(name)} {before.get(name, '?')} -> {now.get(name, '?')}"
        for name in now | before
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise TrainError(
            f"--out (={path}) holds a run with other flags: {'; '.join(differences)}; "
            "give the same ones to go on with it (--steps may be raised when it is "
            "finished), choose another directory, or --overwrite it to start anew"
        )


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


def _create(path: Path) -> None:
    """Creates a directory, or accepts one that can be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        next(path.iterdir(), None)
    except OSError as error:
        raise TrainError(
            f"--out (={path}) is not a directory that can be written: "
            f"{error.strerror}; choose another one"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise TrainError(f"--out (={path}) cannot be written; choose another directory")
