"""What is asked about models, and what is left of the command line."""

import pytest

from train.errors import TrainError
from train.flags.inquiry import Inquiry, inquiry_in


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--list-models", Inquiry("*", (), ())),
        ("--list_models=res*", Inquiry("res*", (), ())),
        (
            "--model resnet18 --list-models --conv=odconv --conv-options norm=layer",
            Inquiry(
                *("*", ()),
                ("--model", "resnet18", "--conv=odconv", "--conv-options")
                + ("norm=layer",),
            ),
        ),
        ("--conv-options help", Inquiry(None, ("conv_options",), ())),
        (
            "--model_options=help --model resnet18 --conv-options help",
            Inquiry(
                *(None, ("model_options", "conv_options"), ("--model", "resnet18"))
            ),
        ),
        ("stray --model-options help", Inquiry(None, ("model_options",), ("stray",))),
    ],
)
def test_what_is_asked_is_parted_from_the_rest(typed, expected):
    assert inquiry_in(typed.split()) == expected


@pytest.mark.parametrize(
    "typed",
    ["", "--conv-options norm=layer", "--model help", "--conv-options help a=1"],
)
def test_command_line_that_asks_nothing_is_none(typed):
    assert inquiry_in(typed.split()) is None


def test_several_patterns_are_refused():
    with pytest.raises(TrainError, match=r"^--list-models \(=a.py b.py\) takes one"):
        inquiry_in(["--list-models", "a.py", "b.py"])
