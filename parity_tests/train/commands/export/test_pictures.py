"""Pictures that an export is judged by: of them, those that can be read."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parity_tests.tools.runs import make_dataset
from train.commands.export.pictures import accuracy_of, spread_pictures
from train.data.folder import FolderSource
from train.errors import TrainingFailed

DEFAULT_NUMERICS = True


def source_of(folder: Path, shades: Sequence[int | None]) -> FolderSource:
    """Returns pictures of these shades of red, whose labels count; None is torn."""
    paths = tuple(folder / f"{number}.png" for number in range(len(shades)))
    for path, shade in zip(paths, shades, strict=True):
        if shade is None:
            path.write_bytes(b"torn")
        else:
            Image.new("RGB", (5, 5), (shade, 0, 0)).save(path)
    return FolderSource(paths, np.arange(len(paths), dtype=np.int32), (5, 5, 3))


def test_pictures_come_from_all_over_the_set_with_their_labels(tmp_path):
    source = source_of(tmp_path, (0, 1, 2, 3, None, 5, 6, 7, 8))
    pictures, labels = spread_pictures(source, 3, "skip")
    assert labels.tolist() == [0, 8]
    assert pictures[:, 0, 0, 0].tolist() == [0, 8]


@pytest.mark.parametrize(
    ("shades", "told", "words"),
    [
        ((0, None, 2), "stop", "1.png cannot be read .*; mend it, or pass --on-bad-im"),
        ((None, None), "skip", "none of 2 images, .* can be read"),
    ],
)
def test_pictures_that_cannot_be_read_fail_it(shades, told, words, tmp_path):
    with pytest.raises(TrainingFailed, match=words):
        spread_pictures(source_of(tmp_path, shades), 3, told)


def test_accuracy_is_that_on_the_images_that_can_be_read(tmp_path):
    test = source_of(tmp_path, (0, 1, None, 3, 9))
    dataset = dataclasses.replace(make_dataset(), test=test)

    def function(pictures: np.ndarray) -> np.ndarray:
        return np.eye(10)[pictures[:, 0, 0, 0]]

    assert accuracy_of(function, dataset, "skip") == (3 / 4, 4)
    with pytest.raises(TrainingFailed, match="2.png cannot be read"):
        accuracy_of(function, dataset, "stop")
