"""The handwritten digits of scikit-learn: 1797 images, 8x8, in the library itself."""

from typing import Any

import numpy as np

from train.data.dataset import ArraySource, Dataset

# The split is part of the preset, not of the run: accuracies of all seeds compare.
SPLIT_SEED = 0
TEST_SHARE = 0.2
WHITEST = 16


def load() -> Dataset:
    """Returns the digits; a fifth of each class is the test set, always the same.

    Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998.

    Example:
        >>> dataset = load()
        >>> len(dataset.train), len(dataset.test), dataset.image_shape
        (1437, 360, (8, 8, 1))
    """
    # Here and not above: it takes a second, and --help needs none of it.
    from sklearn import datasets, model_selection

    digits: Any = datasets.load_digits()
    images = np.rint(digits.images[..., None] * (255 / WHITEST)).astype(np.uint8)
    labels = digits.target.astype(np.int32)
    split: Any = model_selection.train_test_split(
        images, labels, test_size=TEST_SHARE, stratify=labels, random_state=SPLIT_SEED
    )
    train_images, test_images, train_labels, test_labels = split
    return Dataset(
        train=ArraySource(train_images, train_labels),
        test=ArraySource(test_images, test_labels),
        class_names=tuple(map(str, range(10))),
        image_shape=(8, 8, 1),
        # Black stays 0, which is what convolutions pad with: most pixels are black.
        mean=(0.0,),
        std=(1.0,),
    )
