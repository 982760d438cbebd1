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


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--randaugment=-1"], "--randaugment (=-1.0) must be from 0 to 10"),
        (["--randaugment=10.5"], "--randaugment (=10.5) must be from 0 to 10"),
        (["--randaugment=nan"], "--randaugment (=nan) must be from 0 to 10"),
        (
            ["--randaugment=9", "--randaugment-ops=0"],
            "--randaugment-ops (=0) must be at least 1",
        ),
        (
            ["--randaugment-ops=3"],
            "--randaugment-ops (=3) must be left out without --randaugment, whose "
            "operations they are",
        ),
    ],
)
def test_operations_that_there_are_not_are_refused(flags, words):
    with pytest.raises(TrainError) as refusal:
        parse(flags)
    assert str(refusal.value) == words
    parse(["--randaugment=0", "--randaugment-ops=3"])
