"""The pages of the tutorial, each of which is its own source.

A block of Python is followed by a block of text, `It prints`. This program runs the
blocks of a page in order and compares what they print with what the page says, or
writes it there, and beside it the pictures that they save:

    python -m parity_tests.tools.tutorial            # what CI runs
    python -m parity_tests.tools.tutorial --write docs/tutorial/02-layer.md

Where figures come out differently on another machine, as times do, the block of text is
`It printed`, and only the words around them are compared. The last line of a page says
of which code its outputs are, so that a change of code is seen without running it.
"""

import argparse
import contextlib
import difflib
import hashlib
import io
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from parity_tests.tools.checkout import ROOT

PAGES = sorted((ROOT / "docs/tutorial").glob("[0-9]*.md"))

BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n"
    r"(?:\n```text title=\"It (?P<verb>prints|printed)\"\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
PICTURE = re.compile(r"!\[[^\]]*\]\((\w[\w-]*\.png)\)")
# A number, with the spaces before it, which keep columns in line.
NUMBER = re.compile(r" *[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")

STAMP = re.compile(r"\n*<!-- Outputs are of the code with the hash (\w+) -->\n")


def code_hash(text: str) -> str:
    """Returns a hash of the code of a page."""
    code = "".join(block["code"] for block in BLOCK.finditer(text))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def run_page(text: str, name: str) -> str:
    """Runs the blocks of a page in one namespace, in the current directory.

    Args:
        text: The page.
        name: What tracebacks call it.

    Returns:
        The page with what its blocks print now.
    """
    namespace: dict[str, object] = {"__name__": "tutorial"}

    def run(block: re.Match) -> str:
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

    stamp = f"\n\n<!-- Outputs are of the code with the hash {code_hash(text)} -->\n"
    return STAMP.sub("", BLOCK.sub(run, text)).rstrip() + stamp


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
        current: The page as `run_page` returns it.
    """
    before, after = (
        without_measurements(text).splitlines() for text in (committed, current)
    )
    names = "the page", "what it gives"
    return list(difflib.unified_diff(before, after, *names, lineterm=""))


def main(arguments: list[str] | None = None) -> int:
    """Runs pages; returns 1 if one of them is not what its blocks give."""
    parser = argparse.ArgumentParser(prog="python -m parity_tests.tools.tutorial")
    parser.add_argument("--write", action="store_true", help="write what came out")
    parser.add_argument("pages", nargs="*", type=Path, default=PAGES)
    options = parser.parse_args(arguments)
    failed = 0
    for page in options.pages:
        start, committed = time.perf_counter(), page.read_text()
        folder = page.parent.resolve()
        with (
            tempfile.TemporaryDirectory() as directory,
            contextlib.chdir(directory),
        ):
            current = run_page(committed, str(page))
            drawn = {path.name: path for path in Path().glob("*.png")}
            found = difference(committed, current)
            if drawn.keys() != set(PICTURE.findall(committed)):
                found.append(f"the page shows other pictures than {sorted(drawn)}")
            if options.write:
                for name, path in drawn.items():
                    shutil.copyfile(path, folder / name)
        print(f"{page.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        if options.write:
            beside = page.with_suffix(".part")
            beside.write_text(current)
            beside.replace(page)
        elif found:
            failed = 1
            print(f"{page} is not what it gives; run with --write", *found, sep="\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
