"""How a run ends early, and what it says on the way: one line each."""

import sys

from train.printable import printable


class TrainError(Exception):
    """A failure that one line explains to the person who started the run.

    Attributes:
        exit_status: What the program exits with.
        is_agreed: Whether all processes of a run raise it, so that none has to tell
            the others.
    """

    exit_status = 2
    is_agreed = False


class ProcessesDiffer(TrainError):
    """Processes of a run have not what all of them must have alike."""

    is_agreed = True


class TrainingFailed(TrainError):
    """A run that was started well and could not be finished."""

    exit_status = 1


class TrainingStopped(TrainError):
    """A run that was told to stop, and has saved what it needs to go on.

    Its exit status is `EX_TEMPFAIL` of sysexits.h: the same command again goes on.
    """

    exit_status = 75
    is_agreed = True


def warn(message: str) -> None:
    """Says on standard error, in one line, what a run has put up with."""
    print(f"train: warning: {printable(message)}", file=sys.stderr, flush=True)
