"""Files in a tar archive, read where they are: nothing is ever unpacked to the disk."""

import lzma
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from train.errors import TrainError

# What Python raises over archives that are cut, damaged or none.
UNREADABLE = OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError


def read_members(path: Path, names: Iterable[str], largest: int) -> dict[str, bytes]:
    """Returns files of an archive by name, wherever they lie in it.

    Args:
        path: A tar archive, compressed or not.
        names: The names wanted, without folders; those that are missing are left out.
        largest: How many bytes a file wanted may have.

    Raises:
        TrainError: If the archive is cut or none, or if there is something in it that
            an honest one has not, wanted or not: a path outside its folder, a link, a
            device; or if a wanted file is too large.
    """
    wanted = {*names}
    contents = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                _check(path, member)
                name = PurePosixPath(member.name).name
                file = archive.extractfile(member) if name in wanted else None
                if file is None:
                    continue
                if member.size > largest:
                    raise TrainError(
                        f"{path}: {member.name} has {member.size} bytes, but must have "
                        f"at most {largest}; get the original archive"
                    )
                contents[name] = file.read()
            rest = archive.fileobj
            while rest is not None and rest.read(2**20):
                pass  # At its end a compressed file tells whether it is whole.
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise TrainError(
            f"{path} cannot be read as a tar archive ({reason}); get it anew"
        ) from None
    return contents


def _check(path: Path, member: tarfile.TarInfo) -> None:
    """Refuses a member that would reach out of the folder it were unpacked to."""
    place = PurePosixPath(member.name)
    if place.is_absolute() or ".." in place.parts:
        fault = "is outside of its folder"
    elif not (member.isfile() or member.isdir()):
        fault = "is neither a file nor a folder"
    else:
        return
    raise TrainError(
        f"{path}: {member.name!r} in it {fault}; such an archive is not to be trusted: "
        "get the original one"
    )
