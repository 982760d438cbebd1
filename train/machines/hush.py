"""Silence about what is said already: a failed save is one line, not a hundred."""

import logging
import sys
from collections.abc import Callable
from typing import Any


def hush_orbax() -> None:
    """Drops what orbax prints beside the exception that it raises.

    orbax logs the exception again, and gives up the writes that are under way beside
    the one that failed: each of these then complains of the closed event loop, or that
    nobody asks for its own exception. It stays so until the process ends, because they
    come late.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_is_news)  # added once, however often
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


def _is_news(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()


class _Hook:
    """Reports exceptions that cannot be raised, but for the closed event loop."""

    def __init__(self, report: Callable[[Any], Any]):
        self._report = report

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        is_known = isinstance(error, RuntimeError) and "loop is closed" in str(error)
        if not is_known:
            self._report(unraisable)
