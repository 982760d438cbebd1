"""The README: its code runs, its figures are those that were measured."""

import re
import tomllib

import pytest

from parity_tests.tools import pages
from parity_tests.tools.checkout import ROOT

DEFAULT_NUMERICS = True

PAGE = ROOT / "README.md"
README = PAGE.read_text()


def test_there_are_blocks_to_run():
    assert len(pages.code_of(README)) == README.count("```python") >= 1


def test_no_figure_is_left_to_fill_in():
    assert not re.findall(r"^(?:[A-Z_]{4,}|.*\b(?:TBD|N/A)\b.*)$", README, re.MULTILINE)


def test_figures_are_those_that_the_benchmark_wrote():
    summary = (ROOT / "docs/benchmarks/zen5/summary.md").read_text()
    header, rule, *rows = summary.splitlines()
    shown = README.partition("<!-- speed -->\n")[2].partition("<!-- /speed -->")[0]
    first, second, *table = shown.splitlines()
    assert (first, second) == (header, rule)
    assert 1 <= len(table) <= 6
    assert set(table) <= set(rows)


def test_code_runs():
    pages.run(PAGE)


@pytest.mark.parametrize(
    ("extra", "program"), [("train", "python -m train"), ("dev", "pytest")]
)
def test_the_commands_stand_on_one_line_and_their_extra_exists(extra, program):
    line = f'    pip install -c constraints.txt -e ".[{extra}]" && {program}\n'
    assert line in README
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extra in project["optional-dependencies"]


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    for name in re.findall(
        r"`((?:dynconv_|parity_tests/)[\w/]+\.py)`", page.read_text()
    ):
        assert (ROOT / name).is_file(), name
