"""What a run is told: its flags, their defaults, and what is refused at the door."""

import contextlib
import dataclasses
import difflib
import io
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from train.errors import TrainError
from train.flags.augmentation import AugmentationFlags
from train.flags.checks import flag_of
from train.flags.data import DataFlags
from train.flags.fine_tuning import FineTuningFlags
from train.flags.foreign import hint_for
from train.flags.help import COMMANDS, LONG, SHORT, show_help
from train.flags.model import ModelFlags
from train.flags.recipe import OF_PRESETS, USUAL, RecipeFlags
from train.flags.run import RunFlags


@dataclasses.dataclass(frozen=True)
class Config(
    RunFlags, RecipeFlags, FineTuningFlags, ModelFlags, AugmentationFlags, DataFlags
):
    """Trains a network; without arguments, DynamicNet on digits in under a minute.

    The results are written to --out. The same command again goes on where a run was
    stopped. Each of the commands has a --help of its own.
    """

    def __post_init__(self):
        """Refuses what no run could use.

        Raises:
            TrainError: If a value is out of range or does not fit another.
        """
        self.check_data()
        self.check_augmentation()
        self.check_model()
        self.check_fine_tuning()
        self.check_recipe()
        self.check_run()

    def recipe(self, name: str) -> float:
        """Returns a flag of `train.flags.recipe.USUAL`, given or of the preset."""
        given = getattr(self, name)
        return self.of_preset(name) if given is None else given

    def of_preset(self, name: str) -> float:
        """Returns what such a flag is where it is left out."""
        return (USUAL | OF_PRESETS.get(self.preset, {}))[name]

    def ends_at(self, step: int) -> bool:
        """Tells whether the run ends with a step, or could have."""
        return step == self.total_steps or step in self.restarts

    def evaluates_at(self, step: int) -> bool:
        """Tells whether the run is evaluated after a step."""
        return self.ends_at(step) or step % self.eval_every == 0

    def gives_up_at(self, step: int, best_step: int) -> bool:
        """Tells whether nothing got better for as long as `early_stopping` waits.

        Args:
            step: The last step.
            best_step: The step after which the accuracy was best.
        """
        if self.early_stopping is None:
            return False
        since = sum(map(self.evaluates_at, range(best_step + 1, step + 1)))
        return since >= self.early_stopping

    def to_json(self) -> dict[str, Any]:
        """Returns the flags as JSON has them, with those derived filled in.

        Those that follow from the length of the run are left as they were given where
        that is told in epochs, and the images have not been counted.
        """
        values = dataclasses.asdict(self)
        values |= {name: self.recipe(name) for name in USUAL}
        if self.has_length:
            values |= {
                "steps": self.total_steps,
                "warmup_steps": self.warmup,
                "decay_every": self.decaying,
                "temperature_steps": self.annealing,
                "assignment_steps": self.assigning,
            }
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in values.items()
        }


FlagsT = typing.TypeVar("FlagsT")

KINDS: dict[type, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    Path: "a path",
    str: "a word",
}
MANY: dict[type, str] = {int: "whole numbers", float: "numbers"}


def parse(argv: Sequence[str]) -> Config:
    """Reads the command line of a run.

    Args:
        argv: The arguments, without the name of the program.

    Returns:
        The configuration, valid in itself.

    Raises:
        TrainError: If a flag is unknown or a value is refused.
        SystemExit: With 0, after `--help`.
    """
    config = parse_flags(argv, Config, "python -m train")
    rule = f"be left out with --steps (={config.steps}): both say how long the run is"
    config.require("epochs", None in (config.epochs, config.steps), rule)
    return config


def parse_flags(argv: Sequence[str], kind: type[FlagsT], program: str) -> FlagsT:
    """Reads a command line.

    Args:
        argv: The arguments, without the name of the program.
        kind: The dataclass of the flags.
        program: The name of the program, for its help.

    Returns:
        The flags, valid in themselves.

    Raises:
        TrainError: If a flag is unknown or a value is refused.
        SystemExit: With 0, after `--help`.
    """
    for words in (LONG, SHORT):
        if not set(words).isdisjoint(argv):
            show_help(kind, program, is_long=words is LONG)
    unknown = _unknown_flags(argv, kind)
    if unknown:
        raise TrainError(explain_unknown(unknown[0], kind))
    _refuse_empty_lists(argv, kind)
    try:
        config, unknown = _read(argv, kind)
    except SystemExit:
        raise TrainError(_explain(argv, kind)) from None
    if unknown:
        raise TrainError(explain_unknown(unknown[0], kind))
    return config


