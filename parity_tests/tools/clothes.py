"""Small files as Fashion-MNIST has them, which are read without scikit-learn."""

import gzip
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

SPLITS = MappingProxyType({"train": 64, "t10k": 16})


def idx(values: np.ndarray) -> bytes:
    """Returns the content of an idx file."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_clothes(folder: Path, splits: Mapping[str, int] = SPLITS) -> tuple[str, ...]:
    """Writes the four files, two of them compressed.

    Args:
        folder: Where to.
        splits: How many images of noise each part has; their classes take turns.

    Returns:
        The flags of a run on them.
    """
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        images = rng.integers(256, size=(count, 28, 28))
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        labels = gzip.compress(idx(np.arange(count) % 10))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(labels)
    return "--preset=fashion", f"--data={folder}"
