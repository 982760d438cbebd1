"""JSON that a hand may have edited, held against what it must be when it is read."""

import json
import math
import re
import reprlib
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

# Of a whole number. More, and it would be too large for a float too.
MOST_DIGITS = 300


class Unreadable(ValueError):
    """A file, or a line of one, that is not what it must be; one line says why."""


def read_file(path: Path) -> bytes:
    """Returns the content of a regular file.

    Raises:
        FileNotFoundError: If there is none.
        Unreadable: If it is something else, or cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # such as a pipe, which never ends
            raise Unreadable("it is no regular file")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, "it does not exist", str(path)) from None
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None


def read_json(path: Path, kind: Any) -> Any:
    """Returns the JSON in a file, if it is of a kind; see `parse`.

    Raises:
        FileNotFoundError: If there is none.
        Unreadable: If it cannot be read, or is none of that kind.
    """
    return parse(read_file(path), kind)


def parse(content: bytes, kind: Any) -> Any:
    """Returns what JSON holds, if it is of a kind.

    Args:
        content: JSON in UTF-8, whose numbers are finite and whose keys stand once.
        kind: A type as msgspec takes it, of a `TypedDict` for example. Keys that it
            does not name are let through.

    Raises:
        Unreadable: If it is not; it names the field, and its value.

    Example:
        >>> parse(b'{"sizes": [3, 4]}', dict[str, list[int]])
        {'sizes': [3, 4]}
        >>> parse(b'[3, "x"]', list[int])
        Traceback (most recent call last):
        train.storage.read_json.Unreadable: [1] (='x'): expected `int`, got `str`
    """
    try:
        values = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_refuse_number,
            parse_float=_float,
            parse_int=_int,
        )
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        reason = f"byte {error.start} (=0x{wrong:02x}) is no UTF-8"
        raise Unreadable(reason) from None
    except json.JSONDecodeError as error:
        if not content.strip():
            raise Unreadable("it is empty") from None
        place = f"line {error.lineno} column {error.colno}"
        raise Unreadable(f"it is no JSON: {error.msg}, {place}") from None
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    convert(values, kind)
    return values


def convert(
    values: Any, kind: Any, read_other: Callable[[type, Any], Any] | None = None
) -> Any:
    """Returns values, as JSON has them, as those of a kind.

    Args:
        values: What JSON holds.
        kind: A type as msgspec takes it.
        read_other: Reads types that msgspec does not know; it raises `TypeError` with
            the words of msgspec.

    Raises:
        Unreadable: If they are of another kind; it names the field, and its value.
    """
    try:
        return msgspec.convert(values, kind, dec_hook=read_other)
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except msgspec.ValidationError as error:
        words, _, place = str(error).partition(" - at `$")
        words = words[:1].lower() + words[1:]
        if not place:
            raise Unreadable(words) from None
        field = place.rstrip("`").removeprefix(".")
        shown = _value_at(values, field)
        raise Unreadable(f"{field}{shown}: {words}") from None


def _value_at(values: Any, field: str) -> str:
    """Returns ` (=value)` of a field like `shape[0]`, where one can be told."""
    for word in re.findall(r"[^.\[\]]+|\.\.\.", field):
        if isinstance(values, list) and word.isdigit():
            values = values[int(word)]
        elif isinstance(values, dict) and word in values:
            values = values[word]
        else:
            return ""
    return "" if isinstance(values, (dict, list)) else f" (={reprlib.repr(values)})"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Unreadable(f"{reprlib.repr(twice)} stands in it twice")
    for name, value in pairs:
        if isinstance(value, str) and "\0" in value:  # which no path may have
            raise Unreadable(f"{reprlib.repr(name)} has a zero character in its text")
    return values


def _refuse_number(word: str) -> float:
    raise Unreadable(f"{word} in it is no finite number")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        _refuse_number(reprlib.repr(digits).strip("'"))
    return value


def _int(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise Unreadable(f"a number in it has {len(digits)} digits")
    return int(digits)
