"""The command line: `python -m train`."""

import sys
from collections.abc import Sequence

from train.config import parse
from train.errors import TrainError
from train.loop import train


def main(argv: Sequence[str]) -> int:
    """Runs the program and returns its exit status.

    Args:
        argv: The arguments, without the name of the program.

    Returns:
        0 after a complete run, 1 if training failed, 2 if an argument is refused.

    Raises:
        SystemExit: With 0, after `--help`.
    """
    try:
        train(parse(argv))
    except TrainError as error:
        print(f"train: error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("train: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
