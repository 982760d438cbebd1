"""Which tests concern a module of the libraries, the nearest first."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from parity_tests.tools.checkout import ROOT
from parity_tests.tools.imports import imports_of

LIBRARIES = "dynconv_jax", "dynconv_torch"


def nearest_tests(module: str, root: Path = ROOT) -> list[tuple[int, str]]:
    """Returns the files of tests from which a module can be reached by imports.

    Args:
        module: The file of the module, below the root.
        root: The root of the checkout.

    Returns:
        (steps, file) for each file of tests, the nearest first: 0 steps are those that
        have the name and the folder of the module, and then it is the number of imports
        to follow. Among equals, those come first that lie in the same folder, and those
        that import less.
    """
    graph = _graph(root)
    users: dict[str, set[str]] = {}
    for user, used in graph.items():
        for file in used:
            users.setdefault(file, set()).add(user)
    steps, reached, edge = {module: 0}, 0, {module}
    while edge:
        reached += 1
        edge = {user for file in edge for user in users.get(file, ())} - steps.keys()
        steps.update(dict.fromkeys(edge, reached))
    folder = Path("parity_tests", *Path(module).parts[1:-1])
    found = []
    for file, distance in steps.items():
        path = Path(file)
        if path.name.startswith("test_"):
            is_beside = path.parent == folder
            is_named = path.stem.startswith(f"test_{Path(module).stem}")
            distance = 0 if is_beside and is_named else distance
            found.append((distance, not is_beside, len(graph[file]), file))
    return [(distance, file) for distance, *_, file in sorted(found)]


@functools.cache
def _graph(root: Path) -> dict[str, set[str]]:
    """Returns the files that each file of libraries and tests imports, below the root.

    A name that a package passes on is followed to the file that has it.
    """
    return {
        str(path.relative_to(root)): {
            str(file.relative_to(root))
            for name in _names(path, root)
            for file in _files_of(name, root)
        }
        - {str(path.relative_to(root))}
        for package in (*LIBRARIES, "parity_tests")
        for path in (root / package).rglob("*.py")
        if path.name != "__init__.py"
    }


def _names(path: Path, root: Path) -> Iterator[str]:
    """Yields the dotted names that a file imports, or takes from a library by a dot."""
    source = path.read_text()
    yield from imports_of(source, ".".join(path.relative_to(root).parent.parts))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in LIBRARIES:
                yield f"{node.value.id}.{node.attr}"


def _files_of(name: str, root: Path) -> Iterator[Path]:
    """Yields the file that a dotted name is in, if it is of ours."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        path = root.joinpath(*parts[:end])
        if path.with_suffix(".py").is_file():
            yield path.with_suffix(".py")
            return
        if (path / "__init__.py").is_file():
            passed_on = _passed_on(path / "__init__.py", ".".join(parts[:end]))
            if end < len(parts) and parts[end] in passed_on:
                yield from _files_of(passed_on[parts[end]], root)
            return


@functools.cache
def _passed_on(path: Path, package: str) -> dict[str, str]:
    """Returns where each name is from that a package passes on."""
    names = imports_of(path.read_text(), package)
    return {name.rpartition(".")[2]: name for name in names}
