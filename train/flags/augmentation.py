"""The flags of augmentation: how the images vary from one step to the next."""

import dataclasses
import math
from typing import Annotated

import tyro

from train.flags.checks import Flags, OptionalFloat, PresetFloat, PresetInt

# Of the width of a rectangle to its height, as torchvision has it.
USUAL_RATIO = (3 / 4, 4 / 3)
# Of RandAugment: the end of its scale, and how many operations an image has.
LARGEST_MAGNITUDE = 10
USUAL_OPS = 2
Range = Annotated[tuple[float, float], tyro.conf.arg(metavar="FROM TO")]
OptionalRange = Annotated[tuple[float, float] | None, tyro.conf.arg(metavar="FROM TO")]


@dataclasses.dataclass(frozen=True)
class AugmentationFlags(Flags):
    """The flags of augmentation.

    Attributes:
        crop_padding: By how many pixels images are padded before a crop of the former
            size is cut at random. This, --flip, --color-jitter, --erasing, --mixup and
            --cutmix have defaults of the preset.
        crop_scale: From which to which share of its area a rectangle is cut out of an
            image at random (a random resized crop). It is scaled to the size of the
            image, and takes the place of the padded crop; ImageNet has 0.08 1.
        crop_ratio: From which to which ratio of its width to its height.
        randaugment: The magnitude of RandAugment, from 0 to 10; ImageNet has 9. Each
            image is varied by --randaugment-ops operations, drawn at random with their
            directions: rotation, shear, translation, brightness, contrast, colour,
            sharpness, posterize, solarize, auto-contrast, equalize, or none.
        randaugment_ops: How many operations of RandAugment an image has.
        flip: The share of images that are flipped from left to right.
        color_jitter: By how much, as a share, brightness, contrast and saturation
            vary.
        erasing: The share of images in which a random rectangle is erased.
        mixup: The alpha of mixup's Beta distribution; 0 is none.
        cutmix: The alpha of cutmix's Beta distribution; 0 is none. With both, each
            batch has one of the two.
    """

    crop_padding: PresetInt = None
    crop_scale: OptionalRange = None
    crop_ratio: Range = USUAL_RATIO
    randaugment: OptionalFloat = None
    randaugment_ops: int = USUAL_OPS
    flip: PresetFloat = None
    color_jitter: PresetFloat = None
    erasing: PresetFloat = None
    mixup: PresetFloat = None
    cutmix: PresetFloat = None

    def check_augmentation(self) -> None:
        """Refuses what no run could use.

        Raises:
            TrainError: If a value is out of range or does not fit another.
        """
        is_met = self.crop_padding is None or self.crop_padding >= 0
        self.require("crop_padding", is_met, "be at least 0")
        for name in ("flip", "erasing"):
            value = getattr(self, name)
            self.require(name, value is None or 0 <= value <= 1, "be from 0 to 1")
        self.require_share("color_jitter")
        self.require_weight("mixup", "cutmix")
        self._check_crop()
        magnitude = self.randaugment
        is_met = magnitude is None or 0 <= magnitude <= LARGEST_MAGNITUDE
        self.require("randaugment", is_met, f"be from 0 to {LARGEST_MAGNITUDE}")
        self.require_at_least_one("randaugment_ops")
        rule = "be left out without --randaugment, whose operations they are"
        is_met = magnitude is not None or self.randaugment_ops == USUAL_OPS
        self.require("randaugment_ops", is_met, rule)

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
