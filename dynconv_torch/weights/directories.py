"""Directories that are there as a whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_directory(path: str | os.PathLike) -> Iterator[Path]:
    """Has a directory filled beside its place, and renames it once it is whole.

    Args:
        path: The directory. One that exists is replaced, with all that is in it.

    Yields:
        An empty directory, to be filled.

    Raises:
        OSError: If it cannot be written; an existing one is then untouched.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with new_directory(f"{folder}/notes") as place:
        ...         _ = (place / "one.txt").write_text("whole")
        ...     Path(f"{folder}/notes/one.txt").read_text()
        'whole'
    """
    # Where a link leads to, which stays one.
    place = Path(os.path.realpath(path))
    if not place.parent.is_dir():
        raise FileNotFoundError(
            f"`path` (={os.fspath(path)!r}): the folder {os.fspath(place.parent)!r} "
            "does not exist; create it first"
        )
    if place.exists() and not place.is_dir():
        raise NotADirectoryError(
            f"`path` (={os.fspath(path)!r}) is a file; choose another name"
        )
    beside = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        filled = beside / "new"
        filled.mkdir()
        yield filled
        for file in filter(Path.is_file, filled.rglob("*")):
            with open(file, "rb") as content:
                os.fsync(content.fileno())
        if place.exists():
            # No directory takes the place of another that is not empty.
            os.replace(place, beside / "old")
            try:
                os.replace(filled, place)
            except BaseException:
                os.replace(beside / "old", place)
                raise
        else:
            os.replace(filled, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
