"""The flags of the images: where they come from and how they are varied."""

import dataclasses
import math
from typing import Annotated, Literal

import tyro

from train.flags.checks import Flags, OptionalFloat, OptionalInt, OptionalPath

OnBadImage = Literal["stop", "skip"]
OptionalOnBadImage = Annotated[OnBadImage | None, tyro.conf.arg(metavar="{stop,skip}")]
# Where Pillow itself takes a picture for an attack: twice its MAX_IMAGE_PIXELS.
MOST_PIXELS = 178_956_970
# Of an image. A batch of larger ones, as float32, would take gigabytes.
LARGEST_SIDE = 4096
# Of the width of a rectangle to its height, as torchvision has it.
USUAL_RATIO = (3 / 4, 4 / 3)
OptionalRange = Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="FROM TO")]


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
        image_size: For folder, the side that images are scaled and cropped to; 224 by
            default.
        workers: How many processes read and decode images; by default 0 (the program's
            own thread) for presets that fit into memory, and the number of processors
            for folder.
        on_bad_image: What to do about an image that cannot be read: stop the run, or
            skip the image, which is named and replaced by another one.
        max_image_pixels: For folder, the pixels of the largest picture to read; a
            larger one counts as one that cannot be read, because it may be made to
            fill the memory.
        crop_padding: By how many pixels images are padded before a crop of the former
            size is cut at random; this, --flip, --color-jitter, --erasing, --mixup and
            --cutmix have defaults of the preset.
        crop_scale: From which to which share of an image's area a rectangle is cut out
            of it at random, which is scaled to the size of the image (a random resized
            crop, in the place of the padded one); ImageNet has 0.08 1.
        crop_ratio: From which to which ratio of its width to its height.
        flip: The share of images that are flipped from left to right.
        color_jitter: By how much, as a share, brightness, contrast and saturation
            vary.
        erasing: The share of images in which a random rectangle is erased.
        mixup: The alpha of mixup's Beta distribution; 0 is none.
        cutmix: The alpha of cutmix's Beta distribution; 0 is none. With both, each
            batch has one of the two.
    """

    preset: Literal["digits", "fashion", "cifar10", "folder"] = "digits"
    val_split: float = 0.0
    data: OptionalPath = None
    image_size: OptionalInt = None
    workers: OptionalInt = None
    on_bad_image: OnBadImage = "stop"
    max_image_pixels: int = MOST_PIXELS
    crop_padding: OptionalInt = None
    crop_scale: OptionalRange = None
    crop_ratio: tuple[float, float] = USUAL_RATIO
    flip: OptionalFloat = None
    color_jitter: OptionalFloat = None
    erasing: OptionalFloat = None
    mixup: OptionalFloat = None
    cutmix: OptionalFloat = None

    def check_data(self) -> None:
        """Refuses what no run could use.

        Raises:
            TrainError: If a value is out of range or does not fit another.
        """
        self.require_at_least_one("image_size", "max_image_pixels")
        if self.image_size is not None:
            rule = f"be left out with --preset {self.preset}, whose images have a size"
            self.require("image_size", self.preset == "folder", rule)
            rule = f"be at most {LARGEST_SIDE}"
            self.require("image_size", self.image_size <= LARGEST_SIDE, rule)
        if self.data is None:
            rule = "be the directory above train/ and val/"
            self.require("data", self.preset != "folder", rule)
            rule = "be the archive of CIFAR-10 or the directory it unpacks to"
            self.require("data", self.preset != "cifar10", rule)
        else:
            rule = "be left out with --preset digits, which scikit-learn carries"
            self.require("data", self.preset != "digits", rule)
        for name in ("workers", "crop_padding"):
            value = getattr(self, name)
            self.require(name, value is None or value >= 0, "be at least 0")
        for name in ("flip", "erasing"):
            value = getattr(self, name)
            self.require(name, value is None or 0 <= value <= 1, "be from 0 to 1")
        self.require_share("color_jitter", "val_split")
        self.require_weight("mixup", "cutmix")
        self._check_crop()

    def _check_crop(self) -> None:
        """Refuses rectangles that there are not."""
        if self.crop_scale is None:
            rule = "be left out without --crop-scale, whose rectangles have it"
            self.require("crop_ratio", self.crop_ratio == USUAL_RATIO, rule)
            return
        rule = "be left out with --crop-scale, which crops in its place"
        self.require("crop_padding", not self.crop_padding, rule)
        low, high = self.crop_scale
        rule = "be two shares, above 0 and up to 1, the smaller one first"
        self.require("crop_scale", 0 < low <= high <= 1, rule)
        low, high = self.crop_ratio
        rule = "be two ratios, above 0 and finite, the smaller one first"
        self.require("crop_ratio", 0 < low <= high < math.inf, rule)
