"""CIFAR-10: 50,000 + 10,000 photographs, 32x32, in its binary or python version."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
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
Label = Annotated[int, msgspec.Meta(ge=0, lt=len(CLASS_NAMES))]


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
            read, content = _read_binary, contents[f"{name}.bin"]
        elif name in contents:
            read, content = _read_python, contents[name]
        else:
            raise TrainError(
                f"--data (={path}) has no {name} and no {name}.bin; it must be "
                "cifar-10-python.tar.gz, cifar-10-binary.tar.gz or the directory that "
                "one of them unpacks to"
            )
        try:
            parts.append(read(content))
        except ValueError as error:
            raise TrainError(
                f"--data (={path}): {name} in it is damaged or not of CIFAR-10: "
                f"{error}; get the original anew"
            ) from None
    planes, labels = map(np.concatenate, zip(*parts, strict=True))
    # Each image is its red, green and blue plane, one after the other.
    height, width, channels = IMAGE_SHAPE
    images = planes.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
    return ArraySource(np.ascontiguousarray(images), labels.astype(np.int32))


def _read_binary(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Returns planes and labels of records of a label and an image.

    Raises:
        ValueError: If it holds none.
    """
    if len(content) % (1 + PIXELS):
        raise ValueError(
            f"it has {len(content)} bytes, but must have {1 + PIXELS} for each image"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    return _checked(records[:, 1:], records[:, 0])


def _read_python(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Returns planes and labels of a pickled dictionary.

    Raises:
        ValueError: If it is none, or holds something else.
    """
    values = read_array_pickle(content)
    for key in (b"data", b"labels"):
        if key not in values:
            raise ValueError(f"it has no {key.decode()}")
    labels = values[b"labels"]
    if not isinstance(labels, np.ndarray):
        try:
            labels = np.array(msgspec.convert(labels, list[Label]))
        except msgspec.ValidationError as error:
            words, _, place = str(error).replace("`", "").partition(" - at $")
            raise ValueError(f"labels{place}: {words.lower()}") from None
    return _checked(values[b"data"], labels)


def _checked(planes: Any, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns planes and labels, if they are such.

    Raises:
        ValueError: If their form, their number or a label is not what it must be.
    """
    wanted = f"must be an array uint8 (N, {PIXELS})"
    if not isinstance(planes, np.ndarray):
        raise ValueError(f"data is a {type(planes).__name__}, but {wanted}")
    if planes.dtype != np.uint8 or planes.ndim != 2 or planes.shape[1] != PIXELS:
        raise ValueError(f"data is {planes.dtype} {planes.shape}, but {wanted}")
    if labels.shape != (len(planes),):
        raise ValueError(
            f"labels are of shape {labels.shape}, but there are {len(planes)} images"
        )
    if not len(labels):
        raise ValueError("it has no images")
    if labels.max() >= len(CLASS_NAMES):
        raise ValueError(
            f"labels[{labels.argmax()}] (={labels.max()}) must be less than "
            f"{len(CLASS_NAMES)}"
        )
    return planes, labels
