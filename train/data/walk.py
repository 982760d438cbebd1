"""The picture files below a folder, and what is there beside them."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from train.data.pictures import SUFFIXES
from train.errors import TrainError, warn
from train.printable import printable

# Why something is left out.
NO_PICTURE = f"which do not end in {', '.join(SUFFIXES)}"
LEADS_NOWHERE = "which are links to nowhere"
LEADS_BACK = "which are links to a folder that they lie in"
NO_FILE = "which are neither files nor folders"
# How many are named.
NAMED = 3

LeftOut = dict[str, list[Path]]


@dataclasses.dataclass(frozen=True)
class Found:
    """What is below a folder.

    Attributes:
        pictures: What ends like a picture; a broken link among them cannot be read.
        left_out: Everything else that is not hidden, by why it is no picture.
    """

    pictures: list[Path]
    left_out: LeftOut


def find_pictures(folder: Path) -> Found:
    """Returns the pictures in a folder and those below it.

    They come in the order of torchvision's ImageFolder: by the folder, then by the
    name. Links are followed; what is hidden is not looked at.

    Raises:
        TrainError: If a folder cannot be read.
    """
    rows: list[tuple[str, list[Path]]] = []
    left_out: LeftOut = {}
    above = frozenset(map(_identity, folder.absolute().parents))
    waiting = [(folder, above)]
    while waiting:
        place, above = waiting.pop()
        entries = list_folder(place)
        identity = _identity(place)
        if identity in above:
            left_out.setdefault(LEADS_BACK, []).append(place)
            continue
        pictures = []
        for path, kind in entries:
            if kind == "folder":
                waiting.append((path, above | {identity}))
            elif kind == NO_FILE:
                left_out.setdefault(NO_FILE, []).append(path)
            elif path.suffix.lower() in SUFFIXES:
                pictures.append(path)
            else:
                reason = NO_PICTURE if kind == "file" else kind
                left_out.setdefault(reason, []).append(path)
        rows.append((str(place), pictures))
    rows.sort(key=lambda row: row[0])
    return Found([path for _, paths in rows for path in paths], left_out)


def list_folder(folder: Path) -> list[tuple[Path, str]]:
    """Returns what is in a folder and not hidden, by name, and what each is.

    That is "folder", "file", `LEADS_NOWHERE` or `NO_FILE`.

    Raises:
        TrainError: If it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            visible = [each for each in entries if each.name[0] != "."]
    except OSError as error:
        raise TrainError(
            f"{printable(folder)} cannot be read ({error.strerror})"
        ) from None
    visible.sort(key=lambda each: each.name)
    return [(folder / each.name, _kind(each)) for each in visible]


def say_left_out(folder: Path, left_out: Mapping[str, Iterable[Path]]) -> None:
    """Says in a line for each reason what is left out of the pictures of a folder."""
    for reason, paths in left_out.items():
        names = [printable(path.relative_to(folder)) for path in sorted(paths)]
        told = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
        warn(f"{printable(folder)}: {len(names)} file(s) left out, {reason}: {told}")


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _kind(entry: "os.DirEntry[str]") -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        entry.stat()
        return NO_FILE
    except OSError:
        return LEADS_NOWHERE
