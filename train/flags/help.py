"""`--help`: the flags of training by subject, a line or two each, and the commands."""

import contextlib
import dataclasses
import functools
import inspect
import operator
import os
import re
import shutil
import typing
from collections.abc import Iterator
from typing import Annotated, Any, NoReturn, NotRequired, TypedDict, cast

import docstring_parser
import tyro

from train.flags.augmentation import AugmentationFlags
from train.flags.data import DataFlags
from train.flags.fine_tuning import FineTuningFlags
from train.flags.model import ModelFlags
from train.flags.recipe import RecipeFlags
from train.flags.run import RunFlags

SHORT = ("-h", "--help")
LONG = ("-H", "--help-verbose")  # as tyro calls it
LIST_MODELS = "--list-models"

# Of the flags of training, in the order of the help.
SUBJECTS: dict[str, type] = {
    "data": DataFlags,
    "augmentation": AugmentationFlags,
    "model": ModelFlags,
    "fine-tuning": FineTuningFlags,
    "recipe": RecipeFlags,
    "run": RunFlags,
}

# What the program does beside training. Each is the module of its name, with a `main`.
COMMANDS = {
    "compare": "Shows runs beside one another: a table, and their curves.",
    "evaluate": "Evaluates the network of a run on its test images.",
    "export": "Writes the network of a run as files that need nothing of this project.",
    "predict": "Tells what the network of a run sees in image files.",
    "study": "Holds the family against static networks of equal cost.",
}


def _switch(text: str, *aliases: str) -> Any:
    told = tyro.conf.arg(help=text, help_behavior_hint="", aliases=aliases)
    return Annotated[bool, tyro.conf.FlagCreatePairsOff, told]


# What is asked of the program in the place of a run.
QUESTIONS = {
    "help_verbose": _switch("show all that there is to say about each flag", "-H"),
    "version": _switch("show the version"),
    "list_models": Annotated[
        bool | str,
        tyro.conf.arg(
            metavar="[PATTERN]",
            help="list the models, or those of such a name, as resnet*",
            help_behavior_hint="",
        ),
    ],
}

NARROWEST = 60  # columns of the help


def show_help(kind: type, program: str, *, is_long: bool) -> NoReturn:
    """Prints the help of a command, or of training, and ends the program.

    Args:
        kind: The dataclass of its flags; for one with the flags of `SUBJECTS`, they
            are put in groups.
        program: The name of the program.
        is_long: Whether all is told about a flag of training, or the first sentence.

    Raises:
        SystemExit: With 0.
    """
    with _wide_enough():
        if issubclass(kind, RunFlags):
            _show_by_subject(kind, program, is_long)
        else:
            tyro.cli(kind, prog=program, args=["--help"])
    raise SystemExit(0)


def _show_by_subject(training: type, program: str, is_long: bool) -> None:
    """Prints the help of training, with groups and commands."""
    groups = {title: _told(kind, is_long) for title, kind in SUBJECTS.items()}
    commands = [
        Annotated[
            dataclasses.make_dataclass(name, ()),
            tyro.conf.subcommand(name, prefix_name=False, description=description),
        ]
        for name, description in COMMANDS.items()
    ]
    # Only of such a kind tyro says neither that a command is needed nor that there is
    # one by default.
    typed_dict, not_required = cast(Any, (TypedDict, NotRequired))
    chosen = not_required[functools.reduce(operator.or_, commands)]
    tyro.cli(
        typed_dict("Arguments", {**QUESTIONS, **groups, "command": chosen}),
        prog=program,
        description=inspect.getdoc(training),
        default={
            **dict.fromkeys(QUESTIONS, False),
            **{title: group() for title, group in groups.items()},
        },
        config=(tyro.conf.OmitArgPrefixes,),
        args=["--help"],
    )


def _told(kind: type, is_long: bool) -> type:
    """Returns the flags of a subject, told at length or by the first sentence."""
    told = descriptions(kind)
    kinds = typing.get_type_hints(kind)
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = []
    for field in dataclasses.fields(kind):
        text = told[field.name] if is_long else first_sentence(told[field.name])
        usual = tyro.conf.arg(help=text, help_behavior_hint=_default)
        own = getattr(hints[field.name], "__metadata__", ())  # which counts before it
        hint = Annotated[(kinds[field.name], usual, *own)]
        fields.append((field.name, hint, dataclasses.field(default=field.default)))
    # Their title says what the docstring would.
    return dataclasses.make_dataclass(kind.__name__, fields, namespace={"__doc__": " "})


def _default(value: str) -> str:
    """Returns the words for a default; None is one that the text tells."""
    return "" if value in ("None", "") else f"(default: {value})"


def descriptions(documented: Any) -> dict[str, str]:
    """Returns what a docstring says about attributes or arguments, by their names."""
    parsed = docstring_parser.parse(inspect.getdoc(documented) or "")
    return {
        each.arg_name: " ".join((each.description or "").split())
        for each in parsed.params
    }


def first_sentence(text: str) -> str:
    """Returns a text up to its first full stop.

    Example:
        >>> first_sentence("Its width, 0.5 by default. More is slower.")
        'Its width, 0.5 by default.'
    """
    return re.split(r"(?<=[\w)`][.])(?<! al[.])\s", text, maxsplit=1)[0]


@contextlib.contextmanager
def _wide_enough() -> Iterator[None]:
    """Has the help written for a screen on which a word has room in its box."""
    columns = os.environ.get("COLUMNS")
    if shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if columns is not None:
            os.environ["COLUMNS"] = columns
