"""The documentation: code runs, links lead somewhere, every public name has a place."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from parity_tests.tools import pages
from parity_tests.tools.checkout import ROOT
from parity_tests.tools.on_devices import with_devices

DEFAULT_NUMERICS = True  # the code is to run as a user runs it

DOCS = ROOT / "docs"
REFERENCE = sorted((DOCS / "reference").glob("*.md"))
PUBLIC = [
    f"{package}{part}"
    for package in ("dynconv_jax", "dynconv_torch")
    for part in ("", ".functional", ".layers", ".models", ".weights")
]
# They train, or compile much.
SLOW = {
    "family/adaptive-conv.md",
    "family/cond-conv.md",
    "family/decomposed-conv.md",
    "family/dymn.md",
    "family/fd-conv.md",
    "family/frequency-dynamic-conv.md",
    "family/kernel-warehouse.md",
    "family/od-conv.md",
    "guides/forms.md",
    "guides/mixed-precision.md",
    "guides/models.md",
    "guides/temperature.md",
    "how/add.md",
    "start/five-minutes.md",
}
CHIPS = ("benchmarks", "compiled"), ("benchmarks", "mapped")
# They are about several devices, and a process has its number from the start.
WITH_DEVICES = {"guides/devices.md": 8}

# Those of the tutorial are run, with what they measure and draw, by its own program.
WITH_CODE = [
    str(page.relative_to(DOCS))
    for page in pages.PAGES
    if page.is_relative_to(DOCS)
    and not page.is_relative_to(DOCS / "tutorial")
    and pages.code_of(page.read_text())
]

PAGE = """# A page

```python
sizes = [1, 2]
```

```python
print("sizes", sizes)
```

```text title="It prints"
sizes [1, 2]
```

```python
print("took 12.5 ms")
```

```text title="It printed"
took    7 ms
```
"""


def marked(names) -> list:
    """Returns the pages as parameters, with the slow ones marked."""
    return [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in names
    ]


@pytest.mark.parametrize("name", marked(n for n in WITH_CODE if n not in WITH_DEVICES))
def test_code_of_a_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # pages write files
    pages.run(DOCS / name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), WITH_DEVICES.items())
def test_code_about_devices_runs(name, count, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "parity_tests.tools.pages", str(DOCS / name)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**with_devices(count), "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr


def test_pages_that_are_named_here_exist():
    assert WITH_DEVICES.keys() | SLOW <= set(WITH_CODE)


def test_another_output_than_the_page_says_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    pages.run(page)
    page.write_text(PAGE.replace("sizes [1, 2]", "sizes [1, 3]"))
    with pytest.raises(AssertionError, match=r"-sizes \[1, 3\]\n\+sizes"):
        pages.run(page)


def test_an_output_that_the_page_leaves_out_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE.partition("```text")[0])
    with pytest.raises(AssertionError, match=r"\+sizes \[1, 2\]"):
        pages.run(page)


def test_only_the_words_around_what_was_measured_count():
    current = pages.execute(PAGE, "page.md")
    assert 'title="It printed"\ntook 12.5 ms\n' in current
    assert pages.difference(PAGE, current) == []
    assert pages.difference(PAGE.replace("took    7", "lasted 7"), current)


def test_a_traceback_has_the_line_of_the_page():
    with pytest.raises(SyntaxError) as caught:
        pages.execute(PAGE.replace('print("took', 'print "took'), "page.md")
    assert caught.value.lineno == 16


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    lost = []
    for link in pages.links_of(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.is_file() or (
            anchor and target.suffix == ".md" and anchor not in pages.anchors_of(target)
        ):
            lost.append(link)
    assert not lost


def listed() -> list[str]:
    """Returns what the pages of the reference show, by its dotted name."""
    text = "".join(page.read_text() for page in REFERENCE)
    return re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)


def find(dotted: str) -> object:
    """Returns what has a dotted name."""
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def names_of(module: str) -> list[str]:
    """Returns the public names of a module, of the instrument those it defines."""
    found = importlib.import_module(module)
    if hasattr(found, "__all__"):
        return list(found.__all__)
    tables = {"TOLERANCES", "GRADIENT_FLOOR", "ROUNDING_FLOOR", "OPTIMIZERS"} & vars(
        found
    ).keys()
    return sorted(
        tables.union(
            name
            for name, value in vars(found).items()
            if not name.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == module
        )
    )


@pytest.mark.parametrize(
    "module",
    [*PUBLIC, *(f"parity_tests.{part}" for part in ("parity", "passes", "tolerances"))],
)
def test_every_public_name_is_in_the_reference(module):
    shown = {id(find(name)) for name in listed()}
    names = names_of(module)
    assert names
    missing = [name for name in names if id(find(f"{module}.{name}")) not in shown]
    assert not missing, "add `::: …` to a page of docs/reference for each"


def test_nothing_is_in_the_reference_twice():
    names = listed()
    assert len(set(names)) == len(names)


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    named = {Path(name) for name in re.findall(r"[\w./-]+\.md", text)}
    found = {page.relative_to(DOCS) for page in DOCS.rglob("*.md")}
    # Pages of chips, one for each that was compiled for; their guide names them.
    assert {page for page in found if page.parts[:2] not in CHIPS} <= named
