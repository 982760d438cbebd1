"""Images of one's own: DIR/train/CLASS/* and DIR/val/CLASS/*, JPEG or PNG."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from train.data.dataset import Dataset
from train.data.pictures import SUFFIXES, UnreadableImage, read_picture
from train.errors import TrainError, warn

IMAGE_SIZE = 224
# Of ImageNet, as networks for photographs have it.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Picture files, read when they are asked for.

    Attributes:
        paths: The files.
        labels: Their classes, (N,) int32.
        shape: (H, W, C) that all are brought to.
        is_in_memory: False: decoding takes longer than a training step.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    shape: tuple[int, int, int]
    is_in_memory: bool = dataclasses.field(default=False, init=False)

    def __len__(self) -> int:
        """Returns N."""
        return len(self.paths)

    def image(self, index: int) -> np.ndarray:
        """Returns an image, (H, W, C) uint8.

        Raises:
            UnreadableImage: If its file is broken.
        """
        return read_picture(self.paths[index], self.shape)

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """Returns the images (b, H, W, C) of `indices` (b,), and why some are blank."""
        images = np.zeros((len(indices), *self.shape), np.uint8)
        unreadable = {}
        for row, index in enumerate(indices):
            try:
                images[row] = self.image(index)
            except UnreadableImage as error:
                unreadable[row] = str(error)
        return images, unreadable


def load(root: Path, image_size: int | None = None) -> Dataset:
    """Returns the pictures below a directory.

    Classes and files go by the order of their names. Files with other endings than
    .jpg, .jpeg and .png are left out, and counted aloud.

    Args:
        root: The directory above train/ and val/, which have one folder a class.
        image_size: The side of the square that all pictures are brought to; without it,
            224.

    Raises:
        TrainError: If a folder is missing or empty, or the two have other classes.
    """
    names = _class_names(root / "train")
    tested = _class_names(root / "val")
    if names != tested:
        odd = ", ".join(map(repr, sorted({*names} ^ {*tested})))
        raise TrainError(
            f"--data (={root}): train/ and val/ must have the same classes, but only "
            f"one of them has {odd}"
        )
    size = image_size or IMAGE_SIZE
    shape = (size, size, 3)
    return Dataset(
        train=_find(root / "train", names, shape),
        test=_find(root / "val", names, shape),
        class_names=names,
        image_shape=shape,
        mean=MEAN,
        std=STD,
        augmentation={"crop_padding": size // 8, "flip": 0.5},
    )


def _class_names(folder: Path) -> tuple[str, ...]:
    names = [each.name for each in _visible(folder, Path.is_dir)]
    if not names:
        raise TrainError(f"{folder} has no folders; it must have one for each class")
    return tuple(names)


def _find(
    folder: Path, names: tuple[str, ...], shape: tuple[int, int, int]
) -> FolderSource:
    paths: list[Path] = []
    labels: list[int] = []
    left_out = 0
    for label, name in enumerate(names):
        files = _visible(folder / name, Path.is_file)
        found = [each for each in files if each.suffix.lower() in SUFFIXES]
        left_out += len(files) - len(found)
        if not found:
            raise TrainError(
                f"{folder / name} has no images ({', '.join(SUFFIXES)}); every class "
                "must have some"
            )
        paths += found
        labels += [label] * len(found)
    if left_out:
        endings = ", ".join(SUFFIXES)
        warn(f"{folder}: {left_out} file(s) left out, which do not end in {endings}")
    return FolderSource(tuple(paths), np.array(labels, np.int32), shape)


def _visible(folder: Path, is_wanted: Callable[[Path], bool]) -> list[Path]:
    """Returns what is in a folder and not hidden, by name."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise TrainError(
            f"{folder} cannot be read ({error.strerror}); --data must be the directory "
            "above train/ and val/"
        ) from None
    return [each for each in entries if each.name[0] != "." and is_wanted(each)]
