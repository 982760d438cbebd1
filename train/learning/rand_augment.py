"""RandAugment: operations drawn at random for each image, all of one magnitude.

Each operation is one of three: an affine map of the pixels, a table of levels, or a
blend with another image that is made of this one. So for each of its operations an
image is mapped, looked up and blended once, by what changes nothing where the operation
is of another kind: the images of a batch go one way, whatever was drawn for them.

Sources: Cubuk, Zoph, Shlens & Le, "RandAugment: Practical Automated Data Augmentation
with a Reduced Search Space", 2020; the ranges are those of Cubuk et al., "AutoAugment:
Learning Augmentation Strategies from Data", CVPR 2019. All of them grow with the
magnitude, from what changes nothing, as in torchvision.
"""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from train.flags.augmentation import LARGEST_MAGNITUDE
from train.learning.colors import blend, gray

OPERATIONS = (
    *("identity", "auto_contrast", "equalize", "rotate", "solarize", "color"),
    *("posterize", "contrast", "brightness", "sharpness"),
    *("shear_x", "shear_y", "translate_x", "translate_y"),
)
# At the largest magnitude.
DEGREES = 30
SHEAR = 0.3
TRANSLATION = 150 / 331  # a share of the side
LOST_BITS = 4
BLENDED = 0.9  # on either side of 1
LEVELS = 256


def rand_augment(
    chances: jax.Array, image: jax.Array, magnitude: float, mean: tuple[float, ...]
) -> jax.Array:
    """Varies an image by one operation after the other.

    Args:
        chances: For each operation which one it is and in which direction it goes,
            (n, 2), uniform from 0 to 1.
        image: (H, W, C), float32 with 1 for white; it is rounded to 256 levels.
        magnitude: How far all operations go, from 0 to `LARGEST_MAGNITUDE`.
        mean: What comes in from outside of the image, (C,), white being 1.

    Returns:
        The image, (H, W, C).
    """
    fill = jnp.rint(jnp.asarray(mean) * (LEVELS - 1))

    def one(levels: jax.Array, chance: jax.Array) -> tuple[jax.Array, None]:
        operation = jnp.floor(chance[0] * len(OPERATIONS)).astype(int)
        share = jnp.where(chance[1] < 0.5, -1, 1) * (magnitude / LARGEST_MAGNITUDE)
        changed = operate(levels, operation, share, fill)
        return changed.astype(levels.dtype), None  # which may be wider, with x64

    levels = jnp.rint(image * (LEVELS - 1))
    return jax.lax.scan(one, levels, chances)[0] / (LEVELS - 1)


def operate(
    levels: jax.Array, operation: jax.Array, share: jax.Array, fill: jax.Array
) -> jax.Array:
    """Returns what an operation makes of an image.

    Args:
        levels: The image, (H, W, C), float32, whole numbers from 0 to 255.
        operation: Its place in `OPERATIONS`, ().
        share: How far it goes, as a share of the largest magnitude, (); its sign says
            in which of two directions, where there are two.
        fill: What comes in from outside of the image, (C,).

    Returns:
        The image in the same form.
    """
    levels = _warped(levels, _matrix(levels.shape, operation, share), fill)
    levels = _looked_up(levels, _table(levels, operation, jnp.abs(share)))
    other = _other(levels, operation)
    levels = blend(levels, other, 1 + BLENDED * share)
    return jnp.clip(jnp.rint(levels), 0, LEVELS - 1)


def _pick(
    operation: jax.Array, choices: dict[str, jax.Array], other: jax.Array
) -> jax.Array:
    """Returns the choice of an operation, or `other` if it has none."""
    for name, choice in choices.items():
        other = jnp.where(operation == OPERATIONS.index(name), choice, other)
    return other


def _matrix(
    shape: tuple[int, ...], operation: jax.Array, share: jax.Array
) -> jax.Array:
    """Returns where each pixel comes from: of (x, y, 1), the corner being 0, (2, 3)."""
    height, width, _ = shape
    angle = jnp.radians(DEGREES * share)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2  # the point that stays
    rotation = [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]]
    choices = {
        "rotate": rotation,
        "shear_x": [[1, SHEAR * share, 0], [0, 1, 0]],
        "shear_y": [[1, 0, 0], [SHEAR * share, 1, 0]],
        "translate_x": [[1, 0, TRANSLATION * share * width], [0, 1, 0]],
        "translate_y": [[1, 0, 0], [0, 1, TRANSLATION * share * height]],
    }
    arrays = {name: jnp.array(rows) for name, rows in choices.items()}
    return _pick(operation, arrays, jnp.eye(2, 3))


