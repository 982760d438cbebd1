"""Picture files of every kind, held against what NumPy says is in them."""

import struct
import warnings
import zlib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image, features

from parity_tests.tolerances import HALF_LEVEL, ONE_LEVEL
from train.data.pictures import SUFFIXES, UnreadableImage, put_up_with, read_picture
from train.errors import TrainError, TrainingFailed
from train.flags.data import Interpolation

DEFAULT_NUMERICS = True

GREY, RGB, GREY_ALPHA = 0, 2, 4  # colour types of PNG
WIDTH, HEIGHT = 7, 5
RED, GREEN, BLUE = 19595 / 2**16, 38470 / 2**16, 7471 / 2**16  # of ITU-R 601


def write_png(
    path: Path, values: np.ndarray, bits: int, colour: int, key: tuple[int, ...] = ()
) -> Path:
    """Writes a PNG of any depth, (H, W, C), with or without a transparent value."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + checksum.to_bytes(4)

    height, width, _ = values.shape
    shifts = np.arange(bits - 1, -1, -1)
    planes = (values.reshape(height, -1, 1) >> shifts & 1).astype(np.uint8)
    rows = np.packbits(planes.reshape(height, -1), axis=1)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b"")
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )
    return path


def read(path: Path, channels: int = 3) -> np.ndarray:
    """Reads a picture of (HEIGHT, WIDTH) as it is."""
    return read_picture(path, (HEIGHT, WIDTH, channels))


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def refusal_of(path: Path, **options) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read_picture(path, (8, 8, 3), **options)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read as an image: ")
    assert "\n" not in message
    return message.partition("image: ")[2]


@pytest.fixture
def colours(rng) -> np.ndarray:
    return rng.integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)


# Form


def test_picture_is_scaled_to_cover_and_cut_to_its_middle(tmp_path):
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(
        read_picture(tmp_path / "wide.png", (4, 4, 3)), pixels[:, 4:8]
    )


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_picture_is_scaled_by_the_interpolation_that_is_asked_for(
    interpolation, colours, tmp_path
):
    path = save(tmp_path / "picture.png", colours)
    found = read_picture(path, (2 * HEIGHT, 2 * WIDTH, 3), interpolation=interpolation)
    alike = []
    for name in get_args(Interpolation):
        method = Image.Resampling[name.upper()]
        scaled = Image.fromarray(colours).resize((2 * WIDTH, 2 * HEIGHT), method)
        if np.array_equal(found, np.asarray(scaled)):
            alike.append(name)
    assert alike == [interpolation]


@pytest.mark.parametrize(
    ("size", "shape"), [((40, 56), (16, 12, 3)), ((56, 40), (10, 16, 3))]
)
def test_share_of_a_picture_is_the_middle_of_it_at_a_larger_size(
    size, shape, rng, tmp_path
):
    # Half as large, it covers the shape divided by 0.8.
    pixels = rng.integers(256, size=(*size, 3), dtype=np.uint8)
    path = save(tmp_path / "picture.png", pixels)
    halves = size[1] // 2, size[0] // 2
    whole = Image.fromarray(pixels).resize(halves, Image.Resampling.BICUBIC)
    height, width, _ = shape
    left, top = (halves[0] - width) // 2, (halves[1] - height) // 2
    middle = whole.crop((left, top, left + width, top + height))
    found = read_picture(path, shape, crop_pct=0.8)
    np.testing.assert_array_equal(found, np.asarray(middle))


def test_photograph_is_decoded_as_large_as_its_middle_needs_it(tmp_path, monkeypatch):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (60, 48), (9, 99, 200)).save(path)
    asked = []
    monkeypatch.setattr(
        "PIL.JpegImagePlugin.JpegImageFile.draft",
        lambda picture, mode, size: asked.append(size),
    )
    for crop_pct in (1.0, 0.75):
        read_picture(path, (9, 12, 3), crop_pct=crop_pct)
    assert asked == [(12, 12), (16, 16)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_picture_of_any_mode_gets_the_channels_asked_for(mode, tmp_path):
    path = tmp_path / "picture.png"
    Image.new(mode, (5, 5), 0).save(path)
    for channels in (1, 3):
        picture = read_picture(path, (4, 4, channels))
        assert picture.shape == (4, 4, channels)
        assert picture.dtype == np.uint8


def test_picture_of_16_bits_keeps_its_shades(tmp_path):
    shades = np.linspace(0, 2**16 - 1, 16, dtype=np.uint16).reshape(4, 4)
    Image.fromarray(shades).save(tmp_path / "deep.png")
    picture = read_picture(tmp_path / "deep.png", (4, 4, 1))
    np.testing.assert_array_equal(picture[..., 0], shades >> 8)


def test_transparent_picture_is_laid_upon_black(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGBA", (4, 4), (255, 255, 255, 0)).save(path)
    assert not read_picture(path, (4, 4, 3)).any()


def test_picture_is_turned_as_its_camera_says(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    turned = read_picture(tmp_path / "photo.png", (8, 8, 1))
    np.testing.assert_array_equal(turned[..., 0], pixels[::-1])


@pytest.mark.parametrize(
    "name", ["cut.jpg", "cut.png", "text.png", "empty.jpg", "none"]
)
def test_broken_picture_is_named_in_one_line(name, tmp_path):
    path = tmp_path / name
    if name.startswith("cut"):
        noise = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:-200])
    elif name != "none":
        path.write_text("no picture" if name.startswith("text") else "")
    with pytest.raises(UnreadableImage) as caught:
        read_picture(path, (8, 8, 3))
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read as an image: ")
    assert "\n" not in message


# Depth and transparency


@pytest.mark.parametrize("is_keyed", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png_of_any_depth_is_black_where_it_has_its_transparent_value(
    bits, is_keyed, rng, tmp_path
):
    values = rng.integers(2**bits, size=(HEIGHT, WIDTH, 1))
    values[1, 2] = values[3, 4] = key = 2**bits - 1
    path = write_png(
        *(tmp_path / "grey.png", values, bits, GREY), (key,) if is_keyed else ()
    )
    white = 2**bits - 1
    shades = values >> 8 if bits == 16 else values * 255 // white
    expected = np.where(is_keyed & (values == key), 0, shades)
    np.testing.assert_array_equal(read(path, 1), expected)
    np.testing.assert_array_equal(read(path, 3), np.repeat(expected, 3, -1))


@pytest.mark.parametrize("bits", [8, 16])
def test_only_the_transparent_colour_of_a_png_is_black(bits, rng, tmp_path):
    key = np.array([300, 400, 500]) % 2**bits
    values = rng.integers(2**bits, size=(HEIGHT, WIDTH, 3))
    values[2, 3] = values[0, 0] = key
    values[1, 1] = values[4, 6] = key + [1, 0, 0]  # the upper byte is that of the key
    path = write_png(tmp_path / "colour.png", values, bits, RGB, tuple(key))
    opaque = (values != key).any(-1, keepdims=True)
    expected = (values >> bits - 8) * opaque
    assert expected[1, 1].any() and not expected[2, 3].any()
    np.testing.assert_array_equal(read(path), expected)


def test_deep_png_with_alpha_is_laid_upon_black(rng, tmp_path):
    values = rng.integers(2**16, size=(HEIGHT, WIDTH, 2))
    path = write_png(tmp_path / "deep.png", values, 16, GREY_ALPHA)
    grey, alpha = np.moveaxis(values >> 8, -1, 0)
    np.testing.assert_allclose(
        read(path, 1)[..., 0], grey * alpha / 255, atol=ONE_LEVEL
    )


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_half_transparent_picture_is_laid_upon_black(suffix, mode, rng, tmp_path):
    channels = len(mode)
    pixels = rng.integers(256, size=(HEIGHT, WIDTH, channels), dtype=np.uint8)
    path = tmp_path / f"picture{suffix}"
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    save(path, pixels, **options)
    expected = pixels[..., :-1] * (pixels[..., -1:] / 255)
    expected = np.broadcast_to(expected, (HEIGHT, WIDTH, 3))
    np.testing.assert_allclose(read(path), expected, atol=ONE_LEVEL)


@pytest.mark.parametrize("suffix", [".png", ".gif"])
@pytest.mark.parametrize("form", ["one", "each"])
def test_palette_with_transparent_entries_is_laid_upon_black(
    form, suffix, rng, tmp_path
):
    palette = rng.integers(256, size=(4, 3), dtype=np.uint8)
    entries = rng.integers(4, size=(HEIGHT, WIDTH), dtype=np.uint8)
    picture = Image.fromarray(entries)
    picture.putpalette(palette.tobytes())
    alpha = np.array([255, 0, 255, 255])
    transparency = 1
    if form == "each" and suffix == ".png":
        alpha = np.array([255, 0, 128, 9])
        transparency = bytes(alpha.tolist())
    picture.save(tmp_path / f"p{suffix}", transparency=transparency)
    expected = (palette * (alpha[:, None] / 255))[entries]
    np.testing.assert_allclose(read(tmp_path / f"p{suffix}"), expected, atol=ONE_LEVEL)


@pytest.mark.parametrize(
    ("suffix", "order"),
    [(".png", "<"), (".pgm", "<"), (".jp2", "<"), (".tif", "<"), (".tif", ">")],
)
def test_grey_picture_of_16_bits_keeps_its_upper_byte(suffix, order, rng, tmp_path):
    values = rng.integers(2**16, size=(HEIGHT, WIDTH), dtype=np.uint16)
    path = save(tmp_path / f"deep{suffix}", values.astype(f"{order}u2"))
    np.testing.assert_array_equal(read(path, 1)[..., 0], values >> 8)


@pytest.mark.parametrize("white", [1, 255])
def test_fractions_are_shares_of_white_or_of_255(white, rng, tmp_path):
    values = rng.uniform(size=(HEIGHT, WIDTH)).astype(np.float32)
    values[0, :2] = 0, 1
    path = save(tmp_path / "float.tiff", values * np.float32(white))
    expected = values[..., None] * np.ones(3) * 255
    np.testing.assert_allclose(read(path), expected, atol=HALF_LEVEL)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.0, 1.5], "its values reach from 0 to 1.5"),
        ([-0.25, 1.0], "its values reach from -0.25 to 1"),
        ([0.0, 4000.0], "fractions must reach from 0 to 1 or to 255"),
        ([0.0, np.nan], "fractions must"),
        ([0.0, np.inf], "fractions must"),
        ([-1, 5], "its values reach from -1 to 5"),
        ([0, 2**16], "whole numbers must reach from 0 to 65535"),
    ],
)
def test_values_whose_white_is_not_known_are_refused(values, words, tmp_path):
    dtype = np.float32 if isinstance(values[1], float) else np.int32
    path = save(tmp_path / "odd.tiff", np.array([values], dtype))
    assert words in refusal_of(path)


def test_bilevel_picture_is_black_and_white(rng, tmp_path):
    bits = rng.integers(2, size=(HEIGHT, WIDTH)).astype(bool)
    for suffix in (".png", ".tif", ".pbm", ".bmp"):
        path = save(tmp_path / f"bits{suffix}", bits)
        np.testing.assert_array_equal(read(path, 1)[..., 0], bits * 255)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_ink_becomes_light(suffix, rng, tmp_path):
    ink = np.tile(rng.integers(256, size=4, dtype=np.uint8), (HEIGHT, WIDTH, 1))
    path = tmp_path / f"ink{suffix}"
    Image.fromarray(ink, mode="CMYK").save(path, quality=100)
    cyan_magenta_yellow, black = ink[..., :3].astype(float), ink[..., 3:].astype(float)
    expected = (255 - black) * (1 - cyan_magenta_yellow / 255)
    np.testing.assert_allclose(read(path), expected, atol=3)


def test_colours_become_grey_by_their_lightness(colours, tmp_path):
    path = save(tmp_path / "colours.png", colours)
    expected = colours @ np.array([RED, GREEN, BLUE])
    np.testing.assert_allclose(read(path, 1)[..., 0], expected, atol=HALF_LEVEL)


# Orientation


# What shows the picture upright, by the number that its camera wrote.
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_picture_is_upright(orientation, suffix, colours, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"photo{suffix}", colours, exif=exif, **options)
    expected = UPRIGHT[orientation](colours)
    np.testing.assert_array_equal(read_picture(path, expected.shape), expected)


def test_deep_picture_with_a_transparent_colour_is_upright(rng, tmp_path):
    values = rng.integers(2**16, size=(HEIGHT, WIDTH, 3))
    values[0, 1] = key = np.array([300, 400, 500])
    path = write_png(tmp_path / "deep.png", values, 16, RGB, tuple(key))
    exif = Image.Exif()
    exif[0x0112] = 6
    told = exif.tobytes().removeprefix(b"Exif\0\0")
    content = path.read_bytes()
    chunk = struct.pack(">I", len(told)) + b"eXIf" + told
    chunk += struct.pack(">I", zlib.crc32(b"eXIf" + told))
    at = content.index(b"IDAT") - 4
    path.write_bytes(content[:at] + chunk + content[at:])
    opaque = (values != key).any(-1, keepdims=True)
    expected = np.rot90((values >> 8) * opaque, -1)
    np.testing.assert_array_equal(read_picture(path, expected.shape), expected)


def test_damage_to_what_the_camera_wrote_is_none_to_the_picture(colours, tmp_path):
    path = save(
        tmp_path / "photo.webp", colours, exif=b"Exif\0\0damaged", lossless=True
    )
    np.testing.assert_array_equal(read(path), colours)


# Files


def test_every_suffix_is_that_of_a_picture_that_can_be_read(tmp_path):
    assert features.check("webp") and features.check("avif")
    for suffix in SUFFIXES:
        path = tmp_path / f"picture{suffix.upper()}"
        form = {".jfif": "JPEG", ".jpe": "JPEG"}.get(suffix)
        mode = "1" if suffix == ".pbm" else "L" if suffix == ".pgm" else "RGB"
        Image.new(mode, (WIDTH, HEIGHT), "white").save(path, form)
        np.testing.assert_allclose(read(path), 255, atol=2)


def test_suffix_may_be_that_of_another_kind(colours, tmp_path):
    path = tmp_path / "really.jpg"
    Image.fromarray(colours).save(path, "PNG")
    np.testing.assert_array_equal(read(path), colours)


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("gone.png", "nowhere.png", "it is a link to nowhere.png, where nothing is"),
        ("self.png", "self.png", "symbolic links"),
    ],
)
def test_broken_link_says_where_it_leads(name, target, words, tmp_path):
    (tmp_path / name).symlink_to(target)
    assert words in refusal_of(tmp_path / name)


def test_name_of_a_broken_picture_does_not_steer_the_terminal(tmp_path):
    path = tmp_path / "a\x1b[2J\n\u202e.png"
    path.write_bytes(b"")
    with pytest.raises(UnreadableImage) as caught:
        read_picture(path, (4, 4, 3))
    assert rf"{tmp_path}/a\x1b[2J\n\u202e.png cannot be" in str(caught.value)


# Very large pictures


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_picture_of_more_pixels_than_allowed_is_refused(suffix, colours, tmp_path):
    path = save(tmp_path / f"large{suffix}", colours)
    words = "it has 35 pixels, more than --max-image-pixels (=34)"
    assert refusal_of(path, max_pixels=34) == words
    assert read_picture(path, (4, 4, 3), max_pixels=35).any()


def test_limit_is_by_default_where_pillow_refuses_and_may_be_above(tmp_path, recwarn):
    path = tmp_path / "large.png"
    Image.new("1", (20_000, 10_000), 1).save(path, compress_level=1)
    assert "more than --max-image-pixels (=178956970)" in refusal_of(path)
    assert read_picture(path, (4, 4, 1), max_pixels=10**9).all()
    assert not [*recwarn]


def test_picture_of_which_pillow_warns_is_read_in_silence(tmp_path, recwarn):
    path = tmp_path / "large.png"
    Image.new("1", (10_000, 10_000), 1).save(path, compress_level=1)
    assert read_picture(path, (4, 4, 1)).all()
    assert not [*recwarn]


def test_pillow_does_not_warn_on_the_terminal(rng, tmp_path):
    """Of a palette with bytes of transparency, and of a damaged table of tags."""
    picture = Image.fromarray(rng.integers(4, size=(HEIGHT, WIDTH), dtype=np.uint8))
    picture.putpalette(bytes(range(12)))
    picture.save(tmp_path / "p.png", transparency=bytes([255, 0, 128, 9]))
    exif = Image.Exif()
    exif[0x010E] = "a long description of the picture" * 9
    save(tmp_path / "t.jpg", np.zeros((9, 9), np.uint8), exif=exif.tobytes()[:-100])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        read(tmp_path / "p.png")
        read(tmp_path / "t.jpg")
    assert said == []


# Putting up with it


def test_image_that_is_skipped_is_said(capsys):
    put_up_with("a.png cannot be read", "skip")
    assert capsys.readouterr().err == (
        "train: warning: a.png cannot be read; it is skipped\n"
    )


@pytest.mark.parametrize("failure", [TrainError, TrainingFailed])
def test_image_that_is_not_skipped_raises_and_names_the_remedy(failure):
    with pytest.raises(failure, match="mend it, or pass --on-bad-image skip"):
        put_up_with("a.png cannot be read", "stop", failure)
