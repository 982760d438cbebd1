"""The tutorial: its outputs are those of its code, and the program that sees to it."""

import pytest

from parity_tests.tools import tutorial
from parity_tests.tools.checkout import ROOT

DEFAULT_NUMERICS = True  # the code is to run as a user runs it

PAGES = tutorial.PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_outputs_are_those_of_the_code_that_stands_there(page):
    text = page.read_text()
    stamps = tutorial.STAMP.findall(text)
    assert stamps == [tutorial.code_hash(text)], "run it with --write"
    shown = tutorial.PICTURE.findall(text)
    assert all((page.parent / name).is_file() for name in shown)
    assert [f'savefig("{name}"' in text for name in shown] == [True] * len(shown)


def test_the_contents_list_the_chapters_in_order():
    contents = (ROOT / "docs/tutorial/index.md").read_text()
    places = [contents.index(f"({page.name})") for page in PAGES]
    assert len(places) >= 4 and places == sorted(places)


def test_a_page_is_written_with_its_outputs_and_pictures(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    draw = 'open("dot.png", "w").close()\nprint("drawn")'
    page.write_text(f"```python\n{draw}\n```\n\n![A dot](dot.png)\n")
    assert tutorial.main([str(page)]) == 1
    assert tutorial.main(["--write", str(page)]) == 0
    assert tutorial.main([str(page)]) == 0
    assert (tmp_path / "dot.png").is_file()
    page.write_text(page.read_text().replace("dot.png)", "line.png)"))
    assert tutorial.main([str(page)]) == 1
