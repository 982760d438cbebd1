"""The pages of the tutorial, each of which is its own source.

This program runs the blocks of a page in order and compares what they print with what
the page says, or writes it there, and beside it the pictures that they save:

    python -m parity_tests.tools.tutorial            # what CI runs
    python -m parity_tests.tools.tutorial --write docs/tutorial/02-layer.md

The last line of a page says of which code its outputs are, so that a change of code is
seen without running it.
"""

import argparse
import contextlib
import hashlib
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from parity_tests.tools.checkout import ROOT
from parity_tests.tools.pages import code_of, difference, execute

PAGES = sorted((ROOT / "docs/tutorial").glob("[0-9]*.md"))

PICTURE = re.compile(r"!\[[^\]]*\]\((\w[\w-]*\.png)\)")
STAMP = re.compile(r"\n*<!-- Outputs are of the code with the hash (\w+) -->\n")


def code_hash(text: str) -> str:
    """Returns a hash of the code of a page."""
    return hashlib.sha256("".join(code_of(text)).encode()).hexdigest()[:16]


def run_page(text: str, name: str) -> str:
    """Returns a page with what its blocks print now, and the stamp of their code.

    Args:
        text: The page.
        name: What tracebacks call it.
    """
    stamp = f"\n\n<!-- Outputs are of the code with the hash {code_hash(text)} -->\n"
    return STAMP.sub("", execute(text, name)).rstrip() + stamp


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
