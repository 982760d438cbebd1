"""The pages of the documentation: blocks of code, what they print, links, anchors.

A block of Python that prints is followed by a block of text, `It prints`. Where figures
come out differently on another machine, as times do, that is `It printed`, and only the
words around them count.
"""

import contextlib
import difflib
import io
import re
import sys
from pathlib import Path

from parity_tests.tools.checkout import ROOT

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
)
FENCE = re.compile(r"^```.*?^```$\n*", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n"
    r"(?:\n```text title=\"It (?P<verb>prints|printed)\"\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
# A number, with the spaces before it, which keep columns in line.
NUMBER = re.compile(r" *[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def code_of(text: str) -> list[str]:
    """Returns the blocks of Python of a page, in order."""
    return [block["code"] for block in BLOCK.finditer(text)]


def execute(text: str, name: str) -> str:
    """Runs the blocks of a page, one after another, with the names of those before.

    Args:
        text: The page.
        name: What tracebacks call it.

    Returns:
        The page with what its blocks print now.
    """
    namespace: dict[str, object] = {"__name__": Path(name).stem}

    def run_block(block: re.Match) -> str:
        printed = io.StringIO()
        # Blank lines before it, so that a traceback has the line of the page.
        code = "\n" * (text.count("\n", 0, block.start("code"))) + block["code"]
        with contextlib.redirect_stdout(printed):
            exec(compile(code, name, "exec"), namespace)
        page = f"```python\n{block['code']}```\n"
        if printed.getvalue():
            title = f"It {block['verb'] or 'prints'}"
            page += f'\n```text title="{title}"\n{printed.getvalue()}```\n'
        return page

    return BLOCK.sub(run_block, text)


def without_measurements(text: str) -> str:
    """Returns a page with a mark in place of each number that was measured."""

    def blank(block: re.Match) -> str:
        whole, output = block[0], block["output"]
        if block["verb"] != "printed":
            return whole
        return whole.replace(output, NUMBER.sub(" #", output))

    return BLOCK.sub(blank, text)


def difference(committed: str, current: str) -> list[str]:
    """Returns the lines in which two versions of a page differ, but for measurements.

    Args:
        committed: The page as it is.
        current: The page as its blocks give it.
    """
    before, after = (
        without_measurements(text).splitlines() for text in (committed, current)
    )
    names = "the page", "what it gives"
    return list(difflib.unified_diff(before, after, *names, lineterm=""))


def run(page: Path) -> None:
    """Runs the blocks of a page.

    Raises:
        AssertionError: If they print something else than the page says.
    """
    text = page.read_text()
    found = difference(text, execute(text, str(page)))
    assert not found, "\n".join([f"{page} is not what it gives", *found])


def prose_of(page: Path) -> str:
    """Returns a page without its code."""
    text = FENCE.sub("", page.read_text())
    return re.sub(r"`[^`\n]*`|^ {4}.*$", "", text, flags=re.MULTILINE)


def links_of(page: Path) -> list[str]:
    """Returns the targets of the links and pictures of a page that name files."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose_of(page))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors_of(page: Path) -> set[str]:
    """Returns the anchors of a page: its headings, and the names that it shows."""
    text = FENCE.sub("", page.read_text())
    shown = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    words = [re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings]
    return {*shown, *(re.sub(r"[\s-]+", "-", each.strip()) for each in words)}


if __name__ == "__main__":  # in a process of its own, for pages about many devices
    run(Path(sys.argv[1]).resolve())
