"""Augmentation: it does what it says, and follows from the place in the batch."""

import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity_tests.tolerances import TOLERANCES
from parity_tests.tools.checkout import ROOT
from parity_tests.tools.on_devices import with_devices
from train.data import presets
from train.data.dataset import ArraySource, Dataset
from train.errors import TrainError
from train.flags.config import Config
from train.learning.augment import ERASED_AREA, Augmentation, augment, normalize

DEFAULT_NUMERICS = True

COUNT, HEIGHT, WIDTH = 16, 6, 7
LABELS = np.eye(COUNT, dtype=np.float32)  # each image is its own class


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Images of which no two pixels of one channel are alike, and none is black."""
    values = np.random.default_rng(0).permutation(COUNT * HEIGHT * WIDTH * 3) + 1
    unit = values.reshape(COUNT, HEIGHT, WIDTH, 3) / values.max()
    return unit.astype(np.float32)


@functools.cache
def compiled(augmentation: Augmentation):
    return jax.jit(functools.partial(augment, augmentation=augmentation))


def vary(augmentation: Augmentation, images, seed=0, labels=LABELS):
    answer = compiled(augmentation)(jax.random.key(seed), images, labels)
    return [np.asarray(each) for each in answer]


def are_close(one, other) -> bool:
    tolerance = TOLERANCES["float32"].relative
    return np.allclose(one, other, rtol=tolerance, atol=tolerance)


def assert_close(one, other) -> None:
    tolerance = TOLERANCES["float32"].relative
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def each_equal(one, other) -> list[bool]:
    return [np.array_equal(*pair) for pair in zip(one, other, strict=True)]


# Normalisation


def test_normalisation_takes_mean_and_deviation_of_each_channel():
    images = jnp.array([0, 51, 255], jnp.uint8).reshape(1, 1, 1, 3)
    normal = normalize(images, (0.5, 0.1, 0.0), (0.25, 0.5, 2.0))
    assert normal.dtype == jnp.float32
    assert_close(normal.ravel(), [-2, 0.2, 0.5])


def test_bytes_and_shares_of_white_are_normalised_alike(images):
    levels = jnp.rint(images * 255).astype(jnp.uint8)
    of_bytes = normalize(levels, (0.4,), (0.3,))
    of_shares = normalize(levels.astype(jnp.float32) / 255, (0.4,), (0.3,))
    assert_close(of_bytes, of_shares)


def test_without_augmentation_images_are_only_normalised(images):
    plain = Augmentation(mean=(0.5,), std=(0.25,))
    varied, labels = vary(plain, images)
    assert_close(varied, (images - 0.5) / 0.25)
    np.testing.assert_array_equal(labels, LABELS)


# One by one


def test_crop_is_a_window_of_the_padded_image(images):
    varied, _ = vary(Augmentation(crop_padding=1), images)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = set()
    for image, around in zip(varied, padded, strict=True):
        windows = {
            around[top : top + HEIGHT, left : left + WIDTH].tobytes(): (top, left)
            for top in range(3)
            for left in range(3)
        }
        found.add(windows[image.tobytes()])
    assert len(found) > 4  # of nine places, and sixteen images


def test_resized_crop_of_the_whole_changes_nothing(images):
    ratio = WIDTH / HEIGHT, WIDTH / HEIGHT
    varied, _ = vary(Augmentation(crop_scale=(1, 1), crop_ratio=ratio), images)
    assert_close(varied, images)


def test_resized_crop_is_a_rectangle_of_the_scale_and_ratio():
    # Of pixels that tell where they are, in the middle of which nothing is cut off.
    rows, columns = np.mgrid[:12, :16] + 0.5
    places = np.stack([rows, columns], -1).astype(np.float32) / 16
    scale, ratio = (0.2, 0.5), (0.5, 1.5)
    augmentation = Augmentation(crop_scale=scale, crop_ratio=ratio)
    varied, _ = vary(augmentation, np.repeat(places[None], COUNT, 0))
    found = 16 * varied[:, 4:8, 6:10]
    heights = 12 * (found[:, 1, 0, 0] - found[:, 0, 0, 0])
    widths = 16 * (found[:, 0, 1, 1] - found[:, 0, 0, 1])
    top = found[:, 0, 0, 0] - heights * 4.5 / 12
    left = found[:, 0, 0, 1] - widths * 6.5 / 16
    slack = 16 * TOLERANCES["float32"].relative  # values of 1/16 are told as pixels
    for low, values, high in (
        (scale[0], heights * widths / (12 * 16), scale[1]),
        (ratio[0], widths / heights, ratio[1]),
        (0, top, 12 - heights),
        (0, left, 16 - widths),
    ):
        assert np.all(low - slack <= values) and np.all(values <= high + slack)
        assert len({*values.round(3)}) > COUNT // 2
    assert_close(found[:, 3, 0, 0] - found[:, 0, 0, 0], 3 * heights / 12)


def test_resized_crop_that_is_too_wide_is_as_wide_as_the_image():
    columns = np.arange(16, dtype=np.float32) / 16
    images = np.broadcast_to(columns[:, None], (COUNT, 12, 16, 1))
    augmentation = Augmentation(crop_scale=(0.5, 0.5), crop_ratio=(100, 100))
    varied, _ = vary(augmentation, images)
    assert_close(varied, images)


def test_flip_of_all_reverses_the_columns(images):
    varied, _ = vary(Augmentation(flip=1.0), images)
    np.testing.assert_array_equal(varied, images[:, :, ::-1])


def test_flip_of_some_leaves_the_others(images):
    varied, _ = vary(Augmentation(flip=0.5), images)
    is_flipped = each_equal(varied, images[:, :, ::-1])
    is_same = each_equal(varied, images)
    assert np.array_equal(np.logical_not(is_flipped), is_same)
    assert 0 < sum(is_flipped) < COUNT


def test_jitter_of_an_even_grey_varies_its_brightness_within_the_limits(images):
    even = np.full_like(images, 0.5)
    varied, _ = vary(Augmentation(color_jitter=0.4), even)
    levels = varied[:, 0, 0, 0]
    spread = varied - levels[:, None, None, None]
    assert_close(spread, np.zeros_like(varied))
    assert levels.min() >= 0.5 * 0.6 and levels.max() <= 0.5 * 1.4
    assert len({*levels}) == COUNT


def test_jitter_stays_between_black_and_white_and_changes_colours(images):
    varied, _ = vary(Augmentation(color_jitter=0.4), images)
    assert varied.min() >= 0 and varied.max() <= 1
    assert not any(each_equal(varied, images))


def test_jitter_of_grey_images_of_one_channel_has_no_colours_to_vary(images):
    varied, _ = vary(Augmentation(color_jitter=0.4), images[..., :1])
    assert varied.shape == (COUNT, HEIGHT, WIDTH, 1)


def test_erasing_blanks_one_rectangle_of_each_image(images):
    varied, _ = vary(Augmentation(erasing=1.0), images)
    for image, original in zip(varied, images, strict=True):
        is_blank = np.all(image == 0, axis=-1)
        rows, columns = (np.flatnonzero(is_blank.any(axis)) for axis in (1, 0))
        box = np.zeros_like(is_blank)
        box[np.ix_(rows, columns)] = True
        np.testing.assert_array_equal(is_blank, box)
        assert len(rows) == np.ptp(rows) + 1 and len(columns) == np.ptp(columns) + 1
        np.testing.assert_array_equal(image[~box], original[~box])
        # Sides are whole pixels: each is off by half of one at most.
        slack = (HEIGHT + WIDTH) / 2 + 1 / 4
        assert is_blank.sum() <= ERASED_AREA[1] * HEIGHT * WIDTH + slack


def test_erasing_of_some_leaves_the_others(images):
    varied, _ = vary(Augmentation(erasing=0.5), images)
    is_same = each_equal(varied, images)
    assert 0 < sum(is_same) < COUNT


def test_operations_of_randaugment_leave_all_else_as_it_is_without(images):
    # Of no magnitude, an image that has all levels is changed by equalizing alone.
    even = np.broadcast_to(np.linspace(0, 1, COUNT)[:, None, None, None], images.shape)
    plain = Augmentation(erasing=0.5, mean=(0.5,), std=(0.25,))
    drawn = dataclasses.replace(plain, randaugment=0.0)
    whole = np.rint(255 * even).astype(np.uint8)
    assert_close(vary(drawn, whole)[0], vary(plain, whole)[0])
    strong = dataclasses.replace(plain, randaugment=10.0)
    is_same = each_equal(vary(strong, whole)[0], vary(plain, whole)[0])
    assert not all(is_same)


# Two by two


def test_mixup_blends_image_and_label_with_the_one_before(images):
    varied, labels = vary(Augmentation(mixup=1.0), images)
    share = labels[0, 0]
    assert 0 < share < 1
    for mixed, whole in ((varied, images), (labels, LABELS)):
        expected = share * whole + (1 - share) * np.roll(whole, 1, 0)
        assert_close(mixed, expected)


def is_pasted(varied: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns which pixels are those of the image before; the others are its own."""
    is_other = np.all(varied == np.roll(images, 1, 0), axis=-1)
    is_own = np.all(varied == images, axis=-1)
    np.testing.assert_array_equal(is_own, ~is_other)
    return is_other


