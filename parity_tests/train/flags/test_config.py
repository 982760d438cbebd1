"""How flags are read: what cannot be is refused by flag and remedy."""

import pytest

from train.commands.export import ExportFlags
from train.commands.study.flags import StudyFlags
from train.errors import TrainError
from train.flags.config import Config, parse, parse_flags


@pytest.mark.parametrize("following", [[], ["--out=x"]], ids=["last", "not last"])
@pytest.mark.parametrize(
    ("kind", "flag", "values"),
    [
        (Config, "--freeze", "a word"),
        (Config, "--restarts", "a whole number"),
        (Config, "--conv-options", "a word"),
        (Config, "--model_options", "a word"),
        (Config, "--mean", "a number"),
        (StudyFlags, "--convs", "a word"),
        (ExportFlags, "--formats", "one of: stablehlo, "),
    ],
)
def test_list_without_a_value_is_refused(kind, flag, values, following):
    with pytest.raises(TrainError) as caught:
        parse_flags([flag, *following], kind, "python -m train")
    told = f"{flag.replace('_', '-')} needs a value: give {values}"
    assert str(caught.value).startswith(told)


def test_list_may_be_empty_where_it_is_left_out():
    assert parse(["--seed", "3"]).freeze == ()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mean", "0.5", "x"], "--mean (=0.5 x) must be a number"),
        (["--crop-scale", "0.5"], "--crop-scale (=0.5) must be 2 numbers"),
        (["--restarts", "9", "many"], "--restarts (=9 many) must be a whole number"),
    ],
)
def test_values_that_cannot_be_read_are_told_whole(flags, words):
    with pytest.raises(TrainError) as refusal:
        parse(flags)
    assert str(refusal.value) == words
