"""What a run shows: lines where there is no terminal, with the time that is left."""

import io
import re

import pytest
from rich.console import Console

import train.showing.display
from train.showing.display import Display

ROW = {
    "loss": 0.5,
    "accuracy": 0.75,
    "learning_rate": 1e-3,
    "temperature": 2.0,
    "images_per_second": 1234.0,
}


def test_lines_tell_rate_and_time_left(capsys):
    with Display(100) as display:
        display.start(10)
        for step in (20, 30):
            display.logged(ROW | {"step": step})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step 20/100  loss 0.5000  accuracy 0.750")
    assert re.search(r"1234 images/s  \d+:\d\d:\d\d left$", second)


def test_temperature_is_shown_where_there_is_one(capsys):
    with Display(100) as display:
        display.logged(ROW | {"step": 20})
        display.logged(
            {name: ROW[name] for name in ROW if name != "temperature"} | {"step": 30}
        )
    first, second = capsys.readouterr().out.splitlines()
    assert "temperature 2.00" in first and "temperature" not in second


def test_evaluations_tell_of_averages_where_there_are_any(capsys):
    with Display(100) as display:
        row = {"step": 20, "test_loss": 0.5, "test_accuracy": 0.75}
        display.evaluated(row)
        display.evaluated(row | {"ema_test_accuracy": 0.8})
    plain, averaged = capsys.readouterr().out.splitlines()
    assert plain == "step 20/100  test loss 0.5000  test accuracy 0.7500"
    assert averaged == f"{plain}  of the averages 0.8000"


def test_evaluations_say_that_they_are_of_validation(capsys):
    with Display(100) as display:
        row = {"step": 20, "val_loss": 0.5, "val_accuracy": 0.75}
        display.evaluated(row | {"ema_val_accuracy": 0.8})
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        "step 20/100  validation loss 0.5000  validation accuracy 0.7500  of the "
        "averages 0.8000"
    )


def test_other_processes_show_nothing(capsys):
    with Display(100, is_shown=False) as display:
        display.say("here")
        display.logged(ROW | {"step": 20})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("width", [10, 20, 33, 60, 80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_progress_has_room_on_any_screen(width, encoding, monkeypatch):
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding=encoding, errors="strict")
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(train.showing.display, "open_console", lambda: console)
    with Display(400) as display:
        display.logged(ROW | {"step": 20})
    file.flush()
    text = buffer.getvalue().decode(encoding)
    lines = [re.sub(r"\x1b\[\??\w*", "", each) for each in re.split(r"[\r\n]+", text)]
    assert max(map(len, lines)) <= width
    assert "20/400" in text and "…" not in text
    assert ("loss 0.5000" in text) == (width >= 20)
    assert ("accuracy 0.750" in text) == (width >= 60)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_names_that_a_terminal_would_obey_are_shown(is_terminal, capsys, monkeypatch):
    if is_terminal:
        console = Console(force_terminal=True, color_system=None)
        monkeypatch.setattr(train.showing.display, "open_console", lambda: console)
    Display(100).say("results in runs/\x1b[2J\nfake\u202e")
    assert r"results in runs/\x1b[2J\nfake\u202e" in capsys.readouterr().out
