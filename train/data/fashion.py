"""Fashion-MNIST: 60,000 + 10,000 grey images of clothes, 28x28, as idx files."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from train.data.dataset import ArraySource, Dataset
from train.errors import TrainError

FOLDER = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"
CLASS_NAMES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
IMAGE_SHAPE = (28, 28, 1)
# An idx file starts with two zeros, the kind of its values (8: uint8) and the number
# of its dimensions, each of which follows as a big-endian word.
UINT8 = 8


def load(folder: Path | None = None) -> Dataset:
    """Returns Fashion-MNIST.

    Source: Xiao, Rasul & Vollgraf, "Fashion-MNIST: a Novel Image Dataset for
    Benchmarking Machine Learning Algorithms", 2017.

    Args:
        folder: Where the four files are, plain or .gz; without it, where Debian's
            package puts them.

    Raises:
        TrainError: If a file is missing, cut or something else.
    """
    folder = FOLDER if folder is None else folder
    return Dataset(
        train=_read_split(folder, "train"),
        test=_read_split(folder, "t10k"),
        class_names=CLASS_NAMES,
        image_shape=IMAGE_SHAPE,
        mean=(0.2860,),
        std=(0.3530,),
        augmentation={"crop_padding": 2, "flip": 0.5},
    )


def _read_split(folder: Path, split: str) -> ArraySource:
    images = _read_idx(folder, f"{split}-images-idx3-ubyte", dimensions=3)
    labels = _read_idx(folder, f"{split}-labels-idx1-ubyte", dimensions=1)
    height, width, _ = IMAGE_SHAPE
    if images.shape != (len(labels), height, width) or not len(labels):
        raise TrainError(
            f"{folder}: the {split} files hold images {images.shape} and "
            f"{len(labels)} labels, but must hold as many images, {height}x{width}; "
            f"{_remedy(folder)}"
        )
    if labels.max() >= len(CLASS_NAMES):
        raise TrainError(
            f"{folder}: the {split} labels go up to {labels.max()}, but must be less "
            f"than {len(CLASS_NAMES)}; {_remedy(folder)}"
        )
    return ArraySource(images[..., None], labels.astype(np.int32))


def _read_idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """Returns the uint8 array in an idx file, plain or .gz."""
    path = folder / name
    if not path.exists():
        path = folder / f"{name}.gz"
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise TrainError(f"{path} does not exist; {_remedy(folder)}") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = f"{path} cannot be read ({error}); {_remedy(folder)}"
        raise TrainError(reason) from None
    if content[:4] != bytes([0, 0, UINT8, dimensions]):
        raise TrainError(
            f"{path} is no idx file of bytes in {dimensions} dimension(s); "
            f"{_remedy(folder)}"
        )
    start = 4 + 4 * dimensions
    header = content[4:start].ljust(4 * dimensions, b"\0")
    shape = [int(each) for each in np.frombuffer(header, ">u4")]
    if len(content) != start + math.prod(shape):
        raise TrainError(
            f"{path} is damaged: {len(content)} bytes where its header says "
            f"{start + math.prod(shape)}; {_remedy(folder)}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _remedy(folder: Path) -> str:
    if folder == FOLDER:
        return f"`apt-get install {PACKAGE}` puts it there; --data names another folder"
    return (
        "--data must be the folder of the four idx files; without it, those of "
        f"Debian's package {PACKAGE} are read"
    )
