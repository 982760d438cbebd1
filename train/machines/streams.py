"""Standard output and error that fail without ending the run, or breaking a letter."""

import codecs
import io
import os
import select
import sys
from collections.abc import Callable
from typing import Any

from train.errors import warn

# What our own texts have beyond ASCII, for a terminal that has no more than that.
PLAIN = str.maketrans({"–": "-", "—": "-", "…": ".", "×": "x", "·": "."})
ERRORS = "train.plain"


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Writes in ASCII what an encoding has not: as it looks, or as its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(PLAIN)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error(ERRORS, _plain)


class _Output(io.FileIO):
    """A file that notes its first failure, and from then on takes all there is.

    A reader that went away must not end what it was only watching.
    """

    def __init__(self, descriptor: int, tell: Callable[[OSError], Any]):
        super().__init__(descriptor, "wb", closefd=False)
        self.failure: OSError | None = None
        self._tell = tell

    def write(self, data: Any, /) -> int:
        try:
            while (written := super().write(data)) is None:
                select.select([], [self], [])  # another program made it non-blocking
            return written
        except OSError as error:
            if self.failure is None:
                self.failure = error
                self._tell(error)
            return memoryview(data).nbytes


class Streams:
    """Standard output and standard error of the process, from now to its end.

    Attributes:
        goes_on: Whether the command outlives its reader, as a run does.
    """

    def __init__(self, goes_on: bool):
        """Puts them in the place of Python's own.

        Args:
            goes_on: Whether the command outlives its reader, and says so.
        """
        self.goes_on = goes_on
        # A file of the run must not be opened under the number of a closed stream.
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
        error = _Output(2, lambda _: None)
        self._output = _Output(1, self._tell)
        sys.stderr = _text(error, sys.stderr, line_buffering=True)
        sys.stdout = _text(self._output, sys.stdout)

    def _tell(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            reason = f"standard output cannot be written: {error.strerror}"
            print(f"train: error: {reason}", file=sys.stderr)
        elif self.goes_on:
            warn("nobody reads standard output any more; the run goes on")

    def close(self, status: int) -> int:
        """Writes what is left, and returns what the program is to exit with.

        Args:
            status: What it would exit with if all was written. Only 0 is changed: to
                1 if output was lost, and, for a command that was to tell something, to
                141 if its reader went away, as if SIGPIPE had ended it.
        """
        sys.stdout.flush()
        failure = self._output.failure
        if status or failure is None:
            return status
        if isinstance(failure, BrokenPipeError):
            return 0 if self.goes_on else 141
        return 1


def _text(file: _Output, former: Any, **options: Any) -> io.TextIOWrapper:
    """Returns a text stream like a former one, which is None if it was closed."""
    if former is not None:
        names = ("line_buffering", "write_through")
        options = {name: getattr(former, name) for name in names} | options
    return io.TextIOWrapper(
        io.BufferedWriter(file),
        encoding=getattr(former, "encoding", None),
        errors=ERRORS,
        **options,
    )
