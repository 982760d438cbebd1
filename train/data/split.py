"""A validation part of the training images, by which weights may be chosen."""

import dataclasses
import math

import numpy as np

from train.data.dataset import Dataset, Source
from train.errors import TrainError


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some of the images of a source, as a source.

    Attributes:
        source: The source.
        indices: The numbers of the images in it, (n,) int.
    """

    source: Source
    indices: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """The class of every image, (n,) int32."""
        return self.source.labels[self.indices]

    @property
    def is_in_memory(self) -> bool:
        """Whether reading takes no time worth a process of its own."""
        return self.source.is_in_memory

    def __len__(self) -> int:
        """Returns n."""
        return len(self.indices)

    def image(self, index: int) -> np.ndarray:
        """Returns an image, (H, W, C) uint8.

        Raises:
            UnreadableImage: If its file is broken.
        """
        return self.source.image(int(self.indices[index]))

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """Returns the images (b, H, W, C) of `indices` (b,), and why some are blank."""
        return self.source.gather(self.indices[indices])


def split_off(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Returns the data with a part of the training images for validation.

    Each class gives its share, and which images it gives follows from the seed and the
    labels alone.

    Args:
        dataset: The data.
        share: The share of the training images, more than 0 and less than 1.
        seed: Where the choice comes from.

    Raises:
        TrainError: If a class has too few images for both parts.

    Example:
        >>> from train.data import digits
        >>> parts = split_off(digits.load(), 0.1, seed=0)
        >>> len(parts.train), len(parts.part("val")), len(parts.test)
        (1293, 144, 360)
    """
    # Here and not above: it takes a second, and most runs need none of it.
    from sklearn.model_selection import train_test_split

    labels = dataset.train.labels
    counts = np.bincount(labels, minlength=dataset.num_classes)
    total, wanted = len(labels), math.ceil(share * len(labels))
    classes = int((counts > 0).sum())
    where = f"--val-split (={share})"
    if 1 in counts:
        lonely = dataset.class_names[int(np.flatnonzero(counts == 1)[0])]
        raise TrainError(
            f"{where} takes images of each class and must leave some, but '{lonely}' "
            "has 1 to train on; add some, or leave the flag out"
        )
    if not classes <= wanted <= total - classes:
        raise TrainError(
            f"{where} must be from {classes / total:.4g} to {1 - classes / total:.4g}: "
            f"{total} training images are of {classes} classes, each of which needs "
            "one in both parts"
        )
    parts = train_test_split(
        np.arange(total), test_size=wanted, stratify=labels, random_state=seed
    )
    train, val = (Subset(dataset.train, np.sort(part)) for part in parts)
    return dataclasses.replace(dataset, train=train, val=val)


def original_numbers(source: Source, indices: np.ndarray) -> np.ndarray:
    """Returns the numbers that images of a source have among all training images."""
    return source.indices[indices] if isinstance(source, Subset) else indices
