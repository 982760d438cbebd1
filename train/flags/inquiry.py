"""What a command line asks about models, in the place of training one."""

import dataclasses
import itertools
from collections.abc import Sequence

from train.errors import TrainError
from train.flags.help import LIST_MODELS

HELP = "help"  # in the place of NAME=VALUE ...
FIELDS = {"--conv-options": "conv_options", "--model-options": "model_options"}


@dataclasses.dataclass(frozen=True)
class Inquiry:
    """What a command line asks, and the rest of it.

    Attributes:
        pattern: Which models to list, with `*` for anything; None for no list.
        fields: Of `conv_options` and `model_options`, those whose options to tell.
        rest: The other arguments, which say of what.
    """

    pattern: str | None
    fields: tuple[str, ...]
    rest: tuple[str, ...]


def inquiry_in(argv: Sequence[str]) -> Inquiry | None:
    """Returns what a command line asks about models, or None if it does not.

    Args:
        argv: The arguments, without the name of the program.

    Raises:
        TrainError: If there are several patterns.

    Example:
        >>> inquiry_in(["--list-models", "resnet*", "--conv=odconv"])
        Inquiry(pattern='resnet*', fields=(), rest=('--conv=odconv',))
    """
    starts = [place for place, word in enumerate(argv) if word.startswith("--")]
    rest = [*argv[: starts[0] if starts else None]]
    pattern, fields = None, []
    for start, end in itertools.pairwise([*starts, len(argv)]):
        typed, *values = [*argv[start].split("=", 1), *argv[start + 1 : end]]
        flag = typed.replace("_", "-")
        if flag == LIST_MODELS:
            pattern, *others = values or ["*"]
            if others:
                raise TrainError(
                    f"{LIST_MODELS} (={' '.join(values)}) takes one pattern; one with "
                    f"an asterisk is put in quotes, as in {LIST_MODELS} 'resnet*'"
                )
        elif flag in FIELDS and values == [HELP]:
            fields.append(FIELDS[flag])
        else:
            rest += argv[start:end]
    if pattern is None and not fields:
        return None
    return Inquiry(pattern, tuple(fields), tuple(rest))
