"""The answers about models, as the program prints them."""

import pytest

from dynconv_jax import list_models
from train.__main__ import main
from train.showing.choices import SIDES

# The program is run as a user runs it.
DEFAULT_NUMERICS = True


def rows(printed: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.split("│")]
        for line in printed.splitlines()
        if "│" in line
    ]


def test_models_of_a_pattern_are_listed(capsys):
    assert main(["--list-models", "res*18"]) == 0
    printed = capsys.readouterr().out
    assert rows(printed) == [["resnet18", "11,689,512", "224×224", "static"]]
    assert "by --conv, one of: condconv, decomposed, dynamic, " in printed


def test_models_are_listed_with_the_convolutions_that_are_chosen(capsys):
    argv = ["--list-models", "dynamic_net", "--conv=condconv", "--num-experts=2"]
    assert main(argv) == 0
    ((name, parameters, pictures, conv),) = rows(capsys.readouterr().out)
    assert (name, pictures, conv) == ("dynamic_net", "any", "condconv")
    assert 700_000 < int(parameters.replace(",", "")) < 1_000_000


def test_model_that_does_not_take_what_is_chosen_has_no_figure(capsys):
    argv = ["--list-models", "resnet18", "--model-options", "width_mult=0.5"]
    assert main(argv) == 0
    assert rows(capsys.readouterr().out) == [["resnet18", "–", "224×224", "static"]]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("resnet81", "did you mean 'resnet18'"), ("vit*", "An asterisk stands for")],
)
def test_pattern_of_no_model_is_refused_in_one_line(pattern, words, capsys):
    assert main([f"--list-models={pattern}"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(
        f"train: error: --list-models (={pattern}) is the name of "
    )
    assert words in message
    assert message.count("\n") == 1


def test_sides_are_of_models_that_there_are():
    assert SIDES.keys() <= {*list_models()}
    assert SIDES["efficientnet_cc_b1_8e"] == 240


def test_options_are_told_in_a_table(capsys):
    argv = ["--conv-options", "help", "--model=resnet18", "--conv=odconv"]
    assert main([*argv, "--model-options=help"]) == 0
    printed = capsys.readouterr().out
    table = rows(printed)
    meaning = "How many units the trunk has at least."
    assert ["min_hidden=", "int", "16", meaning] in table
    assert ["--num-experts", "int", "4", "K."] in table
    assert ["dropout=", "float", "0.0"] in [row[:3] for row in table]
    assert "Of --conv odconv, after --conv-options as NAME=VALUE" in printed
    assert "Of --model resnet18, after --model-options" in printed
