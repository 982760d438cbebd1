"""Pictures that an export is made by and tried on, and its accuracy on them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from train.data.batches import evaluation_batches
from train.data.dataset import Dataset, Source
from train.data.pictures import put_up_with
from train.errors import TrainingFailed
from train.flags.data import OnBadImage

BATCH = 256  # of the test images, for the accuracy


def spread_pictures(
    source: Source, most: int, on_bad_image: OnBadImage
) -> tuple[np.ndarray, np.ndarray]:
    """Returns pictures from all over a set, (N, H, W, C) uint8, and labels (N,).

    Args:
        source: The set.
        most: How many, if there are as many, and all of them can be read.
        on_bad_image: Whether one that cannot be read stops it or is left out.

    Raises:
        TrainingFailed: If one cannot be read, and `on_bad_image` is "stop", or none
            can.
    """
    count = min(most, len(source))
    chosen = np.linspace(0, len(source) - 1, count).astype(int)
    pictures, unread = source.gather(chosen)
    for reason in unread.values():
        put_up_with(reason, on_bad_image, TrainingFailed)
    if len(unread) == len(chosen):
        raise TrainingFailed(
            f"none of {count} images, from all over those that are needed, can be read"
        )
    labels = source.labels[chosen]
    return np.delete(pictures, [*unread], axis=0), np.delete(labels, [*unread])


def accuracy_of(
    function: Callable[[Any], Any], dataset: Dataset, on_bad_image: OnBadImage
) -> tuple[float, int]:
    """Returns the accuracy on the test images, and how many of them can be read.

    Args:
        function: From pictures (b, H, W, C), uint8, to probabilities (b, classes).
        dataset: Whose test images they are.
        on_bad_image: Whether one that cannot be read stops it or is left out.

    Raises:
        TrainingFailed: If one cannot be read, and `on_bad_image` is "stop".
    """
    right = count = 0
    size = min(BATCH, len(dataset.test))
    batches = evaluation_batches(dataset.test, size, on_bad_image=on_bad_image)
    for batch, mask in batches:
        found = np.asarray(function(batch.images)).argmax(-1)
        right += int(mask[found == batch.labels].sum())
        count += int(mask.sum())
    return right / max(1, count), count
