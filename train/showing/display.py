"""What a run shows while it goes on: a progress bar on a terminal, lines elsewhere."""

import datetime
from collections.abc import Mapping
from typing import Any, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from train.data.dataset import PARTS, Part
from train.printable import printable
from train.showing.console import open_console, say

# What is left is told from the speed over so many seconds: evaluations, which come
# seldom, belong to it.
SPEED_SECONDS = 3600


class Display:
    """Shows the metrics of a run; a context manager.

    In a run of several processes one shows them, and the others are silent.

    Attributes:
        steps: The steps of the whole run.
        is_shown: Whether this process shows anything.
    """

    def __init__(self, steps: int, is_shown: bool = True):
        """Prepares the display.

        Args:
            steps: The steps of the whole run.
            is_shown: Whether this process shows anything.
        """
        self.steps = steps
        self.is_shown = is_shown
        self._console = open_console()
        self._has_bar = is_shown and self._console.is_terminal
        self._progress = Progress(
            *_columns(steps, self._console.width),
            console=self._console,
            speed_estimate_period=SPEED_SECONDS,
        )
        self._task = self._progress.add_task(
            "", total=steps, rate="", loss="", accuracy=""
        )

    def __enter__(self) -> Self:
        """Opens the progress bar, if this is a terminal."""
        if self._has_bar:
            self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        """Closes it."""
        if self._has_bar:
            self._progress.stop()

    def start(self, step: int = 0) -> None:
        """Starts the clock of the time that is left.

        Args:
            step: The steps that a resumed run has behind it.
        """
        self._progress.reset(self._task, total=self.steps, completed=step)

    def say(self, text: str) -> None:
        """Prints one line, above the bar where there is one."""
        if self._has_bar:
            say(self._console, printable(text))
        elif self.is_shown:
            print(printable(text), flush=True)

    def logged(self, record: Mapping[str, Any]) -> None:
        """Shows the metrics of a training step."""
        loss = f"loss {record['loss']:.4f}"
        accuracy = f"accuracy {record['accuracy']:.3f}"
        rate = f"{record['images_per_second']:.0f} images/s"
        self._progress.update(
            self._task,
            completed=record["step"],
            rate=rate,
            loss=loss,
            accuracy=accuracy,
        )
        if not self._has_bar:
            if "temperature" in record:
                rate = f"temperature {record['temperature']:.2f}  {rate}"
            self.say(
                f"step {record['step']}/{self.steps}  {loss}  {accuracy}  "
                f"learning rate {record['learning_rate']:.2e}  {rate}{self._left()}"
            )

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """Shows the metrics of an evaluation."""
        part = part_of(record)
        text = (
            f"step {record['step']}/{self.steps}  "
            f"{PARTS[part]} loss {record[f'{part}_loss']:.4f}  {accuracies(record)}"
        )
        if f"ema_{part}_accuracy" in record:
            text += f"  of the averages {record[f'ema_{part}_accuracy']:.4f}"
        self.say(text)

    def _left(self) -> str:
        """Returns how much time is left, once that can be told."""
        seconds = self._progress.tasks[0].time_remaining
        if not seconds:
            return ""
        return f"  {datetime.timedelta(seconds=int(seconds))} left"


def part_of(record: Mapping[str, Any]) -> Part:
    """Returns what a record or a summary has the accuracy of; the test comes first."""
    return next(part for part in PARTS if f"{part}_accuracy" in record)


def accuracies(record: Mapping[str, Any]) -> str:
    """Returns the accuracy of a record or a summary in words, and that of its twin.

    Example:
        >>> accuracies({"val_accuracy": 0.95, "twin_val_accuracy": 0.94})
        'validation accuracy 0.9500 (its static twin: 0.9400)'
    """
    part = part_of(record)
    words = f"{PARTS[part]} accuracy {record[f'{part}_accuracy']:.4f}"
    if f"twin_{part}_accuracy" in record:
        words += f" (its static twin: {record[f'twin_{part}_accuracy']:.4f})"
    return words


def _columns(steps: int, width: int) -> list[ProgressColumn]:
    """Returns what of a line of progress has room on a screen, in its usual order."""
    rate, loss, accuracy = (
        TextColumn(f"{{task.fields[{name}]}}") for name in ("rate", "loss", "accuracy")
    )
    # How wide each is, with the blank after it, and which ones go first.
    places: list[tuple[ProgressColumn, int, int]] = [
        (TextColumn("training"), 9, 6),
        (BarColumn(bar_width=20), 21, 5),
        (MofNCompleteColumn(), 2 * len(str(steps)) + 2, 0),
        (rate, 15, 4),
        (TimeRemainingColumn(), 8, 2),
        (loss, 12, 1),
        (accuracy, 15, 3),
    ]
    shown = set()
    for column, needed, _ in sorted(places, key=lambda place: place[2]):
        if needed > width:
            break
        width -= needed
        shown.add(column)
    return [column for column, _, _ in places if column in shown]
