"""Environments that hold nothing but one distribution and what it requires."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

FLAGS = ("-I", "-S")  # neither the user's settings nor installed packages
PROGRAM = "import sys; sys.path.append(sys.argv.pop(1)); exec(sys.argv.pop(1))"


def environment(folder: Path, *names: str) -> Path:
    """Fills a folder with distributions, as links to those that are installed.

    Args:
        folder: An empty folder.
        *names: The distributions; what they require comes with them.
    """
    for name in _with_requirements(names):
        for file in importlib.metadata.files(name) or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                source = Path(
                    str(importlib.metadata.distribution(name).locate_file(""))
                )
                (folder / top).symlink_to(source / top)
    return folder


def run(environment: Path, program: str, cwd: Path) -> str:
    """Runs a program with nothing but Python and an environment; returns its output.

    Raises:
        AssertionError: If it fails.
    """
    done = subprocess.run(
        [sys.executable, *FLAGS, "-c", PROGRAM, str(environment), program],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _with_requirements(names: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    left = [*names]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
    return found
