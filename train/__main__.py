"""The command line: `python -m train`."""

import importlib
import sys
from collections.abc import Sequence

from _dynconv_version import __version__
from train.errors import TrainError, TrainingStopped
from train.machines.streams import Streams
from train.printable import printable
from train.requirements import check_installed

# Commands that train nothing: without a reader they have nothing to do.
ONLY_TELL = (["compare"], ["evaluate"], ["predict"])


def main(argv: Sequence[str]) -> int:
    """Runs the program and returns its exit status.

    Args:
        argv: The arguments, without the name of the program.

    Returns:
        0 after a complete run, 1 if training failed, 2 if an argument is refused, 75
        if the run was told to stop and has saved what it needs to go on.

    Raises:
        SystemExit: With 0, after `--help`.
    """
    if "--version" in argv:
        print(f"dynconv {__version__}")
        return 0
    try:
        check_installed()
        from train.flags.config import parse  # which needs the extra
        from train.flags.help import COMMANDS

        if argv and argv[0] in COMMANDS:
            importlib.import_module(f"train.commands.{argv[0]}").main(argv[1:])
            return 0
        from train.flags.inquiry import inquiry_in
        from train.storage.config_file import with_file

        inquiry = inquiry_in(argv)
        if inquiry is not None:
            config = parse(with_file(inquiry.rest))
            from train.showing.choices import answer

            answer(inquiry, config)
            return 0
        config = parse(with_file(argv))
        from train.loop import train  # which brings all that --help does not need

        train(config)
    except TrainingStopped as stop:
        print(f"train: {printable(stop)}", file=sys.stderr)
        return stop.exit_status
    except TrainError as error:
        print(f"train: error: {printable(error)}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("train: interrupted", file=sys.stderr)
        return 130
    return 0


def run(argv: Sequence[str]) -> int:
    """Runs the program as a process of its own, which may lose its reader.

    Args:
        argv: The arguments, without the name of the program.

    Returns:
        What `main` does, or 1 or 141 if standard output could not be written.
    """
    told = {"-h", "--help", "-H", "--help-verbose", "--version"}
    is_told = not told.isdisjoint(argv)
    streams = Streams(goes_on=not is_told and argv[:1] not in ONLY_TELL)
    try:
        status = main(argv)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return streams.close(status)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
