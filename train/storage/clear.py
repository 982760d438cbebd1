"""What a run has left, removed before another one begins in its directory."""

import shutil
from pathlib import Path

from train.storage import export_files
from train.storage.run_files import CONFIG, FILES, FOLDERS, TWIN


def clear_run(path: Path) -> None:
    """Removes a run, its twin and its export; files of others are left alone.

    Args:
        path: The directory of the run, which stays.

    Raises:
        OSError: If something cannot be removed.
    """
    if (path / TWIN / CONFIG).exists():
        clear_run(path / TWIN)
        _remove_if_empty(path / TWIN)
    if (path / export_files.EXPORT / export_files.MODEL).exists():
        _clear_export(path / export_files.EXPORT)
    for name in {each.name for each in path.iterdir()}.intersection(FOLDERS):
        _empty(path / name)
    for name in FILES:
        (path / name).unlink(missing_ok=True)


def halves_in(path: Path) -> list[Path]:
    """Returns what a killed process left of files that it wrote beside their place."""
    return [half for name in FILES for half in path.glob(f".{name}." + "?" * 8)]


def _clear_export(folder: Path) -> None:
    # Last what it is told by, so that a removal that was cut short can be finished.
    for name in sorted(export_files.FILES, key=lambda name: name == export_files.MODEL):
        (folder / name).unlink(missing_ok=True)
    _remove_if_empty(folder)


def _empty(folder: Path) -> None:
    """Removes what is in a folder, which may be a link to one on another disk."""
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()
    _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    """Removes a folder, unless something is in it or it is a link to one."""
    if not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()
