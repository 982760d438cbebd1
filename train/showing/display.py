"""What a run shows while it goes on: a progress bar on a terminal, lines elsewhere."""

import datetime
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

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
        self._console = Console(highlight=False)
        self._has_bar = is_shown and self._console.is_terminal
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[latest]}"),
            console=self._console,
            speed_estimate_period=SPEED_SECONDS,
        )
        self._task = self._progress.add_task("", total=steps, rate="", latest="")

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
            self._console.print(text, markup=False)
        elif self.is_shown:
            print(text, flush=True)

    def logged(self, record: Mapping[str, Any]) -> None:
        """Shows the metrics of a training step."""
        text = f"loss {record['loss']:.4f}  accuracy {record['accuracy']:.3f}"
        rate = f"{record['images_per_second']:.0f} images/s"
        self._progress.update(
            self._task, completed=record["step"], rate=rate, latest=text
        )
        if not self._has_bar:
            if "temperature" in record:
                rate = f"temperature {record['temperature']:.2f}  {rate}"
            self.say(
                f"step {record['step']}/{self.steps}  {text}  "
                f"learning rate {record['learning_rate']:.2e}  {rate}{self._left()}"
            )

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """Shows the metrics of an evaluation."""
        text = (
            f"step {record['step']}/{self.steps}  "
            f"test loss {record['test_loss']:.4f}  "
            f"test accuracy {record['test_accuracy']:.4f}"
        )
        if "ema_test_accuracy" in record:
            text += f"  of the averages {record['ema_test_accuracy']:.4f}"
        self.say(text)

    def _left(self) -> str:
        """Returns how much time is left, once that can be told."""
        seconds = self._progress.tasks[0].time_remaining
        if not seconds:
            return ""
        return f"  {datetime.timedelta(seconds=int(seconds))} left"
