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
