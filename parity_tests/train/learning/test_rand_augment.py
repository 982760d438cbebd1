"""RandAugment: each operation is Pillow's, and chance says which one is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from parity_tests.tolerances import ONE_LEVEL, TOLERANCES
from train.learning.rand_augment import OPERATIONS, operate, rand_augment

DEFAULT_NUMERICS = True

HEIGHT, WIDTH = 18, 25
FILL = np.array([120, 90, 60])

ROUNDING = 255 * TOLERANCES["float32"].relative

operate = jax.jit(operate)
draw = jax.jit(rand_augment, static_argnums=(2, 3))


@pytest.fixture(scope="module", params=[3, 1], ids=["colours", "grey"])
def levels(request) -> np.ndarray:
    """An image of noise, of which no channel has all levels nor as many of each."""
    noise = np.random.default_rng(0).beta(2, 3, (HEIGHT, WIDTH, request.param))
    return np.rint(20 + 190 * noise).astype(np.uint8)


def affine(picture: Image.Image, *matrix: float) -> Image.Image:
    fill = tuple(map(int, FILL)) if picture.mode == "RGB" else int(FILL[0])
    method = Image.Resampling.BILINEAR
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, method, fillcolor=fill
    )


def rotate(picture: Image.Image, share: float) -> Image.Image:
    fill = tuple(map(int, FILL)) if picture.mode == "RGB" else int(FILL[0])
    return picture.rotate(30 * share, Image.Resampling.BILINEAR, fillcolor=fill)


ENHANCE = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}


def by_pillow(name: str, picture: Image.Image, share: float) -> Image.Image:
    size = abs(share)
    match name:
        case "identity":
            return picture
        case "auto_contrast":
            return ImageOps.autocontrast(picture)
        case "equalize":
            return ImageOps.equalize(picture)
        case "rotate":
            return rotate(picture, share)
        case "solarize":
            return ImageOps.solarize(picture, round(256 * (1 - size)))
        case "posterize":
            return ImageOps.posterize(picture, 8 - round(4 * size))
        case "shear_x":
            return affine(picture, 1, 0.3 * share, 0, 0, 1, 0)
        case "shear_y":
            return affine(picture, 1, 0, 0, 0.3 * share, 1, 0)
        case "translate_x":
            return affine(picture, 1, 0, WIDTH * 150 / 331 * share, 0, 1, 0)
        case "translate_y":
            return affine(picture, 1, 0, 0, 0, 1, HEIGHT * 150 / 331 * share)
    return ENHANCE[name](picture).enhance(1 + 0.9 * share)


def varied(levels, name: str, share: float) -> np.ndarray:
    operation, fill = OPERATIONS.index(name), FILL[: levels.shape[-1]]
    image, size, colour = (jnp.asarray(x, jnp.float32) for x in (levels, share, fill))
    return np.asarray(operate(image, jnp.asarray(operation), size, colour))


@pytest.mark.parametrize("share", [1.0, -0.9, 0.3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_that_of_pillow(name, share, levels):
    picture = Image.fromarray(levels.squeeze(-1) if levels.shape[-1] == 1 else levels)
    expected = np.asarray(by_pillow(name, picture, share)).reshape(levels.shape)
    found = varied(levels, name, share)
    np.testing.assert_allclose(found, expected, atol=ONE_LEVEL)
    np.testing.assert_array_equal(found, np.rint(found))


def test_image_of_one_level_has_nothing_to_stretch_or_to_equalize():
    flat = np.full((HEIGHT, WIDTH, 3), FILL, np.uint8)
    for name in ("auto_contrast", "equalize"):
        np.testing.assert_array_equal(varied(flat, name, 1.0), flat)


def test_image_without_an_inside_has_nothing_to_smooth():
    thin = np.array([[[9], [200], [30]], [[77], [0], [255]]], np.uint8)
    np.testing.assert_array_equal(varied(thin, "sharpness", 1.0), thin)


@pytest.mark.parametrize("chance", [0.2, 0.7])
def test_chance_draws_one_operation_after_the_other_and_their_direction(chance, levels):
    share = -0.5 if chance < 0.5 else 0.5
    names = ("rotate", "solarize", "brightness")
    expected = levels
    for name in names:
        expected = varied(expected, name, share)
    drawn = [(OPERATIONS.index(name) + 0.5) / len(OPERATIONS) for name in names]
    chances = jnp.array([[each, chance] for each in drawn])
    mean = tuple(FILL[: levels.shape[-1]] / 255)
    found = draw(chances, jnp.asarray(levels) / 255, 5.0, mean)
    np.testing.assert_allclose(255 * found, expected, atol=ROUNDING)


def test_image_stays_of_its_dtype_where_others_are_wider(levels):
    image = (levels / 255).astype(np.float32)
    chances = np.full((2, 2), 0.25, np.float32)
    mean = (0.5,) * levels.shape[-1]
    with jax.enable_x64(True):
        found = draw(chances, image, 9.0, mean)
    assert found.dtype == jnp.float32


def test_every_operation_is_drawn_alike():
    count = len(OPERATIONS)
    numbers = (np.arange(4 * count) + 0.5) / (4 * count)
    chances = np.stack([numbers, np.ones_like(numbers)], -1)[:, None]
    image = np.random.default_rng(0).random((HEIGHT, WIDTH, 3))
    every = jax.vmap(rand_augment, (0, None, None, None))
    found = every(jnp.asarray(chances), jnp.asarray(image), 9.0, (0.1, 0.2, 0.3))
    kinds = np.unique(np.asarray(found), axis=0, return_counts=True)[1]
    assert sorted(kinds) == [4] * count
