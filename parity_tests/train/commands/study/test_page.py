"""The page of what came out, and the flags that are refused."""

import pytest

from parity_tests.tools.studies import page_of
from train.commands.study import main
from train.commands.study.page import paragraphs
from train.errors import TrainError

DEFAULT_NUMERICS = True


# The page.


def test_the_page_says_who_was_ahead_and_by_how_much(finished_study):
    flags, _, _ = finished_study
    page = (page_of(flags) / "index.md").read_text()
    # The interval of dynamic leaves 0 out, but not after Holm's correction.
    words = "odconv (+2.00) ahead of static; dynamic (+2.00) undecided."
    assert f"**At the same parameters:** {words}" in page
    assert "| dynamic | **+2.00** [+0.73, +3.27] |" in page
    assert "| odconv | **+2.00**† [+2.00, +2.00] |" in page
    assert "Of 6 comparisons 6 are decided" in page
    assert (
        (page_of(flags) / "accuracy.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    )


@pytest.mark.parametrize(
    ("mean", "adjusted_p_value", "words"),
    [
        (-2.0, 0.01, "dynamic (-2.00) behind static"),
        (-1.0, 0.06, "dynamic (-1.00) undecided"),
        (0.2, 0.04, "dynamic (+0.20) ahead of static"),
    ],
)
def test_the_page_reports_what_comes_out_whichever_way(
    finished_study, mean, adjusted_p_value, words
):
    _, _, results = finished_study
    found = dict(mean=mean, adjusted_p_value=adjusted_p_value)
    compared = [
        each | found for each in results["comparisons"] if each["conv"] == "dynamic"
    ]
    page = "\n".join(paragraphs(results | {"comparisons": compared}))
    assert page.count(words) == 3


def test_the_page_marks_budgets_that_came_out_unequal(finished_study):
    _, _, results = finished_study
    compared = [
        each | {"static_over_member": 1.06 if each["budget"] == "time" else 1.04}
        for each in results["comparisons"]
    ]
    page = "\n".join(paragraphs(results | {"comparisons": compared}))
    rows = [line.split("|") for line in page.splitlines() if "[+" in line]
    assert [["‡" in cell for cell in row[2:5]] for row in rows] == [
        [False, False, True]
    ] * 2


# Refusals.


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--seeds=1", r"--seeds \(=1\) must be at least 2"),
        ("--convs=dynamik", r"--convs .*dynamik.* must name some of condconv, decomp"),
        ("--convs=static", r"--convs .*static.* must name some of"),
        ("--jobs=0", r"--jobs \(=0\) must be from 1 to \d+, the number of processors"),
        ("--steps=1", r"--steps \(=1\) must be at least 2"),
        ("--width-mult=nan", r"--width-mult \(=nan\) must be positive"),
        ("--seeds=many", r"--seeds \(=many\) must be a whole number"),
        ("--seed=3", "did you mean --seeds"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(argument, message):
    with pytest.raises(TrainError, match=message) as caught:
        main([argument])
    assert "\n" not in str(caught.value)


def test_help_explains_the_flags(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "--width-mult" in capsys.readouterr().out