def test_cutmix_pastes_a_rectangle_and_mixes_labels_by_its_area(images):
    areas = set()
    for seed in range(4):
        varied, labels = vary(Augmentation(cutmix=1.0), images, seed)
        inside = is_pasted(varied, images)
        assert np.all(inside == inside[0])
        rows, columns = (np.flatnonzero(inside[0].any(axis)) for axis in (1, 0))
        assert inside[0].sum() == len(rows) * len(columns)
        assert_close(labels[0, 0], 1 - inside[0].mean())
        assert_close(labels[1, 0], inside[0].mean())
        areas.add(inside[0].sum())
    assert len(areas) > 1


@pytest.mark.slow
def test_with_mixup_and_cutmix_each_batch_has_one_of_them(images):
    both = Augmentation(mixup=1.0, cutmix=1.0)
    has_own_pixels = set()
    for seed in range(8):
        varied, labels = vary(both, images, seed)
        assert_close(labels.sum(-1), np.ones(COUNT))
        share = labels[0, 0]
        blended = share * images + (1 - share) * np.roll(images, 1, 0)
        is_mixup = are_close(varied, blended)
        if not is_mixup:
            is_pasted(varied, images)
        has_own_pixels.add(not is_mixup)
    assert has_own_pixels == {True, False}


# Where an image lies

