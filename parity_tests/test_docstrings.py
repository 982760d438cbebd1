"""Docstrings: every example runs, and every public name has one."""

import doctest
import importlib
import inspect
import io
import types

import pytest
import torch

import dynconv_jax
import dynconv_torch
from parity_tests.tools.checkout import ROOT
from parity_tests.tools.slow import thinned

DEFAULT_NUMERICS = True  # the examples are to run as a user runs them


# Results, warnings and markers: they are met in the examples of what makes them.
WITHOUT_EXAMPLE = {
    "Assignment",
    "DeadExpertWarning",
    "GateSummary",
    "RouterOutput",
    "RouterSummary",
    "RoutingCollapseWarning",
    "Temperature",
}


def module_names() -> list[str]:
    """Returns the modules whose examples are run."""
    names = ["parity_tests.parity", "parity_tests.passes"]
    for package in ("dynconv_jax", "dynconv_torch", "train"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def run_examples(module: types.ModuleType) -> str:
    """Runs the examples of a module; returns the report of those that fail."""
    report = io.StringIO()
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder().find(module):
        runner.run(test, out=report.write)
    return report.getvalue()


def public_names() -> list[tuple[types.ModuleType, str]]:
    """Returns the classes and functions that the two packages export."""
    return [
        (package, name)
        for package in (dynconv_jax, dynconv_torch)
        for name in package.__all__
        if inspect.isclass(getattr(package, name))
        or inspect.isroutine(getattr(package, name))
    ]


# Their examples build whole networks.
DEAR = [
    f"{package}.models.{name}"
    for package in ("dynconv_jax", "dynconv_torch")
    for name in ("dymn", "efficientnet_cc", "mobilenet_v2", "mobilenet_v3", "resnet")
]


@pytest.mark.parametrize(
    "name",
    thinned(module_names(), *(name for name in module_names() if name not in DEAR)),
)
def test_examples_of_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # examples may name files
    torch.manual_seed(0)
    report = run_examples(importlib.import_module(name))
    assert not report, report


@pytest.mark.parametrize("answer", ["2", "3"])
def test_wrong_example_is_reported(answer):
    module = types.ModuleType("sample", f"Sample.\n\n>>> 1 + 1\n{answer}\n")
    assert bool(run_examples(module)) == (answer == "3")


def test_wrong_example_of_a_method_is_reported():
    module = types.ModuleType("sample")
    source = "class Sample:\n  def method(self):\n    'Adds.\\n\\n>>> 1 + 1\\n3'"
    exec(source, vars(module))
    assert "Got:\n    2" in run_examples(module)


@pytest.mark.parametrize("package, name", public_names())
def test_public_name_has_a_docstring_of_its_own(package, name):
    item = getattr(package, name)
    # A class without one would answer with its base's.
    text = vars(item).get("__doc__") if inspect.isclass(item) else item.__doc__
    assert text and text.strip()


@pytest.mark.parametrize(
    "package, name",
    [pair for pair in public_names() if pair[1] not in WITHOUT_EXAMPLE],
)
def test_public_name_has_an_example(package, name):
    item = getattr(package, name)
    documentation = [item.__doc__]
    if inspect.isclass(item):
        documentation.append(vars(item).get("__init__", item).__doc__)
    assert any(">>>" in (text or "") for text in documentation)


def test_names_exempt_from_an_example_exist():
    assert WITHOUT_EXAMPLE <= set(dynconv_jax.__all__)