def _read(argv: Sequence[str], kind: type[Any]) -> tuple[Any, list[str]]:
    with contextlib.redirect_stderr(io.StringIO()):  # tyro's box; see _explain
        return tyro.cli(kind, args=list(argv), return_unknown_args=True)


def _known_flags(kind: type[Any]) -> list[str]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return [
        flag_of(name)
        for name, hint in hints.items()
        if tyro.conf.Positional not in getattr(hint, "__metadata__", ())
    ]


def _unknown_flags(argv: Sequence[str], kind: type[Any]) -> list[str]:
    """Returns the words that are written like flags and are none.

    tyro would take what follows them for something else, and refuse that.
    """
    known = _known_flags(kind)
    known += [f"--no-{flag[2:]}" for flag in known]
    return [
        word
        for word in argv
        if re.match("--?[a-z]", word, re.IGNORECASE)
        and flag_of(word.split("=")[0][2:]) not in known
        and not word.startswith("--tyro-")
    ]


def explain_unknown(word: str, kind: type[Any] = Config) -> str:
    """Says what a word may have been meant to be that is no flag of a command."""
    if word.startswith("-"):
        hint = hint_for(word, _known_flags(kind), _known_flags(Config))
        program = "program" if kind is Config else "command"
        return (
            f"{word!r} is no flag of this {program}; {hint or '--help lists the flags'}"
        )
    if kind is not Config:
        return f"{word!r} must stand before the flags, with what is no flag"
    close = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f"did you mean {close[0]}?" if close else "--help lists the commands"
    if Path(word).is_dir():
        hint = f"did you mean --preset folder --data {word}?"
    return f"{word!r} is no command of this program; {hint}"


def _explain(argv: Sequence[str], kind: type[Any]) -> str:
    """Says in one line which value could not be read.

    tyro explains it in a box of several lines; so each flag is read on its own, and the
    first that cannot be read is named.
    """
    hints = typing.get_type_hints(kind)
    for group in _by_flag(argv):
        try:
            _read(group, kind)
        except TrainError:
            continue  # Readable; out of range only without the flags around it.
        except SystemExit:
            flag, field = _names_of(group[0])
            if field not in hints:  # a flag of tyro's own
                continue
            values = _values(hints[field])
            if len(group) == 1:
                return f"{flag} needs a value: give {values}"
            kinds = _kinds(hints[field])
            takes_many = any(typing.get_origin(each) is tuple for each in kinds)
            given = " ".join(group[1:] if takes_many else group[1:2])
            return f"{flag} (={given}) must be {values}"
    return "the arguments cannot be read; --help shows how they are written"


def _refuse_empty_lists(argv: Sequence[str], kind: type[Any]) -> None:
    """Refuses a flag that takes any number of values and has none.

    tyro reads an empty list, which is what nearly all of them are if left out.
    """
    hints = typing.get_type_hints(kind)
    for group in _by_flag(argv):
        flag, field = _names_of(group[0])
        kinds = _kinds(hints.get(field))
        is_list = any(Ellipsis in typing.get_args(each) for each in kinds)
        if len(group) == 1 and is_list:
            raise TrainError(f"{flag} needs a value: give {_values(hints[field])}")


def _by_flag(argv: Sequence[str]) -> list[list[str]]:
    """Returns each flag with the words up to the next one, its values among them."""
    groups: list[list[str]] = []
    for token in argv:
        if token.startswith("--"):
            groups.append(token.split("=", 1))
        elif groups:
            groups[-1].append(token)
    return groups


def _names_of(typed: str) -> tuple[str, str]:
    """Returns a flag, which may be typed with underscores, and its field."""
    flag = typed.replace("_", "-")
    return flag, flag[2:].replace("-", "_")


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Returns the types that a hint admits."""
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def _values(hint: Any) -> str:
    """Returns the words for the values that a type hint admits."""
    return " or ".join(filter(None, map(_words, _kinds(hint)))) or "a value"


def _words(kind: Any) -> str:
    """Returns the words for the values of a type; none for that of None."""
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of: {', '.join(members)}"
    if origin is not tuple:
        return KINDS.get(kind, "")
    is_open = Ellipsis in members
    return _words(members[0]) if is_open else f"{len(members)} {MANY[members[0]]}"
