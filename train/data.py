"""The images: where a preset comes from, and the order in which a run sees them."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from train.config import Config
from train.errors import TrainError

# The split is part of the preset, not of the run: accuracies of all seeds compare.
SPLIT_SEED = 0
TEST_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Images:
    """Images (N, H, W, C) in float32 and their labels (N,) in int32."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """Returns N."""
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images to learn from, images to be tested on, and what they may show."""

    train: Images
    test: Images
    num_classes: int


def load_digits() -> Dataset:
    """Returns scikit-learn's handwritten digits, (N, 8, 8, 1) from 0 to 1.

    It holds 1797 images; a fifth of each class is the test set, always the same.
    """
    # Here and not above: it takes a second, and --help needs none of it.
    from sklearn import datasets, model_selection

    digits: Any = datasets.load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int32)
    split: Any = model_selection.train_test_split(
        images, labels, test_size=TEST_SHARE, stratify=labels, random_state=SPLIT_SEED
    )
    train_images, test_images, train_labels, test_labels = split
    return Dataset(
        train=Images(train_images, train_labels),
        test=Images(test_images, test_labels),
        num_classes=10,
    )


PRESETS = {"digits": load_digits}


def check_batch_size(config: Config, dataset: Dataset, device_count: int) -> None:
    """Raises a TrainError unless batches can be drawn and split over the devices."""
    size, available = config.batch_size, len(dataset.train)
    if size > available:
        raise TrainError(
            f"--batch-size (={size}) must be at most {available}, the number of "
            f"training images of --preset {config.preset}"
        )
    if size % device_count:
        below = size - size % device_count
        nearest = below or device_count
        raise TrainError(
            f"--batch-size (={size}) must be divisible by the {device_count} devices "
            f"that share a batch; {nearest} would be"
        )


def training_batches(data: Images, batch_size: int, seed: int) -> Iterator[Images]:
    """Yields batches without end, each epoch in an order of its own.

    The images that do not fill a batch at the end of an epoch are left out of it.

    Args:
        data: The training images.
        batch_size: The size of every batch; at most `len(data)`.
        seed: What the orders follow from.
    """
    epoch = 0
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(len(data))
        for start in range(0, len(data) - batch_size + 1, batch_size):
            chosen = order[start : start + batch_size]
            yield Images(data.images[chosen], data.labels[chosen])
        epoch += 1


def evaluation_batches(
    data: Images, batch_size: int
) -> Iterator[tuple[Images, np.ndarray]]:
    """Yields all images once, in order, in batches of one size.

    One size means one compilation; the last batch is filled up with blank images.

    Args:
        data: The test images.
        batch_size: The size of every batch.

    Yields:
        The batch, and a float32 mask (batch_size,) that is 1 for images and 0 for
        filling.
    """
    for start in range(0, len(data), batch_size):
        images = data.images[start : start + batch_size]
        labels = data.labels[start : start + batch_size]
        missing = batch_size - len(labels)
        mask = np.pad(np.ones(len(labels), np.float32), (0, missing))
        images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        yield Images(images, np.pad(labels, (0, missing))), mask
