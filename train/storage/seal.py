"""A seal on a folder: what its files must be, so that damage is known beforehand."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from dynconv_jax.weights import write_file

SEAL = "seal.json"


def seal(folder: str | os.PathLike) -> None:
    """Writes down the files of `folder` and their digests, in a file beside them.

    Args:
        folder: The folder; its files must not change after that. Further ones may come.

    Raises:
        OSError: If a file cannot be read, or the seal not written.
    """
    folder = Path(folder)
    files = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    digests = {name: _digest(files[name]) for name in sorted(files)}
    write_file(folder / SEAL, json.dumps(digests, indent=1).encode())


def find_damage(folder: str | os.PathLike) -> str | None:
    """Holds the files of `folder` against its seal.

    Args:
        folder: A folder that `seal` was called on.

    Returns:
        What is wrong, in words that follow "it", or None if the folder is whole.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "data").write_bytes(b"all of it")
        ...     seal(folder)
        ...     print(find_damage(folder))
        ...     _ = Path(folder, "data").write_bytes(b"all of")
        ...     print(find_damage(folder))
        None
        has a file that was cut or changed, data
    """
    folder = Path(folder)
    try:
        digests = json.loads((folder / SEAL).read_bytes())
    except FileNotFoundError:
        return "has no seal"
    except (OSError, ValueError):
        return "has a seal that cannot be read"
    if not isinstance(digests, dict):
        return "has a seal that cannot be read"
    for name, digest in digests.items():
        try:
            if _digest(folder / name) != digest:
                return f"has a file that was cut or changed, {name}"
        except FileNotFoundError:
            return f"lacks the file {name}"
        except OSError as error:
            return f"has a file that cannot be read, {name} ({error.strerror})"
    return None


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
