"""Flags from a file: TOML that was written by hand, or the flags of an earlier run."""

import dataclasses
import itertools
import tomllib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.errors import TrainError
from train.flags.checks import flag_of, words_of
from train.flags.config import Config, explain_unknown
from train.storage.finished import as_path
from train.storage.read_json import Unreadable, convert, parse, read_file
from train.storage.run_files import CONFIG, RUN_ID

FLAG = "--config"
# What the flags of a run say of that run alone: where it is, and who shared it.
ITS_OWN = (
    *(RUN_ID, "config", "out", "overwrite"),
    *("coordinator", "num_processes", "process_id"),
)
LENGTHS = "steps", "epochs"  # one of which is given


def with_file(argv: Sequence[str]) -> list[str]:
    """Returns a command line with the flags of the file of `--config` before its own.

    So those that are typed win. It is returned as it is if it names no file.

    Args:
        argv: The arguments, without the name of the program.

    Raises:
        TrainError: If the file cannot be read, or has what is no flag or no value of
            its flag; it names file and key.
    """
    path = _path_in(argv)
    if path is None:
        return list(argv)
    values = _read(path)
    typed = {word.split("=")[0][2:] for word in argv if word.startswith("--")}
    if typed.intersection(LENGTHS):
        values = {name: v for name, v in values.items() if name not in LENGTHS}
    usual = {field.name: field.default for field in dataclasses.fields(Config)}
    words = []
    for name, value in values.items():
        if value is not None and value != usual[name]:
            flag, *rest = words_of(name, value)
            words += [flag, *rest] if len(rest) != 1 else [f"{flag}={rest[0]}"]
    return words + list(argv)


def _path_in(argv: Sequence[str]) -> Path | None:
    """Returns the file that a command line names; the last one, as with all flags."""
    found = None
    for word, following in itertools.zip_longest(argv, argv[1:]):
        if word.startswith(f"{FLAG}="):
            found = word.partition("=")[2]
        elif word == FLAG:
            found = following
    return None if found is None else Path(found)


def _read(path: Path) -> dict[str, Any]:
    """Returns the flags in a file, by the names of the fields, in their own types."""
    where = f"{FLAG} (={path})"
    file = path / CONFIG if path.is_dir() else path
    try:
        content = read_file(file)
        if file.suffix == ".toml":
            given = tomllib.loads(content.decode("utf-8"))
        elif file.suffix == ".json":
            given = parse(content, dict[str, Any])
        else:
            raise TrainError(
                f"{where} must be a .toml, a .json or the directory of a run"
            )
    except FileNotFoundError as error:
        raise TrainError(f"{where} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TrainError(f"{where} cannot be read: it is no UTF-8") from None
    except (Unreadable, tomllib.TOMLDecodeError) as error:
        reason = " ".join(str(error).split())
        raise TrainError(f"{where} cannot be read: {reason}") from None
    is_of_a_run = RUN_ID in given
    if is_of_a_run:
        given = {name: v for name, v in given.items() if name not in ITS_OWN}
        if given.get("epochs") is not None:
            given.pop("steps", None)  # which came of them
    hints = typing.get_type_hints(Config, include_extras=True)
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in hints:
            explained = explain_unknown(flag_of(name))
            raise TrainError(f"{where}: {key!r} cannot be in it: {explained}")
        if name in values:
            raise TrainError(f"{where}: {key!r} stands in it twice")
        try:
            values[name] = convert(value, hints[name], as_path)
        except Unreadable as error:
            raise TrainError(f"{where}: {key} (={value!r}): {error}") from None
    if None not in (values.get("steps"), values.get("epochs")):
        raise TrainError(
            f"{where}: epochs (={values['epochs']}) must be left out with steps "
            f"(={values['steps']}): both say how long the run is"
        )
    return values
