"""Images of one's own: the pictures below DIR/train/CLASS, and others to be tested on.

Those are below DIR/val/CLASS. With a validation part of train/, they may be below
DIR/test/CLASS, or there may be none.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from train.data.class_map import check_folders, read_class_map
from train.data.dataset import Dataset, Domain, named
from train.data.pictures import SUFFIXES, UnreadableImage, read_picture
from train.data.walk import LeftOut, find_pictures, list_folder, say_left_out
from train.errors import TrainError, warn
from train.flags.data import IMAGE_SIZE, MOST_PIXELS, Interpolation
from train.printable import printable

# Of ImageNet, as networks for photographs have it.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
NO_CLASS = "which lie in no folder of a class"


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Picture files, read when they are asked for.

    Attributes:
        paths: The files.
        labels: Their classes, (N,) int32.
        shape: (H, W, C) that all are brought to.
        max_pixels: The pixels of the largest picture to read.
        interpolation: How they are scaled.
        crop_pct: The share of them that is kept; see `read_picture`.
        is_in_memory: False: decoding takes longer than a training step.
    """

    paths: tuple[Path, ...]
    labels: np.ndarray
    shape: tuple[int, int, int]
    max_pixels: int = MOST_PIXELS
    interpolation: Interpolation = "bicubic"
    crop_pct: float = 1.0
    is_in_memory: bool = dataclasses.field(default=False, init=False)

    @classmethod
    def unlabelled(
        cls, paths: Sequence[Path], domain: Domain, max_pixels: int = MOST_PIXELS
    ) -> Self:
        """Returns pictures as a network sees them in evaluation, whatever they show.

        Args:
            paths: The files.
            domain: What the images are like that the network was trained on.
            max_pixels: The pixels of the largest picture to read.
        """
        return cls(
            *(tuple(paths), np.zeros(len(paths), np.int32), domain.image_shape),
            *(max_pixels, domain.interpolation, domain.crop_pct),
        )

    def __len__(self) -> int:
        """Returns N."""
        return len(self.paths)

    def image(self, index: int) -> np.ndarray:
        """Returns an image, (H, W, C) uint8.

        Raises:
            UnreadableImage: If its file is broken.
        """
        form = self.shape, self.max_pixels, self.interpolation, self.crop_pct
        return read_picture(self.paths[index], *form)

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


def load(
    root: Path,
    size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE),
    max_pixels: int = MOST_PIXELS,
    *,
    interpolation: Interpolation = "bicubic",
    class_map: Path | None = None,
    needs_test: bool = True,
) -> Dataset:
    """Returns the pictures below a directory.

    Classes go by the order of their names, or by that of `class_map`, and the pictures
    of a class, which may lie in folders of its folder, by that of theirs. What is no
    picture by its name is left out, and said.

    Args:
        root: The directory above train/ and val/, which have one folder a class.
        size: The height and the width that all pictures are brought to.
        max_pixels: The pixels of the largest picture to read.
        interpolation: How they are scaled.
        class_map: A file with the names of the classes, which must be those of all
            folders, in the order of the labels.
        needs_test: Whether it is tested on val/, which must be there. Else the pictures
            to be tested on are those in test/, or in val/ if there is no test/, and
            there may be none.

    Raises:
        TrainError: If a folder is missing or empty, or the two have other classes, or
            the class map has.
    """
    ordered = None if class_map is None else read_class_map(class_map)
    tested = "val" if needs_test else _find_test(root)
    splits = {"train": _classes(root / "train")}
    names = ordered or tuple(sorted(splits["train"]))
    if class_map is not None:
        check_folders(class_map, names, splits["train"])
    if tested is not None:
        splits[tested] = _classes(root / tested)
        odd = [
            f"'{name}' (in {split}/)"
            for split, other in (("train", tested), (tested, "train"))
            for name in sorted({*splits[split]} - {*splits[other]})
        ]
        if odd:
            raise TrainError(
                f"--data (={printable(root)}): train/ and {tested}/ must have the same "
                f"classes, but only one of them has {', '.join(odd)}"
            )
    shape = (*size, 3)
    none = FolderSource((), np.zeros(0, np.int32), shape, max_pixels, interpolation)
    sources = {
        split: _find(root / split, [folders[name] for name in names], none)
        for split, folders in splits.items()
    }
    return Dataset(
        train=sources["train"],
        test=none if tested is None else sources[tested],
        class_names=names,
        image_shape=shape,
        mean=MEAN,
        std=STD,
        interpolation=interpolation,
        augmentation={"crop_padding": min(size) // 8, "flip": 0.5},
    )


def _find_test(root: Path) -> str | None:
    """Returns which folder has the pictures to be tested on, if one has."""
    found = [name for name in ("test", "val") if (root / name).is_dir()]
    if len(found) == 2:
        warn(
            f"{printable(root / 'val')} is left out: with --val-split, validation has "
            "a part of train/, and the test has test/"
        )
    return found[0] if found else None


def _classes(split: Path) -> dict[str, Path]:
    """Returns the folders of the classes by the names of these."""
    folders: dict[str, Path] = {}
    left_out: LeftOut = {}
    try:
        entries = list_folder(split)
    except TrainError as error:
        rule = "--data must be the directory above train/ and val/"
        raise TrainError(f"{error}; {rule}") from None
    for path, kind in entries:
        if kind != "folder":
            reason = NO_CLASS if kind == "file" else kind
            left_out.setdefault(reason, []).append(path)
            continue
        name = named(path.name)
        if name in folders:
            written = " and ".join(ascii(each.name) for each in (folders[name], path))
            raise TrainError(
                f"{printable(split)} has two folders of one name, '{name}', written "
                f"as {written}; make them one"
            )
        folders[name] = path
    say_left_out(split, left_out)
    if not folders:
        raise TrainError(
            f"{printable(split)} has no folders; it must have one for each class"
        )
    return folders


def _find(split: Path, folders: Sequence[Path], none: FolderSource) -> FolderSource:
    """Returns the pictures in the folders of the classes, read as `none` would be."""
    paths: list[Path] = []
    labels: list[int] = []
    left_out: LeftOut = {}
    for label, folder in enumerate(folders):
        found = find_pictures(folder)
        for reason, others in found.left_out.items():
            left_out.setdefault(reason, []).extend(others)
        if not found.pictures:
            raise TrainError(
                f"{printable(folder)} has no images ({', '.join(SUFFIXES)}); every "
                "class must have some"
            )
        paths += found.pictures
        labels += [label] * len(found.pictures)
    say_left_out(split, left_out)
    return dataclasses.replace(
        none, paths=tuple(paths), labels=np.array(labels, np.int32)
    )
