"""A seal on a folder: what it is and what its files must be, told beforehand."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from dynconv_jax.weights import write_file
from train.storage.read_json import Unreadable, convert, read_json

SEAL = "seal.json"
# What orbax puts beside the files after they are sealed.
LATER = ("commit_success.txt",)

Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Content(TypedDict):
    """What a seal says."""

    step: Annotated[int, Meta(ge=0)]
    run: str | None
    files: dict[str, Digest]


# What it was in versions that told neither step nor run.
Former = dict[str, Digest]


@dataclasses.dataclass(frozen=True)
class Sealed:
    """What a folder is sealed as.

    Attributes:
        step: The step of the run that its files are of.
        run: The name of the run; None of one that was begun when runs had none.
    """

    step: int
    run: str | None = None


def seal(folder: str | os.PathLike, content: Sealed) -> None:
    """Writes down the files of `folder` and their digests, in a file beside them.

    Args:
        folder: The folder; its files must not change after that, and no further ones
            may come but hidden ones and those of `LATER`.
        content: What it is.

    Raises:
        OSError: If a file cannot be read, or the seal not written.
    """
    folder = Path(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in _files(folder))
    digests = {name: _digest(folder / name) for name in names}
    values = dataclasses.asdict(content) | {"files": digests}
    write_file(folder / SEAL, json.dumps(values, indent=1).encode())


def find_damage(folder: str | os.PathLike, content: Sealed) -> str | None:
    """Holds a folder against its seal.

    Args:
        folder: A folder that `seal` was called on.
        content: What it must be. If its run has no name, the seals of earlier versions
            will do, which told only of the files.

    Returns:
        What is wrong, in words that follow the name of the folder, or None.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "data").write_bytes(b"all of it")
        ...     seal(folder, Sealed(20))
        ...     print(find_damage(folder, Sealed(20)))
        ...     print(find_damage(folder, Sealed(40)))
        ...     _ = Path(folder, "data").write_bytes(b"all of")
        ...     print(find_damage(folder, Sealed(20)))
        None
        is not of that step, but of step 20, by its seal
        is damaged: it has a file that was cut or changed, data
    """
    folder = Path(folder)
    try:
        values = read_json(folder / SEAL, dict[str, Any])
        if "files" not in values and content.run is None:
            digests = convert(values, Former)
        else:
            said = convert(values, Content)
            if said["step"] != content.step:
                return f"is not of that step, but of step {said['step']}, by its seal"
            if said["run"] != content.run:
                return "is of another run, by its seal"
            digests = said["files"]
    except FileNotFoundError:
        return "is damaged: it has no seal"
    except Unreadable as error:
        return f"is damaged: it has a seal that cannot be read ({error})"
    flaw = _find_damage(folder, digests)
    return None if flaw is None else f"is damaged: it {flaw}"


def _find_damage(folder: Path, digests: dict[str, str]) -> str | None:
    if not digests:
        return "has a seal that names no file"
    for name, digest in digests.items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            return f"has a seal that names a file outside of it, {name}"
        try:
            if not (folder / name).is_file():
                return f"lacks the file {name}"
            if _digest(folder / name) != digest:
                return f"has a file that was cut or changed, {name}"
        except OSError as error:
            return f"has a file that cannot be read, {name} ({error.strerror})"
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if not (name in digests or path.name in LATER or path.name.startswith(".")):
            return f"has a file that its seal does not name, {name}"
    return None


def _files(folder: Path) -> Iterator[Path]:
    seal_path = folder / SEAL
    return (each for each in folder.rglob("*") if each.is_file() and each != seal_path)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
