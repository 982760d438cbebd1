"""Runs beside one another."""

import pytest

from parity_tests.tools.runs import write_run
from train.commands.compare import main
from train.errors import TrainError, TrainingFailed


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "one")
    write_run(folder / "two", seed=7, conv="static", warmup_steps=3)
    write_run(folder / "three", is_finished=False)
    return [str(folder / name) for name in ("one", "two", "three")]


@pytest.fixture(scope="module")
def rows(runs, tmp_path_factory) -> dict[str, list[str]]:
    """What the table says, by the first column."""
    import contextlib
    import io

    picture = tmp_path_factory.mktemp("out") / "curves.png"
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        main([*runs, "--out", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    cells = [line.split("│") for line in output.getvalue().splitlines()]
    return {
        first.strip(): [cell.strip() for cell in rest] for first, *rest in cells if rest
    }


def test_flags_that_differ_are_shown_and_no_others(rows):
    flags = {name: values for name, values in rows.items() if name[:2] == "--"}
    assert flags == {
        "--seed": ["0", "7", "0"],
        "--conv": ["–", "static", "–"],
        "--warmup-steps": ["4", "3", "4"],
    }


def test_figures_of_the_summary_are_shown(rows):
    assert rows["test accuracy"][0] == "0.7500"
    assert rows["multiply-adds / static"][0] == "1.50"
    assert rows["wall seconds"][0] == "75.0"


def test_run_is_compared_with_its_twin(tmp_path, capsys):
    write_run(tmp_path / "run", twin=True, summary={"twin_test_accuracy": 0.625})
    write_run(tmp_path / "run" / "twin", conv="static")
    picture = tmp_path / "curves.png"
    main([str(tmp_path / "run"), str(tmp_path / "run/twin"), f"--out={picture}"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["--conv", "│", "–", "│", "static"] in lines
    assert ["twin", "test", "accuracy", "│", "0.6250", "│", "–"] in lines


def test_unfinished_run_is_shown_as_far_as_it_is(rows):
    assert rows["steps"] == ["40", "40", "20 of 40"]
    assert rows["test accuracy"][2] == "0.3333"
    assert rows["parameters"][2] == "–"


def test_run_with_validation_is_compared_by_it(runs, tmp_path, capsys):
    out = tmp_path / "validated"
    write_run(out, is_finished=False)
    metrics = out / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("test_", "val_"))
    picture = tmp_path / "curves.png"
    main([str(out), runs[2], "--out", str(picture)])
    cells = [line.split("│") for line in capsys.readouterr().out.splitlines()]
    found = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells}
    assert found["val accuracy"] == ["0.3333", "–"]
    assert found["test accuracy"] == ["–", "0.3333"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "compare needs the directories of runs"),
        (["/nowhere"], "/nowhere holds no run"),
        (["two", "one", "one"], "given .*one twice"),
        (["one", "--outt=x"], "did you mean --out"),
        (["one", "--out=x", "more"], "'more' must stand before the flags"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, arguments, message):
    places = {"one": runs[0], "two": runs[1]}
    with pytest.raises(TrainError, match=message):
        main([places.get(each, each) for each in arguments])


def test_picture_that_cannot_be_written_is_told(runs, tmp_path):
    with pytest.raises(TrainingFailed, match="--out"):
        main([runs[0], "--out", str(tmp_path / "missing" / "curves.png")])
