"""How training images are varied, inside the jitted step; and how all are normalised.

The images of a batch are varied one by one, each by what follows from the key and its
position in the whole batch: so the result does not depend on how the batch lies on the
devices. Only mixup and cutmix combine images, each with the one before it.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from train.data.dataset import Dataset
from train.flags.augmentation import USUAL_OPS, USUAL_RATIO
from train.flags.config import Config
from train.learning.colors import blend, gray
from train.learning.rand_augment import rand_augment

# Of random erasing, as in its paper: shares of the image's area, and aspect ratios.
ERASED_AREA = (0.02, 0.4)
ERASED_ASPECT = (0.3, 1 / 0.3)
# What random numbers of their own are drawn by.
RESIZED_CROP = 1
RAND_AUGMENT = 2


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to training images; hashable, so that a step can close over it.

    Attributes:
        crop_padding: By how many black pixels images are padded before a crop of the
            former size is cut at random.
        flip: The share of images flipped from left to right.
        color_jitter: By how much, as a share, brightness, contrast and saturation vary.
        erasing: The share of images in which a random rectangle is erased.
        mixup: The alpha of mixup's Beta distribution; 0 is none.
        cutmix: The alpha of cutmix's Beta distribution; 0 is none.
        crop_scale: From which to which share of the area a rectangle is cut out, which
            is scaled to the size of the image; None is no such crop.
        crop_ratio: From which to which ratio of its width to its height.
        randaugment: The magnitude of RandAugment's operations; None is no such.
        randaugment_ops: How many operations an image has.
        mean: The mean of each channel, white being 1.
        std: The standard deviation of each channel.
    """

    crop_padding: int = 0
    flip: float = 0.0
    color_jitter: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = USUAL_RATIO
    randaugment: float | None = None
    randaugment_ops: int = USUAL_OPS
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, config: Config, dataset: Dataset) -> "Augmentation":
        """Returns what the flags ask for; what they leave open, the data set says.

        Example:
            >>> from train.data import presets
            >>> config = Config(flip=0.5)
            >>> augmentation = Augmentation.of(config, presets.load(config))
            >>> augmentation.flip, augmentation.crop_padding
            (0.5, 0)
        """
        chosen: dict[str, Any] = {}
        for field in dataclasses.fields(cls)[:-2]:
            name, flag = field.name, getattr(config, field.name)
            usual = dataset.augmentation.get(name, field.default)
            chosen[name] = usual if flag is None else flag
        if config.crop_scale is not None:
            chosen["crop_padding"] = 0
        return cls(**chosen, mean=dataset.mean, std=dataset.std)


