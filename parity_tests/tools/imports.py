"""What a source imports, and so which files of tests need PyTorch."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from parity_tests.tools.checkout import ROOT

TORCH = {"torch", "dynconv_torch"}
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda


def imports_of(source: str, package: str, *, inside_functions: bool = True) -> set[str]:
    """Returns the dotted names that a source imports.

    Args:
        source: Python source.
        package: The dotted package that the source is in, for relative imports.
        inside_functions: Whether those count that are imported when a function runs.
    """
    names = set()
    for node in _nodes(ast.parse(source), inside_functions):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                above = package.split(".")
                above = above[: len(above) - node.level + 1]
                module = ".".join([*above, module] if module else above)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def _nodes(tree: ast.AST, inside_functions: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if inside_functions or not isinstance(child, FUNCTIONS):
            yield child
            yield from _nodes(child, inside_functions)


@functools.cache
def needs_torch(path: Path) -> bool:
    """Whether a file can be imported only where PyTorch is installed.

    Args:
        path: The file, in the checkout.

    Returns:
        Whether it, or a module of tests or benchmarks that it imports, imports PyTorch
        or the twin. A test may import them when it runs, and then fails without them.
    """
    package = ".".join(path.relative_to(ROOT).parent.parts)
    names = imports_of(path.read_text(), package, inside_functions=False)
    if any(name.partition(".")[0] in TORCH for name in names):
        return True
    return any(needs_torch(file) for name in names for file in _files_of(name))


def _files_of(name: str) -> Iterator[Path]:
    """Yields the file of tests or benchmarks that a dotted name is in, if it is."""
    parts = name.split(".")
    if parts[0] in ("benchmarks", "parity_tests"):
        for end in (len(parts), len(parts) - 1):
            file = ROOT.joinpath(*parts[:end]).with_suffix(".py")
            if file.is_file():
                yield file
