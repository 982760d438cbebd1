"""A release, as docs/releasing.md makes it: what it holds, and that it can be used."""

import json
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from dynconv_jax import __version__
from parity_tests.tools.checkout import ROOT

pytestmark = pytest.mark.slow  # builds, and installs JAX


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a program and returns what it printed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """The folder with wheel and sdist, built by the command that the page has."""
    page = (ROOT / "docs/releasing.md").read_text()
    (command,) = re.findall(r"^ +python (-m build .*) dist$", page, re.MULTILINE)
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, *shlex.split(command), folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    """The wheel."""
    return dist / f"dynconv-{__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory) -> Path:
    """Python in an environment that has the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin/python"
    # Of what JAX brings few files are imported, and those are compiled then.
    install = ("install", "--quiet", "--no-compile", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=folder)
    return python


def files(*packages: str) -> set[str]:
    """Returns the files below folders of the checkout."""
    return {
        str(path.relative_to(ROOT))
        for package in packages
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_libraries_and_the_instrument(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if "-info/" not in name}
    instrument = ("__init__", "parity", "passes", "tolerances")
    assert names == {
        *files("dynconv_jax", "dynconv_torch"),
        "_dynconv_version.py",
        *(f"parity_tests/{name}.py" for name in instrument),
    }


def test_the_sdist_holds_the_checkout(dist):
    name = f"dynconv-{__version__}"
    with tarfile.open(dist / f"{name}.tar.gz") as archive:
        held = {member.removeprefix(f"{name}/") for member in archive.getnames()}
    assert held >= files("benchmarks", "parity_tests", "train")
    assert held >= {"CHANGELOG.md", "LICENSE", "README.md", "UPGRADING.md"}
    assert held >= {"constraints.txt", "docs/releasing.md", "docs/training/index.md"}


def test_the_first_example_of_the_readme_runs_on_the_base_alone(fresh, tmp_path):
    readme = (ROOT / "README.md").read_text()
    block = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "example.py").write_text(block)
    run(fresh, "-I", "example.py", cwd=tmp_path)


def test_the_version_is_that_of_the_metadata(fresh, tmp_path):
    program = """
import importlib.metadata, dynconv_jax
print(importlib.metadata.version("dynconv"), dynconv_jax.__version__)
"""
    told = run(fresh, "-I", "-c", program, cwd=tmp_path).split()
    assert told == [__version__, __version__]


def test_what_is_run_from_a_checkout_is_not_installed(fresh, tmp_path):
    program = """
import importlib.util, json
names = "benchmarks", "dynconv_torch", "parity_tests.tolerances", "torch", "train"
print(json.dumps([name for name in names if importlib.util.find_spec(name)]))
"""
    found = json.loads(run(fresh, "-I", "-c", program, cwd=tmp_path))
    assert found == ["dynconv_torch", "parity_tests.tolerances"]