def normalize(
    images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
    """Returns images whose channels have about mean 0 and standard deviation 1.

    Args:
        images: (..., C), uint8, or floats with 1 for white.
        mean: That of each channel, white being 1.
        std: The standard deviation of each channel.

    Returns:
        (..., C) float32.

    Example:
        >>> normalize(jnp.full((1, 1, 1), 255, jnp.uint8), (0.5,), (0.25,)).item()
        2.0
    """
    return (_unit(images) - jnp.asarray(mean)) / jnp.asarray(std)


def augment(
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    augmentation: Augmentation,
    positions: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Varies and normalises the images of a training step.

    Crops, flip, RandAugment, colour, normalisation, erasing, and one of mixup and
    cutmix, in this order.

    Args:
        key: The random key of the step.
        images: (b, H, W, C), uint8, or floats with 1 for white.
        labels: The targets of each image, (b, classes).
        augmentation: What to do.
        positions: Where in the whole batch the images are, (b,) int; without it, they
            are the whole. Parts of a batch get what the whole would have got, but for
            mixup and cutmix, whose pairs are of one part.

    Returns:
        The images in float32, and the targets, mixed as the images are.

    Example:
        >>> images, labels = jnp.zeros((2, 4, 4, 1), jnp.uint8), jnp.eye(2)
        >>> images, _ = augment(jax.random.key(0), images, labels, Augmentation(flip=1))
        >>> images.shape, images.dtype.name
        ((2, 4, 4, 1), 'float32')
    """
    if positions is None:
        positions = jnp.arange(len(images))
    each_key, mix_key = jax.random.split(key)
    # What chance decides about an image, at once: random numbers take long to compile.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(each_key, positions)
    chances = jax.vmap(jax.random.uniform, (0, None))(keys, (11,))
    crop, color, erasing = chances[:, :3], chances[:, 3:6], chances[:, 6:]
    padding, flip = augmentation.crop_padding, augmentation.flip
    if augmentation.crop_scale is not None:
        where = _chances(keys, RESIZED_CROP, (4,))
        limits = augmentation.crop_scale, augmentation.crop_ratio
        resized = jax.vmap(_resized_crop, (0, 0, None, None))
        images = resized(where, _unit(images), *limits)
    if padding or flip:
        cut = jax.vmap(_crop_and_flip, (0, 0, None, None))
        images = cut(crop, images, padding, flip)
    if augmentation.randaugment is not None:
        drawn = _chances(keys, RAND_AUGMENT, (augmentation.randaugment_ops, 2))
        varied = jax.vmap(rand_augment, (0, 0, None, None))
        own = augmentation.randaugment, augmentation.mean
        images = varied(drawn, _unit(images), *own)
    if augmentation.color_jitter:
        jitter = jax.vmap(_jitter_color, (0, 0, None))
        images = jitter(color, _unit(images), augmentation.color_jitter)
    images = normalize(images, augmentation.mean, augmentation.std)
    if augmentation.erasing:
        images = jax.vmap(_erase, (0, 0, None))(erasing, images, augmentation.erasing)
    if augmentation.mixup or augmentation.cutmix:
        alphas = augmentation.mixup, augmentation.cutmix
        images, labels = _mix(mix_key, images, labels, *alphas)
    return images, labels


def _chances(keys: jax.Array, purpose: int, shape: tuple[int, ...]) -> jax.Array:
    """Returns random numbers from 0 to 1 for each image, (b, *shape).

    They are of keys of their own: what has no use for them is as it was without.
    """
    own = jax.vmap(jax.random.fold_in, (0, None))(keys, purpose)
    return jax.vmap(jax.random.uniform, (0, None))(own, shape)


def _unit(images: jax.Array) -> jax.Array:
    """Returns images in float32 with 1 for white."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    return images.astype(jnp.float32)


def _between(chance: jax.Array, low: float, high: float) -> jax.Array:
    return low + chance * (high - low)


def _crop_and_flip(
    chances: jax.Array, image: jax.Array, padding: int, share: float
) -> jax.Array:
    """Cuts an image (H, W, C) out of its padded self, and flips some.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """
    height, width, _ = image.shape
    top, left = jnp.floor(chances[:2] * (2 * padding + 1)).astype(int)
    rows, columns = jnp.arange(height), jnp.arange(width)
    columns = jnp.where(chances[2] < share, columns[::-1], columns)
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return padded[rows[:, None] + top, columns + left]


def _resized_crop(
    chances: jax.Array,
    image: jax.Array,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> jax.Array:
    """Cuts a rectangle out of an image (H, W, C), and scales it to the size of that.

    Source: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015; but a side that
    is too long is cut to the image, where torchvision draws another rectangle, and its
    edges need not lie between pixels.
    """
    height, width, _ = image.shape
    area = _between(chances[0], *scale) * height * width
    aspect = jnp.exp(_between(chances[1], *map(math.log, ratio)))
    limits = jnp.array([height, width], jnp.float32)
    sides = jnp.sqrt(jnp.stack([area / aspect, area * aspect]))
    sides = jnp.minimum(sides, limits)
    corner = chances[2:] * (limits - sides)
    factors = limits / sides
    return jax.image.scale_and_translate(
        *(image, image.shape, (0, 1), factors, -corner * factors), method="linear"
    )


def _jitter_color(chances: jax.Array, image: jax.Array, strength: float) -> jax.Array:
    """Varies brightness, contrast and saturation of an image (H, W, C), in this order.

    Source: Howard, "Some Improvements on Deep Convolutional Neural Network Based Image
    Classification", 2013.
    """
    factors = _between(chances, 1 - strength, 1 + strength)
    image = jnp.clip(image * factors[0], 0, 1)
    image = jnp.clip(blend(image, gray(image).mean(), factors[1]), 0, 1)
    return jnp.clip(blend(image, gray(image), factors[2]), 0, 1)


def _erase(chances: jax.Array, image: jax.Array, share: float) -> jax.Array:
    """Sets a rectangle of an image (H, W, C) to the mean, 0, in a share of the images.

    Source: Zhong et al., "Random Erasing Data Augmentation", AAAI 2020; but a rectangle
    that is too long is cut to the image, where they draw another one.
    """
    limits = jnp.array(image.shape[:2])
    area = _between(chances[1], *ERASED_AREA) * limits.prod()
    aspect = jnp.exp(_between(chances[2], *map(math.log, ERASED_ASPECT)))
    sides = jnp.sqrt(jnp.stack([area * aspect, area / aspect]))
    sides = jnp.clip(jnp.rint(sides), 1, limits)
    corner = jnp.floor(chances[3:] * (limits - sides + 1))
    is_erased = _rectangle(image.shape, corner, corner + sides)
    return jnp.where(is_erased & (chances[0] < share), 0, image)


def _rectangle(shape: tuple[int, ...], start: jax.Array, stop: jax.Array) -> jax.Array:
    """Returns which pixels of an image lie from `start` up to `stop`, (H, W, 1)."""
    height, width, _ = shape
    rows = jnp.arange(height)[:, None, None]
    columns = jnp.arange(width)[None, :, None]
    is_row = (rows >= start[0]) & (rows < stop[0])
    return is_row & (columns >= start[1]) & (columns < stop[1])


def _mix(
    key: jax.Array, images: jax.Array, labels: jax.Array, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image with the one before it, by mixup or cutmix, by chance if both.

    Mixup blends the two images, cutmix pastes a rectangle of the other one; the targets
    are blended by the share of the pixels.

    Sources: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; Yun
    et al., "CutMix: Regularization Strategy to Train Strong Classifiers with
    Localizable Features", ICCV 2019.
    """
    share_key, chance_key = jax.random.split(key)
    chances = jax.random.uniform(chance_key, (3,))
    cuts = chances[0] < (0.5 if mixup and cutmix else bool(cutmix))
    alpha = jnp.where(cuts, cutmix, mixup)
    share = jax.random.beta(share_key, alpha, alpha)
    limits = jnp.array(images.shape[1:3])
    center, sides = chances[1:] * limits, limits * jnp.sqrt(1 - share)
    start = jnp.clip(jnp.rint(center - sides / 2), 0, limits)
    stop = jnp.clip(jnp.rint(center + sides / 2), 0, limits)
    is_pasted = _rectangle(images.shape[1:], start, stop)
    shares = jnp.where(cuts, ~is_pasted, share)
    images = blend(images, jnp.roll(images, 1, 0), shares)
    return images, blend(labels, jnp.roll(labels, 1, 0), shares.mean())
