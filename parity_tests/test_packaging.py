"""What is installed, and what is said where something is not."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib

import pytest

import _dynconv_version
import dynconv_jax
from parity_tests.tools.checkout import ROOT
from parity_tests.tools.imports import imports_of
from train.requirements import MODULES

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, WHEEL = PYPROJECT["project"], PYPROJECT["tool"]["hatch"]["build"]["targets"]


def bare_python(*arguments: str) -> subprocess.CompletedProcess:
    """Runs Python from the root of the checkout, with nothing installed."""
    return subprocess.run(
        [sys.executable, "-S", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[><=]", requirement)[0] for requirement in requirements}


def test_the_version_is_that_of_the_build():
    assert PROJECT["dynamic"] == ["version"]
    path = ROOT / PYPROJECT["tool"]["hatch"]["version"]["path"]
    assert path.samefile(_dynconv_version.__file__)
    assert dynconv_jax.__version__ is _dynconv_version.__version__


@pytest.mark.parametrize("package", ["dynconv_jax", "dynconv_torch"])
def test_the_version_of_a_package_is_said_elsewhere(package):
    source = (ROOT / package / "__init__.py").read_text()
    assert "_dynconv_version.__version__" in imports_of(source, package)
    assert not re.search(r"^__version__", source, re.MULTILINE)


def test_the_changelog_knows_the_version():
    found = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert [name for name in found if name != "Unreleased"][0] == (
        _dynconv_version.__version__
    )


def test_the_instrument_comes_with_all_that_it_imports():
    files = {"parity_tests/parity.py", "parity_tests/__init__.py"}
    names = imports_of((ROOT / "parity_tests/parity.py").read_text(), "parity_tests")
    for name in names:
        if name.startswith("parity_tests."):
            files.add(f"parity_tests/{name.split('.')[1]}.py")
    for path in files:
        inside = imports_of((ROOT / path).read_text(), "parity_tests")
        assert {name for name in inside if name.startswith("parity_tests.")} <= names
    included = set(WHEEL["wheel"]["only-include"])
    assert {path for path in included if path.startswith("parity_tests")} == files
    assert included - files == {"_dynconv_version.py", "dynconv_jax", "dynconv_torch"}


def test_the_version_is_told_without_an_extra():
    done = bare_python("-m", "train", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"dynconv {_dynconv_version.__version__}\n"


def test_training_says_what_is_not_installed():
    done = bare_python("-m", "train", "--steps=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert all(name in done.stderr for name in MODULES)
    assert done.stderr.endswith('pip install -c constraints.txt -e ".[train]"\n')


def test_training_asks_for_all_that_its_extra_has():
    extra = PROJECT["optional-dependencies"]["train"]
    assert distributions(PROJECT["dependencies"] + extra) == MODULES.keys()


@pytest.mark.parametrize("name", MODULES)
def test_the_module_is_that_of_the_distribution(name):
    files = importlib.metadata.files(name)
    assert files
    path = MODULES[name].replace(".", "/")
    assert any(str(file).startswith(f"{path}/") for file in files)


def test_the_twin_says_what_is_not_installed():
    done = bare_python("-c", "import dynconv_torch")
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last == (
        "ImportError: dynconv_torch needs PyTorch, which is not installed: "
        "pip install 'dynconv[torch]'"
    )


def test_a_torch_that_cannot_be_imported_is_not_called_missing(tmp_path):
    (tmp_path / "torch.py").write_text("import a_part_of_torch")
    program = "import sys; sys.path.insert(0, sys.argv[1]); import dynconv_torch"
    done = bare_python("-c", program, str(tmp_path))
    assert "ModuleNotFoundError: No module named 'a_part_of_torch'" in done.stderr
