"""Picture files: JPEG and PNG, as arrays of one shape."""

from pathlib import Path

import numpy as np

from train.errors import TrainError

SUFFIXES = (".jpg", ".jpeg", ".png")


class UnreadableImage(TrainError):
    """A file that is no picture, or one that is cut or damaged."""


def read_picture(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Returns the picture in a file, scaled to cover `shape` and cut to its middle.

    Args:
        path: A file that Pillow reads.
        shape: (H, W, C) to return; with C = 1 the picture becomes grey, with 3 RGB, in
            both cases upon black where it is transparent.

    Returns:
        (H, W, C) uint8.

    Raises:
        UnreadableImage: If there is no such file, or it cannot be read as a picture.
    """
    from PIL import Image, ImageOps

    height, width, channels = shape
    mode = "L" if channels == 1 else "RGB"
    try:
        with Image.open(path) as picture:
            # A JPEG is decoded at a fraction of its size, which is yet large enough.
            picture.draft(mode, (width, height))
            picture = ImageOps.exif_transpose(picture)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                black = Image.new("RGBA", picture.size, "black")
                picture = Image.alpha_composite(black, picture)
            if picture.mode.startswith("I"):  # 16 bits, which Pillow would cut off
                values = np.asarray(picture, np.int64).clip(0, 2**16 - 1) >> 8
                picture = Image.fromarray(values.astype(np.uint8))
            picture = ImageOps.fit(picture.convert(mode), (width, height))
            return np.asarray(picture).reshape(shape)
    except Exception as error:  # Decoders raise all kinds of them on broken files.
        reason = error.strerror if isinstance(error, OSError) else None
        words = " ".join(str(reason or error).split()) or type(error).__name__
        raise UnreadableImage(f"{path} cannot be read as an image: {words}") from None
