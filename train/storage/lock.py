"""A lock on a directory, that ends with the process that holds it."""

import contextlib
import fcntl
import os
from pathlib import Path

from train.errors import TrainError


class Lock:
    """Keeps a second run out of a directory.

    The kernel holds it for the process, and lets go when that ends, however it ends.
    The file that stays after a process was killed is of no consequence.
    """

    def __init__(self, path: Path):
        """Takes the lock.

        Args:
            path: The file to lock; it says which process holds it.

        Raises:
            TrainError: If another process holds it.
            OSError: If the file cannot be opened, or the disk knows no locks.
        """
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its holder may have removed the file since it was opened.
            if not self.is_held():
                raise BlockingIOError
            # Nothing depends on its content, and a full disk has no room for it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
                os.write(self._descriptor, str(os.getpid()).encode())
        except BlockingIOError:
            holder = os.pread(self._descriptor, 20, 0).decode(errors="replace")
            os.close(self._descriptor)
            raise TrainError(
                f"--out (={path.parent}) is in use by another run, process "
                f"{holder or 'unknown'}; choose another directory, or wait for it"
            ) from None
        except BaseException:
            os.close(self._descriptor)
            raise

    def is_held(self) -> bool:
        """Tells whether the file is still there: without it, others get in.

        Raises:
            OSError: If that cannot be told, such as where access was withdrawn.
        """
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def release(self) -> None:
        """Gives the lock back, and removes its file, but none of another process."""
        with contextlib.suppress(OSError):  # such as when the directory is gone
            if self.is_held():
                self._path.unlink()
        os.close(self._descriptor)
