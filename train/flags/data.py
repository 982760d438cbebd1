"""The flags of the images: where they come from, and how they are read."""

import dataclasses
from typing import Annotated, Literal

import tyro

from train.flags.checks import Flags, OptionalInt, OptionalPath, PresetFloats

OnBadImage = Literal["stop", "skip"]
OptionalOnBadImage = Annotated[OnBadImage | None, tyro.conf.arg(metavar="{stop,skip}")]
# Where Pillow itself takes a picture for an attack: twice its MAX_IMAGE_PIXELS.
MOST_PIXELS = 178_956_970
# What networks for photographs mostly see.
IMAGE_SIZE = 224
# Of an image. A batch of larger ones, as float32, would take gigabytes.
LARGEST_SIDE = 4096
# Between pixels, where pictures are scaled: the names that Pillow and timm have.
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
OptionalInterpolation = Annotated[
    Interpolation | None, tyro.conf.arg(metavar="{nearest,bilinear,bicubic,lanczos}")
]
OptionalSize = Annotated[
    int | tuple[int, int] | None, tyro.conf.arg(metavar="HEIGHT [WIDTH]")
]


@dataclasses.dataclass(frozen=True)
class DataFlags(Flags):
    """The flags of the images.

    Attributes:
        preset: The data to train on. digits: the 1797 handwritten digits of
            scikit-learn, 8x8 pixels, one fifth of them held out for the test. fashion:
            Fashion-MNIST, 60,000 + 10,000 images of clothes, 28x28. cifar10: 50,000 +
            10,000 photographs, 32x32. folder: the pictures in and below
            --data/train/CLASS and --data/val/CLASS: JPEG, PNG, WebP, TIFF, BMP, GIF and
            others.
        val_split: The share of the training images of each class that are kept for
            validation, chosen by --seed. The best weights are then those with the best
            validation accuracy, and the test images are evaluated once, at the end;
            without it, they are chosen on the test images. For folder, train/ is then
            enough; the test images are those in test/, or in val/ if there is no test/.
        data: Where the files of the preset are. For fashion a directory with the four
            idx files, plain or .gz, by default that of Debian's package
            dataset-fashion-mnist; for cifar10 the original archive (.tar.gz), python or
            binary version, or the directory it unpacks to; for folder the directory
            above train/ and val/.
        class_map: For folder, a text file with the name of a class, that of its folder,
            on each line, in the order of the labels. Without it, that is the order of
            the names.
        image_size: For folder, the height and the width that images are scaled and
            cropped to; one number is both. 224 by default.
        interpolation: For folder, how pictures are scaled to that size, in training and
            wherever the network is used.
        crop_pct: For folder, the share of a picture, in its height and its width, that
            is kept in evaluation and wherever the network is used: the picture is
            scaled to cover --image-size divided by it, and cut to its middle. Networks
            for ImageNet have 0.875 or more. Training sees whole pictures.
        mean: The mean of each channel, white being 1: one number, or one a channel. It
            is taken off the images, and what is left divided by --std, in training and
            wherever the network is used. Without it, that of the preset: for digits 0,
            so that black stays 0, for fashion and cifar10 that of their training
            images, and for folder that of ImageNet.
        std: The standard deviation of each channel, in the same way. It is 1 for
            digits.
        workers: How many processes read and decode images; by default 0 (the program's
            own thread) for presets that fit into memory, and the number of processors
            for folder.
        on_bad_image: What to do about an image that cannot be read: stop the run, or
            skip it. An image that is skipped is named and replaced by another one.
        max_image_pixels: For folder, the pixels of the largest picture to read. A
            larger one counts as one that cannot be read, because it may be made to
            fill the memory.
    """

    preset: Literal["digits", "fashion", "cifar10", "folder"] = "digits"
    val_split: float = 0.0
    data: OptionalPath = None
    class_map: OptionalPath = None
    image_size: OptionalSize = None
    interpolation: Interpolation = "bicubic"
    crop_pct: float = 1.0
    mean: PresetFloats = None
    std: PresetFloats = None
    workers: OptionalInt = None
    on_bad_image: OnBadImage = "stop"
    max_image_pixels: int = MOST_PIXELS

    @property
    def height_and_width(self) -> tuple[int, int]:
        """What `image_size` says of pictures, given or usual."""
        size = IMAGE_SIZE if self.image_size is None else self.image_size
        return size if isinstance(size, tuple) else (size, size)

    def check_data(self) -> None:
        """Refuses what no run could use.

        Raises:
            TrainError: If a value is out of range or does not fit another.
        """
        self.require_at_least_one("max_image_pixels")
        for name in ("image_size", "interpolation", "crop_pct"):
            is_usual = getattr(self, name) == getattr(DataFlags, name)
            rule = f"be left out with --preset {self.preset}, whose images have a size"
            self.require(name, self.preset == "folder" or is_usual, rule)
        rule = f"be left out with --preset {self.preset}, whose classes have an order"
        is_met = self.class_map is None or self.preset == "folder"
        self.require("class_map", is_met, rule)
        is_met = all(1 <= side <= LARGEST_SIDE for side in self.height_and_width)
        self.require("image_size", is_met, f"be from 1 to {LARGEST_SIDE}")
        self.require("crop_pct", 0 < self.crop_pct <= 1, "be above 0 and at most 1")
        if self.data is None:
            rule = "be the directory above train/ and val/"
            self.require("data", self.preset != "folder", rule)
            rule = "be the archive of CIFAR-10 or the directory it unpacks to"
            self.require("data", self.preset != "cifar10", rule)
        else:
            rule = "be left out with --preset digits, which scikit-learn carries"
            self.require("data", self.preset != "digits", rule)
        if self.mean is not None:
            is_met = bool(self.mean) and all(0 <= each <= 1 for each in self.mean)
            self.require("mean", is_met, "be from 0 to 1, which is white")
        if self.std is not None:
            is_met = bool(self.std) and all(0 < each <= 1 for each in self.std)
            self.require("std", is_met, "be above 0 and up to 1, which is white")
        is_met = self.workers is None or self.workers >= 0
        self.require("workers", is_met, "be at least 0")
        self.require_share("val_split")
