"""CIFAR-10: 50,000 + 10,000 photographs, 32x32, in its binary or python version."""

from pathlib import Path

import numpy as np

from train.data.archive import read_members
from train.data.array_pickle import read_array_pickle
from train.data.dataset import ArraySource, Dataset
from train.errors import TrainError

CLASS_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
IMAGE_SHAPE = (32, 32, 3)
PIXELS = 32 * 32 * 3
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = ("test_batch",)
# A file of the original has 10,000 images, 31 MB.
LARGEST = 64 * 2**20


def load(path: Path) -> Dataset:
    """Returns CIFAR-10.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Args:
        path: cifar-10-binary.tar.gz or cifar-10-python.tar.gz, which is read without
            being unpacked, or the directory that it unpacks to.

    Raises:
        TrainError: If files are missing, cut or something else.
    """
    names = [name + suffix for name in TRAIN + TEST for suffix in ("", ".bin")]
    if path.is_dir():
        contents = _read_directory(path, names)
    else:
        contents = read_members(path, names, LARGEST)
    return Dataset(
        train=_read_files(path, contents, TRAIN),
        test=_read_files(path, contents, TEST),
        class_names=CLASS_NAMES,
        image_shape=IMAGE_SHAPE,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        augmentation={"crop_padding": 4, "flip": 0.5},
    )


def _read_directory(folder: Path, names: list[str]) -> dict[str, bytes]:
    try:
        paths = [folder / name for name in names]
        return {path.name: path.read_bytes() for path in paths if path.exists()}
    except OSError as error:
        raise TrainError(f"{error.filename} cannot be read: {error.strerror}") from None


def _read_files(
    path: Path, contents: dict[str, bytes], names: tuple[str, ...]
) -> ArraySource:
    parts = []
    for name in names:
        if f"{name}.bin" in contents:
            part = _read_binary(contents[f"{name}.bin"])
        elif name in contents:
            part = _read_python(contents[name])
        else:
            raise TrainError(
                f"--data (={path}) has no {name} and no {name}.bin; it must be "
                "cifar-10-python.tar.gz, cifar-10-binary.tar.gz or the directory that "
                "one of them unpacks to"
            )
        if part is None:
            raise TrainError(
                f"--data (={path}): {name} in it is damaged or not of CIFAR-10; get "
                "the original anew"
            )
        parts.append(part)
    planes, labels = map(np.concatenate, zip(*parts, strict=True))
    # Each image is its red, green and blue plane, one after the other.
    height, width, channels = IMAGE_SHAPE
    images = planes.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
    return ArraySource(np.ascontiguousarray(images), labels.astype(np.int32))


def _read_binary(content: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns planes and labels of records of a label and an image, if it is some."""
    if len(content) % (1 + PIXELS):
        return None
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    return _checked(records[:, 1:], records[:, 0])


def _read_python(content: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns planes and labels of a pickled dictionary, if it is one."""
    try:
        values = read_array_pickle(content)
        return _checked(np.asarray(values[b"data"]), np.asarray(values[b"labels"]))
    except (ValueError, TypeError, KeyError):
        return None


def _checked(
    planes: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    is_shaped = planes.shape == (len(labels), PIXELS) and labels.ndim == 1
    if not (is_shaped and len(labels) and labels.dtype.kind in "iu"):
        return None
    is_class = (labels >= 0) & (labels < len(CLASS_NAMES))
    return (planes, labels) if is_class.all() else None
