"""The metrics of a run as TensorBoard reads them."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

from train.data.dataset import PARTS
from train.storage.run_directory import RunDirectory
from train.storage.run_files import TENSORBOARD


class TensorBoard:
    """Writes metrics to a file of events; a context manager.

    Each row is written at once, by the thread that has it: a disk that is full is
    noticed here, and a run that is killed loses nothing.
    """

    def __init__(self, run: RunDirectory, step: int = 0):
        """Begins a file of events.

        Args:
            run: Where to; a process that does not write there does not write here.
            step: The step after which the run goes on; what earlier files have of later
                steps, TensorBoard leaves out.
        """
        self._run = run
        self._writer = None
        goes_on = False
        with run.writing() as is_mine:
            if is_mine:
                with without("torch"):
                    from tensorboardX.event_file_writer import EventsWriter

                folder = run.path / TENSORBOARD
                folder.mkdir(exist_ok=True)
                goes_on = step > 0 or any(folder.iterdir())
                # The name has the second; a process of its own has a file of its own.
                self._writer = EventsWriter(f"{folder}/events", f".{os.getpid()}")
        if goes_on:
            self._write(step + 1, session_log={"status": "START"})

    def __enter__(self) -> Self:
        """Returns this."""
        return self

    def __exit__(self, *_) -> None:
        """Closes the file."""
        if self._writer is not None:
            with self._run.writing():
                self._writer.close()

    def log(self, record: Mapping[str, Any]) -> None:
        """Writes one row of the metrics, as `RunDirectory.log` takes it."""
        values = [
            {"tag": tag, "simple_value": value} for tag, value in scalars_of(record)
        ]
        self._write(record["step"], summary={"value": values})

    def _write(self, step: int, **content: Any) -> None:
        if self._writer is None:
            return
        from tensorboardX.proto import event_pb2

        messages: Any = event_pb2  # whose classes are made when it is imported
        event = messages.Event(wall_time=time.time(), step=step, **content)

        with self._run.writing():
            self._writer.write_event(event)
            self._writer.flush()


@contextlib.contextmanager
def without(package: str) -> Iterator[None]:
    """Has imports of a package fail meanwhile, unless it has been imported.

    tensorboardX imports PyTorch where it finds it, which takes a second or two, for
    what is not used here.

    Args:
        package: The package that is to seem not installed.

    Example:
        >>> with without("a_package"):
        ...     import a_package
        Traceback (most recent call last):
        ModuleNotFoundError: import of a_package halted; None in sys.modules
    """
    modules: dict[str, Any] = sys.modules
    if package in modules:
        yield
        return
    modules[package] = None
    try:
        yield
    finally:
        del modules[package]


def scalars_of(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the numbers of a row of the metrics, and their names in TensorBoard.

    Example:
        >>> dict(scalars_of({"step": 1, "loss": 2.0, "entropy": {"s1.router": 0.5}}))
        {'train/loss': 2.0, 'entropy/s1.router': 0.5}
    """
    for name, value in record.items():
        if isinstance(value, Mapping):
            for path, each in value.items():
                yield from _by_expert(f"{name}/{path}", each)
        elif name != "step":
            yield f"{_group_of(name)}/{name}", value


def _group_of(name: str) -> str:
    """Returns the group of a number; TensorBoard draws a section for each."""
    for part in PARTS:
        if name.startswith((f"{part}_", f"ema_{part}_")):
            return part
    return "train"


def _by_expert(name: str, value: float | list[float]) -> Iterator[tuple[str, float]]:
    if not isinstance(value, list):
        yield name, value
        return
    for expert, share in enumerate(value):
        yield f"{name}/{expert}", share
