"""The README: every block of code runs, in order, and the two commands are one line."""

import re
import tomllib

import pytest

from parity_tests.tools.checkout import ROOT

DEFAULT_NUMERICS = True

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_there_are_blocks_to_run():
    assert len(BLOCKS) == README.count("```python") >= 4


def test_no_figure_is_left_to_fill_in():
    assert not re.findall(r"^(?:[A-Z_]{4,}|.*\b(?:TBD|N/A)\b.*)$", README, re.MULTILINE)


def test_figures_are_those_that_the_benchmark_wrote():
    assert (ROOT / "docs/benchmarks/summary.md").read_text() in README


def test_costs_of_the_family_are_those_that_were_measured():
    page = (ROOT / "docs/benchmarks/family.md").read_text()
    tables = re.findall(r"^\| \|.*?\n\n", page, re.MULTILINE | re.DOTALL)
    assert tables and tables[0] in README


def test_every_code_block_runs():
    namespace: dict[str, object] = {"__name__": "readme"}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"README.md, block {number}", "exec"), namespace)


@pytest.mark.parametrize(
    ("extra", "program"), [("train", "python -m train"), ("dev", "pytest")]
)
def test_the_commands_stand_on_one_line_and_their_extra_exists(extra, program):
    line = f'    pip install -c constraints.txt -e ".[{extra}]" && {program}\n'
    assert line in README
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extra in project["optional-dependencies"]


def test_files_that_the_readme_names_exist():
    for name in re.findall(r"`((?:dynconv_|parity_tests/)[\w/]+\.py)`", README):
        assert (ROOT / name).is_file(), name
