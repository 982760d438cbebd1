"""How fast a run is, with what is not training left out."""

import time


class Clock:
    """Measures images per second over the stretches between `start` and `stop`.

    Attributes:
        seconds: The training time so far, that of the run before it was stopped
            included.
    """

    def __init__(self, batch_size: int, step: int = 0, seconds: float = 0.0):
        """Sets the clock.

        Args:
            batch_size: The images of a step.
            step: The steps that a resumed run has behind it.
            seconds: How long they took.
        """
        self.seconds = seconds
        self._batch_size = batch_size
        self._started = 0.0
        self._step = step
        self._logged = (step, seconds)

    def start(self) -> None:
        """Starts a stretch."""
        self._started = time.perf_counter()

    def stop(self, step: int) -> None:
        """Ends the stretch after `step`."""
        self.seconds += time.perf_counter() - self._started
        self._step = step

    def rate(self) -> float:
        """Returns the images per second of the whole run."""
        return self._step * self._batch_size / self.seconds

    def lap_rate(self) -> float:
        """Returns the images per second since it was last asked."""
        step, seconds = self._logged
        self._logged = (self._step, self.seconds)
        return (self._step - step) * self._batch_size / (self.seconds - seconds)
