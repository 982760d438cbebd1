"""Picture files of whatever kind, as arrays of one shape."""

import math
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from train.errors import TrainError, warn
from train.flags.data import MOST_PIXELS, Interpolation, OnBadImage
from train.printable import printable

# What is taken for a picture in a folder; a file that is named may end in anything.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".avif", ".jp2"),
)
# By how much Pillow spreads the shades of a grey PNG of 2 or 4 bits, but not the number
# of the transparent one.
SPREAD = {"L;2": 85, "L;4": 17}
# The filter by which `warnings.filterwarnings` silences Pillow.
PILLOWS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class UnreadableImage(TrainError):
    """A file that is no picture, or one that is cut or damaged."""


def put_up_with(
    complaint: str, on_bad_image: OnBadImage, failure: type[TrainError] = TrainError
) -> None:
    """Says that an image is skipped, or raises `failure` if none is to be.

    Args:
        complaint: Which image cannot be read, and why.
        on_bad_image: Whether that stops what is done.
        failure: What is raised then.
    """
    if on_bad_image == "stop":
        raise failure(f"{complaint}; mend it, or pass --on-bad-image skip")
    warn(f"{complaint}; it is skipped")


def read_picture(
    path: Path,
    shape: tuple[int, int, int],
    max_pixels: int = MOST_PIXELS,
    interpolation: Interpolation = "bicubic",
    crop_pct: float = 1.0,
) -> np.ndarray:
    """Returns the picture in a file, scaled to cover `shape` and cut to its middle.

    With `crop_pct` it is scaled to cover a shape that is larger by so much, and so this
    share of its height or width is kept, or less of the longer one.

    Of 16 bits the upper 8 are kept. Numbers with a fraction are read as shares of
    white, or from 0 to 255 if any is 2 or more.

    Args:
        path: A file that Pillow reads.
        shape: (H, W, C) to return; with C = 1 the picture becomes grey, with 3 RGB, in
            both cases upon black where it is transparent.
        max_pixels: The pixels of the largest picture to read.
        interpolation: What lies between pixels.
        crop_pct: The share to keep.

    Returns:
        (H, W, C) uint8.

    Raises:
        UnreadableImage: If there is no such file, it cannot be read as a picture, or it
            has too many pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    height, width, channels = shape
    mode = "L" if channels == 1 else "RGB"
    side = math.ceil(max(height, width) / crop_pct)
    method = Image.Resampling[interpolation.upper()]
    border = (1 - crop_pct) / 2  # which is cut off on each side
    try:
        picture, form = _open(path, max_pixels, mode, side)
        if form == "RGB;16B" and "transparency" in picture.info:
            lower, _ = _open(path, max_pixels, mode, side, "RGB;16L")
            picture = _without_key(_joined(picture, lower), picture)
        elif picture.mode == "F" or picture.mode.startswith("I"):
            picture = _without_key(np.asarray(picture), picture)
        elif form in SPREAD and "transparency" in picture.info:
            picture.info["transparency"] *= SPREAD[form]
        picture = _upon_black(picture).convert(mode)
        picture = ImageOps.fit(picture, (width, height), method, border)
        return np.asarray(picture).reshape(shape)
    except UnidentifiedImageError:
        words = "it is no picture"
    except FileNotFoundError as error:
        words = str(error.strerror)
        if path.is_symlink():
            words = f"it is a link to {os.readlink(path)}, where nothing is"
    except Exception as error:  # Decoders raise all kinds of them on broken files.
        reason = error.strerror if isinstance(error, OSError) else None
        words = " ".join(str(reason or error).split()) or type(error).__name__
    raise UnreadableImage(
        printable(f"{path} cannot be read as an image: {words}")
    ) from None


def _open(
    path: Path, max_pixels: int, mode: str, side: int, form: str | None = None
) -> tuple[Any, Any]:
    """Returns the picture in a file, upright, and in which form the file has it.

    Args:
        path: The file.
        max_pixels: The pixels of the largest picture to read.
        mode: What it will be converted to.
        side: The side of the square that it must cover.
        form: What to read in place of the form that the file has.
    """
    from PIL import Image, ImageOps

    # Ours stands in its place, and Pillow's warnings are for who writes programs.
    Image.MAX_IMAGE_PIXELS = None
    if PILLOWS not in warnings.filters:
        warnings.filterwarnings("ignore", module=PILLOWS[3].pattern)
    with Image.open(path) as picture:
        pixels = picture.width * picture.height
        if pixels > max_pixels:
            raise ValueError(
                f"it has {pixels} pixels, more than --max-image-pixels (={max_pixels})"
            )
        # A JPEG is decoded at a fraction of its size, which is yet large enough.
        picture.draft(mode, (side, side))
        found = picture.tile[0][3] if picture.tile else None
        if form is not None:
            picture.tile = [picture.tile[0]._replace(args=form)]
        picture.load()
        try:
            return ImageOps.exif_transpose(picture), found
        except Exception:  # Damaged is only what the camera wrote beside its picture.
            return picture.copy(), found


def _joined(upper: Any, lower: Any) -> np.ndarray:
    """Returns values of 16 bits, (H, W, 3), whose halves two pictures are."""
    return np.asarray(upper, np.uint16) << 8 | np.asarray(lower, np.uint16)


def _without_key(values: np.ndarray, picture: Any) -> Any:
    """Returns values as a picture of 8 bits, black where they are the transparent one.

    Args:
        values: Of `picture`, (H, W) or (H, W, 3), deeper than 8 bits.
        picture: The picture, which knows the transparent value, if there is one.
    """
    from PIL import Image

    shades = _shades(values)
    key = picture.info.get("transparency")
    if key is not None:
        is_key = (values == key).reshape(*values.shape[:2], -1).all(-1)
        shades[is_key] = 0
    return Image.fromarray(shades)


def _shades(values: np.ndarray) -> np.ndarray:
    """Returns values deeper than 8 bits as uint8.

    Raises:
        ValueError: If it cannot be told which value is white.
    """
    lowest, highest = values.min(), values.max()
    told = f"its values reach from {lowest:g} to {highest:g}, and "
    if values.dtype.kind == "f":
        is_share = 0 <= lowest and highest <= 1
        if not is_share and not (0 <= lowest and 2 <= highest <= 255):
            raise ValueError(f"{told}fractions must reach from 0 to 1 or to 255")
        return np.rint(values * (255.0 if is_share else 1.0)).astype(np.uint8)
    if lowest < 0 or highest >= 2**16:
        raise ValueError(f"{told}whole numbers must reach from 0 to 65535")
    return (values >> 8).astype(np.uint8)


def _upon_black(picture: Any) -> Any:
    from PIL import Image

    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    black = Image.new("RGBA", picture.size, "black")
    return Image.alpha_composite(black, picture)
