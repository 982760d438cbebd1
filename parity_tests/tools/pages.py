"""The pages of the documentation: blocks of code, what they print, links, anchors."""

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import NamedTuple

from parity_tests.tools.checkout import ROOT

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
)
FENCE = re.compile(r"^```(.*?)\n(.*?)^```$\n*", re.MULTILINE | re.DOTALL)
# The fence of what the block of code before it prints.
PRINTED = 'text title="It prints"'


class Block(NamedTuple):
    """A block of Python.

    Attributes:
        name: Its page and its line.
        code: The code.
        printed: What the page says that it prints, or None where it says nothing.
    """

    name: str
    code: str
    printed: str | None


def blocks_of(page: Path) -> list[Block]:
    """Returns the blocks of Python of a page, in order."""
    text = page.read_text()
    blocks = []
    for fence in FENCE.finditer(text):
        if fence[1] == "python":
            line = text.count("\n", 0, fence.start()) + 2
            after = FENCE.match(text, fence.end())
            printed = after[2] if after and after[1] == PRINTED else None
            name = f"{page.relative_to(ROOT)}, line {line}"
            blocks.append(Block(name, fence[2], printed))
    return blocks


def run(page: Path) -> None:
    """Runs the blocks of a page, one after another, with the names of those before.

    Raises:
        AssertionError: If a block prints something else than the page says.
    """
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in blocks_of(page):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(block.code, block.name, "exec"), namespace)
        printed = output.getvalue()
        assert block.printed in (None, printed), f"{block.name} prints\n{printed}"


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
