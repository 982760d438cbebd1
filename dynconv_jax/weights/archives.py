"""The zip archives that `torch.save` writes: whether they are whole."""

import errno
import os
import zipfile

# How many bytes are read at a time.
_AT_ONCE = 2**20


def check_archive(path: str | os.PathLike) -> list[str]:
    """Returns the names of the entries of an archive whose checksums are right.

    PyTorch reads an archive without a look at them. Where it was told to write none,
    they are 0, and tell nothing.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no archive, or one of its entries is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with zipfile.ZipFile(f"{folder}/a.pt", "w") as archive:
        ...         archive.writestr("a/data.pkl", b"weights")
        ...     check_archive(f"{folder}/a.pt")
        ['a/data.pkl']
    """
    name = "its list of entries"
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                name = entry.filename
                with archive.open(entry) as file:
                    while entry.CRC and file.read(_AT_ONCE):
                        pass
            return archive.namelist()
    except Exception as error:  # of many kinds, where an archive is damaged
        # A place before the beginning is such a damage, too.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(
            f"the file is truncated or damaged, in {name}: {error}; copy it again from "
            "where it was whole, or write it again"
        ) from error
