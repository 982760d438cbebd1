"""What commands print, on terminals of any width and of any alphabet."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from train.showing.console import open_console, say, show_table


def terminal(width: int, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    return Console(file=file, force_terminal=True, width=width, color_system=None)


def printed(console: Console) -> list[str]:
    assert isinstance(console.file, io.TextIOWrapper)
    console.file.flush()
    assert isinstance(console.file.buffer, io.BytesIO)
    return console.file.buffer.getvalue().decode(console.encoding).splitlines()


def make_table() -> Table:
    table = Table("the name of a class", show_edge=False)
    table.add_column("images", justify="right")
    table.add_column("multiply-adds", justify="right")
    for row in (("a-very-long-name-of-a-class", "36", "1,685,360"), ("b", "7", "9")):
        table.add_row(*row)
    return table


@pytest.mark.parametrize("width", [1, 20, 40, 80])
def test_figures_are_never_cut_nor_folded(width):
    console = terminal(width)
    show_table(console, make_table())
    text = "\n".join(printed(console))
    assert "1,685,360" in text and " 36 " in text
    assert "…" not in text


def test_names_fold_where_there_is_no_room_and_lose_nothing():
    console = terminal(40)
    show_table(console, make_table())
    lines = printed(console)
    assert max(map(len, lines)) <= 40
    names = (line.partition("│")[0].strip() for line in lines if "│" in line)
    assert "".join(names) == "a-very-long-name-of-a-classb"


def test_tables_on_a_terminal_of_ascii_are_of_ascii():
    console = terminal(80, "ascii")
    show_table(console, make_table())
    assert any("1,685,360" in line for line in printed(console))


def test_files_have_tables_as_wide_as_what_is_in_them(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    show_table(open_console(), make_table())
    assert any(
        line.split() == ["a-very-long-name-of-a-class", "│", "36", "│", "1,685,360"]
        for line in capsys.readouterr().out.splitlines()
    )


def test_texts_are_printed_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    path = "/a/long/path/to/[bold]runs/:cat:/" + "x" * 200
    say(open_console(), path)
    assert capsys.readouterr().out == f"{path}\n"
