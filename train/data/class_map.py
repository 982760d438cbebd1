"""The order of classes, from a file of their names: a class map, as timm calls it."""

from collections.abc import Collection
from pathlib import Path

from train.data.dataset import named
from train.errors import TrainError
from train.printable import printable

REMEDY = "give a text file with the name of a class on each line"
NAMED = 5  # How many classes an error names.


def read_class_map(path: Path) -> tuple[str, ...]:
    """Returns the names of classes in the order of their labels.

    Args:
        path: A text file in UTF-8, with a name on each line.

    Raises:
        TrainError: If it cannot be read, has an empty line, or a name twice.
    """
    where = f"--class-map (={printable(path)})"
    try:
        lines = path.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    except OSError as error:
        reason = f"{where} cannot be read: {error.strerror}"
        raise TrainError(f"{reason}; {REMEDY}") from None
    except UnicodeDecodeError:
        raise TrainError(f"{where} cannot be read: it is no UTF-8; {REMEDY}") from None
    names = [named(line.strip()) for line in lines]
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise TrainError(f"{where}: line {number} is empty; {REMEDY}")
        if name in first:
            raise TrainError(
                f"{where}: '{name}' stands on line {first[name]} and on line {number}; "
                "give each class one line"
            )
        first[name] = number
    return tuple(names)


def check_folders(path: Path, names: Collection[str], found: Collection[str]) -> None:
    """Refuses classes that are not those of a class map.

    Args:
        path: The file of the map.
        names: The classes in it.
        found: Those that have a folder in train/.

    Raises:
        TrainError: If some are in one of the two only; it names them.
    """
    faults = []
    for told, odd in (
        ("has no folder for", sorted({*names} - {*found})),
        ("has folders that are not in it:", sorted({*found} - {*names})),
    ):
        if odd:
            shown = [f"'{name}'" for name in odd[:NAMED]]
            more = [f"{len(odd) - NAMED} more"] if len(odd) > NAMED else []
            faults.append(f"{told} {', '.join(shown + more)}")
    if faults:
        raise TrainError(
            f"--class-map (={printable(path)}) must name the folders of train/, which "
            f"{' and '.join(faults)}"
        )
