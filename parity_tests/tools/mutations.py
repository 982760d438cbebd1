"""Small faults that can be planted in a source: a sign, a constant, an axis, a term.

Only what is computed is touched: no text, so no docstring and no message, no
annotation, no decorator, nothing of `__all__`.
"""

import ast
import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
EXTREMES = {"max": "min", "min": "max", "maximum": "minimum", "minimum": "maximum"}

# Calls whose first two axes may be swapped.
OF_AXES = {"moveaxis", "movedim", "swapaxes", "transpose", "permute", "flatten"}

# Keywords that say how to check or to tell, not what to compute.
NOT_COMPUTED = {"strict", "stacklevel"}

# What has types in its brackets, in the name that is given to a type.
OF_TYPES = {"Callable", "Literal", "Mapping", "Sequence", "dict", "list", "tuple"}


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A fault, and where it goes.

    Attributes:
        path: The file, below the root of the checkout.
        line: Where what is replaced begins, from 1.
        start: The same in bytes of the file.
        end: Where it ends, in bytes.
        kind: What kind of fault.
        before: What is replaced, on one line.
        after: What stands there instead.
    """

    path: str
    line: int
    start: int
    end: int
    kind: str
    before: str
    after: str

    def apply(self, source: str) -> str:
        """Returns the source with the fault in it."""
        data = source.encode()
        return (data[: self.start] + self.after.encode() + data[self.end :]).decode()


def mutations_of(source: str, path: str) -> list[Mutation]:
    """Returns every fault that can be planted in a source, in its order.

    Args:
        source: Python source.
        path: What to call the file.

    Example:
        >>> [found.after for found in mutations_of("y = x + 1", "file.py")]
        ['(x - 1)', '(x)', '(2)']
    """
    starts = [0]  # of the lines, in bytes, in which ast counts columns
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def position(line: int, column: int) -> int:
        return starts[line - 1] + column

    found = []
    for node, kind, instead in _faults(ast.parse(source)):
        found.append(
            Mutation(
                path,
                node.lineno,
                position(node.lineno, node.col_offset),
                position(node.end_lineno, node.end_col_offset),
                kind,
                ast.unparse(node),
                _written(instead),
            )
        )
    return found


def _written(node: ast.AST) -> str:
    """Returns the source of a node that may stand anywhere."""
    if isinstance(node, ast.stmt):
        return ast.unparse(node)
    if isinstance(node, ast.Tuple) and any(
        isinstance(part, ast.Slice) for part in node.elts
    ):
        return ", ".join(map(ast.unparse, node.elts))  # an index, which has no brackets
    return f"({ast.unparse(node)})"


def _faults(node: ast.AST) -> Iterator[tuple[Any, str, ast.AST]]:
    """Yields (what to replace, the kind of fault, by what) below a node."""
    yield from _faults_of(node)
    for child in _computed(node):
        yield from _faults(child)


def _computed(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the children of a node in which something is computed."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            yield from node.args.defaults
            yield from (default for default in node.args.kw_defaults if default)
            yield from node.body
        case ast.ClassDef():
            yield from node.body
        case ast.AnnAssign():
            yield from (node.value,) if node.value else ()
        case ast.Assert():
            yield node.test
        case ast.Raise() | ast.JoinedStr():
            return
        case ast.Compare(ops=[ast.In() | ast.NotIn()], comparators=[ast.Tuple()]):
            yield node.left  # of what is looked for among, the order is nothing
        case ast.Call(func=ast.Name("isinstance" | "issubclass")):
            return
        case ast.ExceptHandler():
            yield from node.body
        case ast.Assign(targets=[ast.Name("__all__")]):
            return
        case ast.If(test=ast.Name("TYPE_CHECKING")):
            yield from node.orelse
        case ast.Call() if _name_of(node.func) == "warn":
            return
        case ast.Subscript(value=ast.Name(name)) if name in OF_TYPES:
            return
        case ast.keyword() if node.arg in NOT_COMPUTED:
            return
        case ast.UnaryOp(ast.USub(), ast.Constant()):  # a number as a whole
            return
        case _:
            yield from ast.iter_child_nodes(node)


def _faults_of(node: ast.AST) -> Iterator[tuple[ast.AST, str, ast.AST]]:
    """Yields the faults of one node."""
    match node:
        case ast.BinOp() if type(node.op) in OPERATORS:
            yield node, "operator", _with(node, op=OPERATORS[type(node.op)]())
            yield node, "dropped term", node.left
        case ast.AugAssign() if type(node.op) in OPERATORS:
            yield node, "operator", _with(node, op=OPERATORS[type(node.op)]())
        case ast.BoolOp():
            yield node, "dropped term", _with_values(node, node.values[:-1])
        case ast.Compare(ops=[only]) if type(only) in COMPARISONS:
            yield node, "comparison", _with(node, ops=[COMPARISONS[type(only)]()])
        case ast.UnaryOp(ast.Not()):
            yield node, "dropped not", node.operand
        case ast.UnaryOp(ast.USub()):
            yield node, "sign", node.operand
            if isinstance(node.operand, ast.Constant):
                yield node, "constant", _with(node, operand=_other(node.operand))
        case ast.Constant(value=bool() | int() | float()):
            yield node, "constant", _other(node)
        case ast.Tuple(elts=[first, second, *_], ctx=ast.Load()) if _differ(
            first, second
        ) and not all(map(_is_text, node.elts)):
            yield node, "axes", _with(node, elts=_swapped(node.elts))
        case ast.Call():
            yield from _faults_of_call(node)


def _faults_of_call(node: ast.Call) -> Iterator[tuple[ast.AST, str, ast.AST]]:
    name = _name_of(node.func)
    if name in EXTREMES and len(node.args) > 1:
        func = copy.deepcopy(node.func)
        if isinstance(func, ast.Attribute):
            func.attr = EXTREMES[name]
        elif isinstance(func, ast.Name):
            func.id = EXTREMES[name]
        yield node, "extreme", _with(node, func=func)
    numbers = [_is_number(argument) for argument in node.args]
    if name in OF_AXES and numbers.count(True) >= 2:
        first = numbers.index(True)
        if _differ(*node.args[first : first + 2]):
            args = [*node.args[:first], *_swapped(node.args[first:])]
            yield node, "axes", _with(node, args=args)
    if name == "einsum" and node.args and isinstance(node.args[0], ast.Constant):
        inputs, arrow, output = str(node.args[0].value).rpartition("->")
        if arrow and output[-2:].isalpha() and len(output) > 1:
            turned = inputs + arrow + output[:-2] + output[-1] + output[-2]
            yield node, "axes", _with(node, args=[ast.Constant(turned), *node.args[1:]])


def _is_number(node: ast.AST) -> bool:
    """Whether a node is a number, of either sign."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, int)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _other(node: ast.Constant) -> ast.Constant:
    """Returns another number, or the other truth."""
    value = node.value
    if isinstance(value, bool):
        return ast.Constant(not value)
    assert isinstance(value, (int, float))
    return ast.Constant(value + 1 if isinstance(value, int) else value * 2 or 1.0)


def _name_of(func: ast.expr) -> str:
    match func:
        case ast.Attribute():
            return func.attr
        case ast.Name():
            return func.id
    return ""


def _with(node: Any, **fields: Any) -> Any:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _with_values(node: ast.BoolOp, values: list[ast.expr]) -> ast.expr:
    return values[0] if len(values) == 1 else _with(node, values=values)


def _differ(first: ast.AST, second: ast.AST) -> bool:
    return ast.dump(first) != ast.dump(second)


def _swapped(nodes: list[ast.expr]) -> list[ast.expr]:
    return [nodes[1], nodes[0], *nodes[2:]]
