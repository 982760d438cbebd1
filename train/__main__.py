"""The command line: `python -m train`."""

import importlib
import sys
from collections.abc import Sequence

from train.errors import TrainError, TrainingStopped
from train.flags.config import COMMANDS, parse


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
    try:
        if argv and argv[0] in COMMANDS:
            importlib.import_module(f"train.commands.{argv[0]}").main(argv[1:])
            return 0
        config = parse(argv)
        from train.loop import train  # which brings all that --help does not need

        train(config)
    except TrainingStopped as stop:
        print(f"train: {stop}", file=sys.stderr)
        return stop.exit_status
    except TrainError as error:
        print(f"train: error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("train: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
