"""Being told to stop: by SIGTERM, as clusters do, or by Ctrl-C."""

import os
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignals:
    """Notes that the run is to stop, instead of dying of it; a context manager.

    SIGTERM and the first Ctrl-C ask the run to stop after a step; a second Ctrl-C
    interrupts it. Where several processes share the run, one that is asked is enough,
    and all stop after the same step.
    """

    def __init__(self):
        self._is_asked = False
        self._steps = 0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        """Starts to listen."""
        # JAX's runtime listens to SIGTERM itself where there are several processes.
        handlers = {signal.SIGINT: self._interrupted}
        if jax.process_count() == 1:
            handlers[signal.SIGTERM] = self._asked
        for number, handler in handlers.items():
            self._former[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the signals as they were."""
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def stop_after_step(self) -> bool:
        """Tells whether to save and stop after this step; the same in all processes.

        To be called after every step, by every process: it costs some microseconds.
        """
        # Of this program, not of the run: a process may train two, one after the other,
        # and one that is asked at the end of the first stops in the second.
        self._steps += 1
        if jax.process_count() == 1:
            return self._is_asked
        return multihost_utils.reached_preemption_sync_point(self._steps)

    def _asked(self, number: int, frame: Any) -> None:
        self._is_asked = True

    def _interrupted(self, number: int, frame: Any) -> None:
        self._is_asked = True
        signal.signal(signal.SIGINT, self._former[signal.SIGINT])
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
