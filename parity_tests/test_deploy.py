"""The page on deployment, followed step by step: what it says to type is typed."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import torch  # noqa: F401 -- what the page exports with

from parity_tests.tools import environments
from parity_tests.tools.checkout import ROOT

PAGE = ROOT / "docs" / "deploy.md"
PROGRAM = re.compile(r'^```python title="(.*?)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)

# What each program of the page is to find installed.
INSTALLED = {
    "with_jax.py": ("jax", "flatbuffers"),
    "with_onnxruntime.py": ("onnxruntime",),
    "with_torch.py": ("torch", "numpy"),
}


def programs() -> dict[str, str]:
    """Returns the programs of the page by the names of their files."""
    return dict(PROGRAM.findall(PAGE.read_text()))


def type_command(command: str, cwd) -> None:
    """Runs a command of the page."""
    program, *arguments = shlex.split(command)
    assert program == "python"
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_page_leads_from_a_run_to_three_runtimes_that_agree(tmp_path):
    for command in re.findall(r"^ {4}(python .*)$", PAGE.read_text(), re.MULTILINE):
        type_command(command, tmp_path)
    folder = tmp_path / "runs" / "digits" / "export"
    listed = PAGE.read_text().partition("## Pictures")[0]
    table = set(re.findall(r"^\| `([\w.]+)` \|", listed, re.MULTILINE))
    assert {path.name for path in folder.iterdir()} == table
    code = programs()
    exec(code.pop("pictures.py").replace("pictures.npy", f"{folder}/pictures.npy"), {})
    assert code.keys() == INSTALLED.keys()
    printed = []
    for name, installed in INSTALLED.items():
        place = tmp_path / name.removesuffix(".py")
        place.mkdir()
        environments.environment(place, *installed)
        printed.append(environments.run(place, code[name], folder))
    assert len(set(printed)) == 1
    digits = [int(digit) for digit in re.findall(r"\d", printed[0])]
    right = [*range(10), *range(7)]  # as the data set begins
    assert sum(a == b for a, b in zip(digits, right, strict=True)) > 12
