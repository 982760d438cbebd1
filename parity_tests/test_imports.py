"""Who imports whom: the frameworks stay apart, and the arrows run one way."""

import subprocess
import sys
from pathlib import Path

import pytest

from parity_tests.tools.checkout import ROOT
from parity_tests.tools.imports import imports_of, needs_torch

# What must not be in a process that imported the package.
FORBIDDEN = {
    "dynconv_jax": {"torch", "dynconv_torch", "train", "benchmarks", "parity_tests"},
    "dynconv_torch": {
        *("jax", "jaxlib", "flax", "optax"),
        *("dynconv_jax", "train", "benchmarks", "parity_tests"),
        "torch._dynamo",  # PyTorch's compiler, which takes as long to import as PyTorch
    },
    "train": {"torch", "dynconv_torch", "benchmarks", "parity_tests"},
}

LIBRARY = {
    "functional": 0,
    "initializers": 0,
    "checks": 0,
    "scheduled": 1,
    "logit_noise": 0,
    "gating": 2,
    "routing": 3,
    "layers": 4,
    "models": 5,
    "weights": 6,
    "diagnostics": 6,
    "multiply_adds": 6,
    "export": 7,
}

# A room imports from itself and from rooms of lower rank.
RANKS = {
    "dynconv_jax": LIBRARY,
    "dynconv_torch": LIBRARY,
    "train": {
        "printable": 0,
        "errors": 1,
        "flags": 2,
        "requirements": 2,
        "data": 3,
        "machines": 3,
        "learning": 4,
        "storage": 4,
        "showing": 5,
        "commands": 6,
        "loop": 6,
        "trained": 7,
        "__main__": 7,
    },
}


def run_python(program: str, *arguments: str) -> None:
    """Runs a program in a fresh interpreter, from the root of the repository."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def modules_of(package: str) -> list[str]:
    """Returns the dotted names of all modules of a package, from its files."""
    names = []
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


# Each module is the first of its package to be imported; the others are forgotten. What
# the package itself imports comes in its order in any case, and once is enough.
IMPORT_EACH_MODULE = """
import importlib, pkgutil, sys
package = sys.argv[1]
names = [package]
root = importlib.import_module(package)
at_once = {name for name in sys.modules if name != package}
names += [m.name for m in pkgutil.walk_packages(root.__path__, f"{package}.")]
assert sorted(names) == sys.argv[3].split(), names
for name in [each for each in names if each not in at_once]:
    for loaded in [m for m in sys.modules if m.partition(".")[0] == package]:
        del sys.modules[loaded]
    importlib.import_module(name)
    found = set(sys.argv[2].split()) & set(sys.modules)
    assert not found, f"{name} imports {found}"
"""


@pytest.mark.parametrize("package", FORBIDDEN)
def test_each_module_imports_first_and_nothing_forbidden(package):
    run_python(
        IMPORT_EACH_MODULE,
        package,
        " ".join(FORBIDDEN[package]),
        " ".join(sorted(modules_of(package))),
    )


def imports_by_module(package: str) -> dict[str, set[str]]:
    """Returns what each module of a package imports, by the module's name."""
    found = {}
    for name in modules_of(package):
        path = ROOT / Path(*name.split("."))
        if path.is_dir():
            path, inside = path / "__init__.py", name
        else:
            path, inside = path.with_suffix(".py"), name.rpartition(".")[0]
        found[name] = imports_of(path.read_text(), inside)
    return found


@pytest.mark.parametrize(
    "source, expected",
    [
        ("import torch.nn as nn", {"torch.nn"}),
        ("from torch import nn, Tensor", {"torch.nn", "torch.Tensor"}),
        ("def f():\n    import torch", {"torch"}),
        ("from . import layers", {"package.inner.layers"}),
        ("from .layers import Conv", {"package.inner.layers.Conv"}),
        ("from ..routing import Router", {"package.routing.Router"}),
        ('"""import torch"""', set()),
    ],
)
def test_every_form_of_import_is_found(source, expected):
    assert imports_of(source, "package.inner") == expected


