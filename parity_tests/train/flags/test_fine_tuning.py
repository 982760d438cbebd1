"""The flags of fine-tuning: what no run could use is refused at once."""

import pytest

from train.errors import TrainError
from train.flags.config import Config, parse


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(layer_decay=0.0), "--layer-decay (=0.0) must be above 0 and at most 1"),
        (dict(layer_decay=1.5), "--layer-decay (=1.5) must be above 0 and at most 1"),
        (dict(layer_decay=float("nan")), "--layer-decay (=nan) must be above 0"),
        (dict(head_learning_rate=0.0), "--head-learning-rate (=0.0) must be positive"),
        (
            dict(router_learning_rate=-1.0),
            "--router-learning-rate (=-1.0) must be positive",
        ),
        (
            dict(new_head=True),
            "--new-head (=True) must be left out without --init-from",
        ),
    ],
)
def test_value_that_no_run_could_use_is_refused(given, words):
    with pytest.raises(TrainError) as caught:
        Config(**given)
    assert words in str(caught.value)


def test_several_names_are_typed_after_one_flag():
    typed = "--freeze backbone layer1.* --layer-decay 0.7 --init-from a.pth --new-head"
    config = parse(typed.split())
    assert config.freeze == ("backbone", "layer1.*")
    assert (config.layer_decay, config.new_head) == (0.7, True)
