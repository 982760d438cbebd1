"""The flags of augmentation are refused at the door, whichever others stand by them."""

import pytest

from train.errors import TrainError
from train.flags.config import parse

CROPS = [], ["--crop-scale", "0.08", "1"]


@pytest.mark.parametrize("others", CROPS, ids=["padded crop", "resized crop"])
@pytest.mark.parametrize("flag", ["mixup", "cutmix"])
@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_an_alpha_that_there_is_not_is_refused(flag, value, others):
    with pytest.raises(TrainError, match=rf"--{flag} \(={value}"):
        parse([f"--{flag}={value}", *others])
    assert getattr(parse([f"--{flag}=0.2", *others]), flag) == 0.2


@pytest.mark.parametrize("flag", ["mean", "std"])
@pytest.mark.parametrize("values", [["-0.1"], ["0.5", "1.1"], ["nan"], ["inf"], []])
def test_normalisation_by_what_no_channel_can_have_is_refused(flag, values):
    with pytest.raises(TrainError, match=rf"--{flag} \(=.* which is white"):
        parse([f"--{flag}", *values])


def test_deviation_of_nothing_is_refused():
    with pytest.raises(TrainError, match=r"--std .*0\.0.* above 0"):
        parse(["--std", "0.5", "0"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mean", "0.5", "x"], "--mean (=0.5 x) must be numbers"),
        (["--crop-scale", "0.5"], "--crop-scale (=0.5) must be 2 numbers"),
        (["--restarts", "9", "many"], "--restarts (=9 many) must be whole numbers"),
    ],
)
def test_values_that_cannot_be_read_are_told_whole(flags, words):
    with pytest.raises(TrainError) as refusal:
        parse(flags)
    assert str(refusal.value) == words