def test_imports_of_functions_are_told_from_those_of_the_module():
    source = (
        "import a\nif x:\n    import b\ndef f():\n    import c\nclass D:\n    import d"
    )
    assert imports_of(source, "package", inside_functions=False) == {"a", "b", "d"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("parity_tests/parity.py", True),  # imports it
        ("parity_tests/test_onnx.py", True),
        ("parity_tests/layers/test_od_conv_in_use.py", True),
        ("parity_tests/tools/warehouse_pairs.py", True),  # imports what imports it
        ("parity_tests/tools/cases.py", False),  # imports it when asked for a twin
        ("parity_tests/tolerances.py", False),
        ("parity_tests/benchmarks/test_timing.py", True),  # by way of benchmarks
        ("parity_tests/train/test_loop.py", False),
        ("parity_tests/conftest.py", False),
    ],
)
def test_which_files_need_torch(path, expected):
    assert needs_torch(ROOT / path) == expected


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_source_imports_what_is_forbidden(package):
    for module, imported in imports_by_module(package).items():
        found = {name.partition(".")[0] for name in imported} & FORBIDDEN[package]
        assert not found, f"{module} imports {found}"


def rooms_crossed(package: str) -> list[tuple[str, str, str]]:
    """Returns (module, its room, the room it imports from) for imports between rooms.

    An import from the package's root counts as one from the room `""`.
    """
    crossed = []
    for module, imported in imports_by_module(package).items():
        room = module.removeprefix(package).lstrip(".").partition(".")[0]
        if not room:  # the public names, from everywhere
            continue
        for name in sorted(imported):
            top, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if top == package and other != room:
                crossed.append((module, room, other))
    return crossed


@pytest.mark.parametrize("package", RANKS)
def test_every_module_is_in_a_room_with_a_rank(package):
    inside = [name.split(".")[1] for name in modules_of(package) if "." in name]
    assert inside and set(inside) <= RANKS[package].keys()


@pytest.mark.parametrize("package", RANKS)
def test_rooms_import_only_from_rooms_below(package):
    ranks = RANKS[package]
    wrong = [
        f"{module} imports from {other or package}"
        for module, room, other in rooms_crossed(package)
        if other not in ranks or ranks[other] >= ranks[room]
    ]
    assert not wrong


def circles(imported: dict[str, set[str]]) -> set[str]:
    """Returns the modules that import themselves by way of others."""

    def module_of(name: str) -> str:
        return name if name in imported else name.rpartition(".")[0]

    direct = {
        module: {module_of(name) for name in names} & imported.keys() - {module}
        for module, names in imported.items()
    }
    reached = {module: set(others) for module, others in direct.items()}
    for _ in direct:
        for others in reached.values():
            others.update(*(direct[other] for other in others))
    return {module for module, others in reached.items() if module in others}


@pytest.mark.parametrize(
    ("imported", "expected"),
    [
        ({"p.a": {"p.b.f"}, "p.b": {"p.c.g"}, "p.c": {"os"}}, set()),
        ({"p.a": {"p.b.f"}, "p.b": {"p.a"}, "p.c": {"p.a.f"}}, {"p.a", "p.b"}),
        (
            {"p.a": {"p.b"}, "p.b": {"p.c.f"}, "p.c": {"p.a.f"}},
            {"p.a", "p.b", "p.c"},
        ),
    ],
)
def test_a_circle_of_imports_is_found(imported, expected):
    assert circles(imported) == expected


@pytest.mark.parametrize("package", RANKS)
def test_no_module_imports_itself_by_way_of_others(package):
    assert circles(imports_by_module(package)) == set()


@pytest.mark.parametrize("package", ["dynconv_jax", "dynconv_torch"])
def test_layers_and_models_do_import_from_below(package):
    rooms = {(room, other) for _, room, other in rooms_crossed(package)}
    assert {("layers", "functional"), ("models", "layers")} <= rooms


def test_train_imports_from_dynconv_jax_only():
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    imported = set().union(*imports_by_module("train").values())
    assert {name.partition(".")[0] for name in imported} & ours <= {
        "dynconv_jax",
        "train",
    }