ALL_BUT_MIXES = Augmentation(
    crop_padding=1,
    flip=0.5,
    color_jitter=0.4,
    erasing=0.5,
    crop_scale=(0.3, 0.9),
    randaugment=9.0,
    mean=(0.5,),
    std=(0.25,),
)


def test_parts_of_a_batch_get_what_the_whole_gets(images):
    whole, _ = vary(ALL_BUT_MIXES, images)
    part = slice(1, None, 2)
    positions = np.arange(COUNT)[part]
    varied, _ = compiled(ALL_BUT_MIXES)(
        jax.random.key(0), images[part], LABELS[part], positions=positions
    )
    assert_close(varied, whole[part])


def test_another_step_varies_in_another_way(images):
    one, other = (vary(ALL_BUT_MIXES, images, seed)[0] for seed in (0, 1))
    assert not any(each_equal(one, other))


ON_DEVICES = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from train.learning.augment import Augmentation, augment

everything = Augmentation(1, 0.5, 0.4, 0.5, 1.0, 1.0, randaugment=9.0)
step = jax.jit(lambda *arrays: augment(*arrays, everything))
images = np.load(sys.argv[1])
labels = np.eye(len(images), dtype=np.float32)
answers = []
for count in (1, 8):
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",))
    by_image = NamedSharding(mesh, PartitionSpec("data"))
    arrays = jax.device_put((images, labels), by_image)
    answers.append(jax.device_get(step(jax.random.key(0), *arrays)))
np.savez(sys.argv[2], *answers[0], *answers[1])
"""


@pytest.mark.slow
def test_devices_do_not_change_what_is_done(images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    paths = [str(tmp_path / name) for name in ("images.npy", "answers.npz")]
    subprocess.run(
        [sys.executable, "-c", ON_DEVICES, *paths],
        cwd=ROOT,
        env=with_devices(8),
        check=True,
    )
    one_images, one_labels, images_of_8, labels_of_8 = np.load(paths[1]).values()
    assert not np.array_equal(one_images, images)
    assert_close(images_of_8, one_images)
    assert_close(labels_of_8, one_labels)


# The flags


def test_flags_left_out_are_those_of_the_data_set():
    blank = ArraySource(np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, int))
    dataset = Dataset(
        train=blank,
        test=blank,
        class_names=("one",),
        image_shape=(2, 2, 1),
        mean=(0.1,),
        std=(0.2,),
        augmentation={"crop_padding": 4, "flip": 0.5},
    )
    chosen = Augmentation.of(Config(flip=0.0, mixup=0.3), dataset)
    assert chosen == Augmentation(
        crop_padding=4, flip=0.0, mixup=0.3, mean=(0.1,), std=(0.2,)
    )


def test_resized_crop_is_in_the_place_of_the_padded_one_of_the_data_set():
    config = Config(crop_scale=(0.3, 0.9))
    padded = {"crop_padding": 4}
    dataset = dataclasses.replace(presets.load(config), augmentation=padded)
    chosen = Augmentation.of(config, dataset)
    assert (chosen.crop_padding, chosen.crop_scale) == (0, (0.3, 0.9))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"crop_scale": (0.0, 1.0)}, "--crop-scale .* above 0 and up to 1"),
        ({"crop_scale": (0.5, 1.1)}, "--crop-scale .* above 0 and up to 1"),
        ({"crop_scale": (0.9, 0.5)}, "--crop-scale .* the smaller one first"),
        (
            {"crop_scale": (0.5, 0.9), "crop_ratio": (2.0, 1.0)},
            "--crop-ratio .* the smaller one first",
        ),
        ({"crop_ratio": (1.0, 1.0)}, "--crop-ratio .* left out without --crop-scale"),
        (
            {"crop_scale": (0.5, 0.9), "crop_padding": 2},
            "--crop-padding .* left out with --crop-scale",
        ),
    ],
)
def test_rectangle_that_there_is_not_is_refused(flags, words):
    with pytest.raises(TrainError, match=words):
        Config(**flags)