def _warped(levels: jax.Array, matrix: jax.Array, fill: jax.Array) -> jax.Array:
    """Returns the pixels from where a matrix says, between four of them a mean."""
    height, width, _ = levels.shape
    y, x = jnp.mgrid[:height, :width] + 0.5  # in the middle of a pixel
    x, y = jnp.tensordot(matrix, jnp.stack([x, y, jnp.ones_like(x)]), 1)
    is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)

    def of_channel(channel: jax.Array) -> jax.Array:
        return map_coordinates(channel, [y - 0.5, x - 0.5], order=1, mode="nearest")

    found = jax.vmap(of_channel, -1, -1)(levels)
    return jnp.rint(jnp.where(is_inside[..., None], found, fill))


def _table(levels: jax.Array, operation: jax.Array, share: jax.Array) -> jax.Array:
    """Returns what becomes of every level in each channel, (256, C)."""
    same = jnp.broadcast_to(jnp.arange(LEVELS)[:, None], (LEVELS, levels.shape[-1]))
    lost = jnp.exp2(jnp.rint(LOST_BITS * share)).astype(int)
    threshold = jnp.rint(LEVELS * (1 - share))
    choices = {
        "auto_contrast": _stretched(levels, same),
        "equalize": _equalized(levels, same),
        "solarize": jnp.where(same < threshold, same, LEVELS - 1 - same),
        "posterize": same // lost * lost,
    }
    return _pick(operation, choices, same)


def _looked_up(levels: jax.Array, table: jax.Array) -> jax.Array:
    rows = levels.reshape(-1, levels.shape[-1]).astype(int)
    found = jnp.take_along_axis(table, rows, 0).reshape(levels.shape)
    return found.astype(levels.dtype)


def _stretched(levels: jax.Array, same: jax.Array) -> jax.Array:
    """Returns a table that makes the darkest level black, and the brightest white."""
    low, high = levels.min((0, 1)), levels.max((0, 1))
    scale = (LEVELS - 1) / jnp.maximum(high - low, 1)
    stretched = jnp.clip((same - low) * scale, 0, LEVELS - 1)
    return jnp.where(high > low, stretched.astype(int), same)


def _equalized(levels: jax.Array, same: jax.Array) -> jax.Array:
    """Returns a table after which about as many pixels have each level."""
    rows = levels.reshape(-1, levels.shape[-1]).astype(int)
    channels = jnp.arange(rows.shape[-1])
    counts = jnp.zeros_like(same).at[rows, channels].add(1)
    brightest = counts[rows.max(0), channels]
    step = (len(rows) - brightest) // (LEVELS - 1)
    below = jnp.cumsum(counts, 0) - counts
    table = (step // 2 + below) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.minimum(table, LEVELS - 1), same)


def _other(levels: jax.Array, operation: jax.Array) -> jax.Array:
    """Returns the image that this one is blended with, (H, W, C); else it itself."""
    grays = jnp.rint(gray(levels))
    choices = {
        "brightness": jnp.zeros(()),
        "contrast": jnp.rint(grays.mean()),
        "color": grays,
        "sharpness": _smooth(levels),
    }
    return _pick(operation, choices, levels)


def _smooth(levels: jax.Array) -> jax.Array:
    """Returns the mean of each pixel, five times, and the eight around it.

    Those at the edge are as they were.
    """
    height, width, _ = levels.shape
    window = (3, 3, 1), (1, 1, 1), "SAME"
    around = jax.lax.reduce_window(levels, 0.0, jax.lax.add, *window)
    y, x = jnp.mgrid[:height, :width][..., None]
    is_edge = (y == 0) | (y == height - 1) | (x == 0) | (x == width - 1)
    return jnp.where(is_edge, levels, jnp.rint((around + 4 * levels) / 13))
