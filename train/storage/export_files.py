"""The directory of an export: its files, and what it may not replace."""

import os
from pathlib import Path

from train.errors import TrainError

EXPORT = "export"  # in the directory of its run, where no other is given
STABLEHLO = "model.stablehlo"
ONNX, INT8, PT2 = "model.onnx", "model.int8.onnx", "model.pt2"
PROGRAMS = (STABLEHLO, ONNX, INT8, PT2)
MODEL, FIGURES = "model.json", "export.json"
WEIGHTS, README = "weights.safetensors", "README.md"
FILES = {*PROGRAMS, WEIGHTS, MODEL, FIGURES, README}


def check_place(out: Path) -> None:
    """Refuses to replace anything but an earlier export, and what cannot be written.

    Args:
        out: The directory of the export.

    Raises:
        TrainError: If it holds other files, or lies where nothing can be written.
    """
    place = Path(os.path.realpath(out)).parent
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise TrainError(f"--out (={out}): {place} is a file; choose another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise TrainError(f"--out (={out}): {place} cannot be written; choose another")
    if not out.exists():
        return
    if not out.is_dir():
        raise TrainError(f"--out (={out}) is a file; choose another name")
    names = {each.name for each in out.iterdir()}
    if names and not (names <= FILES and {MODEL, FIGURES} <= names):
        other = min(names - FILES, default=min(names))
        raise TrainError(
            f"--out (={out}) holds other files, such as {other}; choose a directory "
            "that is new, empty or an earlier export"
        )
