"""What a preset gives: images to learn from, to be tested on, and what they show."""

import dataclasses
import hashlib
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal, Protocol, Self

import numpy as np

from train.flags.data import Interpolation
from train.printable import printable

Part = Literal["test", "val"]
# What a network is evaluated on, in words.
PARTS: dict[Part, str] = {"test": "test", "val": "validation"}


class Source(Protocol):
    """Images that are read by their number."""

    @property
    def labels(self) -> np.ndarray:
        """The class of every image, (N,) int32, known without reading an image."""
        ...

    @property
    def is_in_memory(self) -> bool:
        """Whether reading takes no time worth a process of its own."""
        ...

    def __len__(self) -> int:
        """Returns N."""
        ...

    def image(self, index: int) -> np.ndarray:
        """Returns an image, (H, W, C) uint8.

        Raises:
            UnreadableImage: If its file is broken.
        """
        ...

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """Reads several images at once.

        Args:
            indices: The numbers of the images, (b,).

        Returns:
            The images, (b, H, W, C) uint8, and for each row that could not be read, and
            is blank, why.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images (N, H, W, C) uint8 in memory, and their labels (N,) int32."""

    images: np.ndarray
    labels: np.ndarray
    is_in_memory: bool = dataclasses.field(default=True, init=False)

    def __len__(self) -> int:
        """Returns N."""
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        """Returns an image, (H, W, C) uint8."""
        return self.images[index]

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """Returns the images (b, H, W, C) of `indices` (b,); none is unreadable."""
        return self.images[indices], {}


def named(name: str) -> str:
    r"""Returns the name of a class as it is compared, sorted and shown everywhere.

    Unicode has several spellings of one text, of which macOS and others choose
    different ones for the names of files; and no terminal is to obey a name.

    Example:
        >>> named("cafe\u0301") == named("caf\xe9") == "caf\xe9"
        True
    """
    return printable(unicodedata.normalize("NFC", name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Domain:
    """What images are like and may show: all that a trained network needs of its data.

    Attributes:
        class_names: What the labels stand for.
        image_shape: (H, W, C) of every image.
        mean: The mean of each channel over the training images, white being 1.
        std: The standard deviation of each channel.
        interpolation: How pictures are scaled to that shape.
        crop_pct: The share of them that is kept in evaluation; see `read_picture`.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bicubic"
    crop_pct: float = 1.0

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Returns the domain of which JSON tells, perhaps among other things.

        What an earlier version did not tell is as by default.
        """
        names = (field.name for field in dataclasses.fields(cls))
        told = {name: _frozen(values[name]) for name in names if name in values}
        told["class_names"] = tuple(map(named, told["class_names"]))
        return cls(**told)

    def to_json(self) -> dict[str, Any]:
        """Returns the domain as JSON has it."""
        told = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(Domain)
        }
        return {n: list(v) if isinstance(v, tuple) else v for n, v in told.items()}


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset(Domain):
    """Images to learn from, images to be tested on, and what they may show.

    Attributes:
        train: The images to learn from.
        test: The images to be tested on; none, where some of the others are for
            validation and there are no more.
        val: Images by which weights are chosen, where those of the test are not.
        augmentation: The flags of augmentation that suit the images, by name; the
            others are off.
    """

    train: Source
    test: Source
    val: Source | None = None
    augmentation: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def judged_on(self) -> Part:
        """The part that is evaluated in training, and by which weights are chosen."""
        return "test" if self.val is None else "val"

    def has(self, part: Part) -> bool:
        """Tells whether there are images of a part."""
        return self.val is not None if part == "val" else len(self.test) > 0

    def part(self, name: Part) -> Source:
        """Returns the images of a part that there is."""
        source = self.test if name == "test" else self.val
        assert source is not None and len(source), f"there are no {name} images"
        return source

    def in_words(self) -> str:
        """Returns how many images there are of each part."""
        counts = {"training": len(self.train)}
        if self.val is not None:
            counts["validation"] = len(self.val)
        if self.has("test"):
            counts["test"] = len(self.test)
        *most, last = (f"{count:,} {name}" for name, count in counts.items())
        return f"{', '.join(most)} and {last} images"

    def identity(self) -> dict[str, Any]:
        """Returns, as JSON has it, by what it is told from other data."""
        labels = hashlib.sha256()
        sources = {"train": self.train, "test": self.test}
        if self.val is not None:
            sources["val"] = self.val
        for source in sources.values():
            labels.update(source.labels.astype("<i4").tobytes())
        counts = {f"{name}_images": len(source) for name, source in sources.items()}
        return self.to_json() | counts | {"labels_sha256": labels.hexdigest()}
