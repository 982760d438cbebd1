"""What a run shows while it goes on: a progress bar on a terminal, lines elsewhere."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


class Display:
    """Shows the metrics of a run; a context manager.

    Attributes:
        steps: The steps of the whole run.
    """

    def __init__(self, steps: int):
        """Prepares the display.

        Args:
            steps: The steps of the whole run.
        """
        self.steps = steps
        self._console = Console(highlight=False)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[latest]}"),
            console=self._console,
        )
        self._task = self._progress.add_task("", total=steps, latest="")

    def __enter__(self) -> "Display":
        """Opens the progress bar, if this is a terminal."""
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        """Closes it."""
        if self._console.is_terminal:
            self._progress.stop()

    def say(self, text: str) -> None:
        """Prints one line, above the bar where there is one."""
        if self._console.is_terminal:
            self._console.print(text, markup=False)
        else:
            print(text, flush=True)

    def logged(self, record: Mapping[str, Any]) -> None:
        """Shows the metrics of a training step."""
        text = f"loss {record['loss']:.4f}  accuracy {record['accuracy']:.3f}"
        if self._console.is_terminal:
            self._progress.update(self._task, completed=record["step"], latest=text)
        else:
            self.say(
                f"step {record['step']}/{self.steps}  {text}  "
                f"learning rate {record['learning_rate']:.2e}  "
                f"temperature {record['temperature']:.2f}  "
                f"{record['images_per_second']:.0f} images/s"
            )

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """Shows the metrics of an evaluation."""
        self.say(
            f"step {record['step']}/{self.steps}  "
            f"test loss {record['test_loss']:.4f}  "
            f"test accuracy {record['test_accuracy']:.4f}"
        )
