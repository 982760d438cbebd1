"""The flags of the images are refused at the door, and read as they are meant."""

import json

import pytest

from train.errors import TrainError
from train.flags.config import Config, parse
from train.storage.finished import as_path
from train.storage.read_json import convert


@pytest.mark.parametrize(
    ("typed", "sides"), [([], (224, 224)), (["9"], (9, 9)), (["9", "4096"], (9, 4096))]
)
def test_size_of_pictures_is_one_number_or_height_and_width(typed, sides):
    size = ["--image-size", *typed] if typed else []
    flags = parse(["--preset=folder", "--data=photos", *size])
    assert flags.height_and_width == sides
    read = convert(json.loads(json.dumps(flags.to_json())), Config, as_path)
    assert read.height_and_width == sides


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--image-size", "0"], "--image-size (=0) must be from 1 to 4096"),
        (["--image-size", "9", "0"], "--image-size (=(9, 0)) must be from 1 to 4096"),
        (["--image-size", "4097"], "--image-size (=4097) must be from 1 to 4096"),
        (
            ["--image-size", "3", "4", "5"],
            "--image-size (=3 4 5) must be a whole number or 2 whole numbers",
        ),
        (
            ["--image-size", "9", "9", "--preset=digits"],
            "--image-size (=(9, 9)) must be left out with --preset digits, whose "
            "images have a size",
        ),
    ],
)
def test_size_that_no_picture_can_have_is_refused(flags, words):
    with pytest.raises(TrainError) as refusal:
        parse(["--preset=folder", *flags])
    assert str(refusal.value) == words


@pytest.mark.parametrize("value", ["0", "1.01", "nan", "-0.5"])
def test_share_of_a_picture_that_there_is_not_is_refused(value):
    with pytest.raises(TrainError, match=r"--crop-pct .* be above 0 and at most 1"):
        parse(["--preset=folder", "--data=photos", "--crop-pct", value])


@pytest.mark.parametrize(
    "flags", [["--crop-pct=0.9"], ["--interpolation=lanczos"], ["--image-size=8"]]
)
def test_pictures_are_scaled_for_the_preset_that_has_some(flags):
    with pytest.raises(TrainError, match="left out with --preset digits, whose images"):
        parse(flags)
    parse(["--preset=folder", "--data=photos", *flags])


def test_interpolation_that_there_is_not_is_refused():
    words = "must be one of: nearest, bilinear, bicubic, lanczos"
    with pytest.raises(TrainError, match=words):
        parse(["--preset=folder", "--data=photos", "--interpolation=random"])


@pytest.mark.parametrize("flag", ["mean", "std"])
@pytest.mark.parametrize("values", [["-0.1"], ["0.5", "1.1"], ["nan"], ["inf"]])
def test_normalisation_by_what_no_channel_can_have_is_refused(flag, values):
    with pytest.raises(TrainError, match=rf"--{flag} \(=.* which is white"):
        parse([f"--{flag}", *values])


def test_deviation_of_nothing_is_refused():
    with pytest.raises(TrainError, match=r"--std .*0\.0.* above 0"):
        parse(["--std", "0.5", "0"])
