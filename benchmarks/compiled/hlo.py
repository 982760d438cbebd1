"""Reads the text of a compiled XLA program."""

import dataclasses
import functools
import math
import re
from typing import NamedTuple

_BITS = re.compile(r"[a-z]+(\d+)")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-<>]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-<>]+) = (.*)$")
_REFERENCE = re.compile(r"%([\w.\-<>]+)")
_ALIAS = re.compile(r"\{[\d, ]*\}: \(\d+, \{[\d, ]*\}")


class Array(NamedTuple):
    """An array as it lies in memory.

    Attributes:
        dtype: Such as `bf16`.
        shape: Its shape.
        layout: What stands in its braces, such as `1,0:T(8,128)(2,1)S(1)`.
    """

    dtype: str
    shape: tuple[int, ...]
    layout: str = ""

    @property
    def space(self) -> int:
        """The memory it is in; 0 is that of the chip at large."""
        found = _SPACE.search(self.layout)
        return int(found[1]) if found else 0

    @property
    def size(self) -> int:
        """The bytes it takes, those that fill up its tiles included."""
        shape = list(self.shape)
        order = self.layout.partition(":")[0]
        tile = _TILE.search(self.layout)
        if tile and order:
            fastest = [int(axis) for axis in order.split(",")]
            sizes = [int(side) for side in tile[1].split(",")]
            for axis, side in zip(fastest, reversed(sizes), strict=False):
                shape[axis] = -(-shape[axis] // side) * side
        if self.dtype == "pred":
            return math.prod(shape)
        bits = _BITS.match(self.dtype)  # tokens and the like have none
        return math.prod(shape) * int(bits[1]) // 8 if bits else 0


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction.

    Attributes:
        name: Its name.
        opcode: What it does, such as `fusion`.
        results: Its results, of nested tuples in one row.
        operands: The names of its operands.
        attributes: What stands behind them.
        text: What stands between the parentheses.
        is_root: Whether it is the result of its computation.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    text: str
    is_root: bool = False

    def called(self, attribute: str) -> str | None:
        """Returns the computation that an attribute names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-<>]+)", self.attributes)
        return found[1] if found else None


class Computation(dict[str, Operation]):
    """Operations by name, in order."""

    @property
    def root(self) -> Operation:
        """The one whose result is that of the computation."""
        return next(each for each in self.values() if each.is_root)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        computations: Its computations by name.
        entry: The name of that which is called.
        aliased: How many of its arguments share memory with results.
    """

    computations: dict[str, Computation]
    entry: str
    aliased: int

    @property
    def arguments(self) -> int:
        """How many arguments it reads; JAX leaves out those that it does not."""
        entry = self.computations[self.entry].values()
        return sum(each.opcode == "parameter" for each in entry)

    @functools.cached_property
    def trips(self) -> tuple[dict[str, int], tuple[str, ...]]:
        """Computation → how often it runs, and the loops whose turns are unknown.

        What fusions and reductions call is not among them.
        """
        times: dict[str, int] = {}
        unknown: list[str] = []

        def visit(name: str, count: int) -> None:
            times[name] = times.get(name, 0) + count
            computation = self.computations[name]
            for operation in computation.values():
                if operation.opcode == "while":
                    turns = self._turns(operation, computation)
                    if turns is None:
                        unknown.append(operation.name)
                        turns = 1
                    visit(operation.called("body") or "", count * turns)
                elif operation.opcode in ("call", "async-start"):
                    called = operation.called("to_apply") or operation.called("calls")
                    if called in self.computations:
                        visit(called, count)

        visit(self.entry, 1)
        return times, tuple(unknown)

    def _turns(self, loop: Operation, outside: Computation) -> int | None:
        """Returns how often a loop turns, if it counts up to a constant."""
        known = re.search(r'known_trip_count":\s*\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[loop.called("condition") or ""]
        root = condition.root
        if root.opcode == "fusion":
            inner = self.computations[root.called("calls") or ""].root
        else:
            inner = root
        if inner.opcode != "compare" or "direction=LT" not in inner.attributes:
            return None
        numbers = [
            int(each.text)
            for each in condition.values()
            if each.opcode == "constant" and re.fullmatch(r"\d+", each.text)
        ]
        return numbers[0] if len(numbers) == 1 else None


def parse_program(text: str) -> Program:
    """Reads `Compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    current, entry = Computation(), ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations[head[2]] = Computation()
            entry = head[2] if head[1] else entry
        elif match := _INSTRUCTION.match(line):
            operation = _parse_operation(match[2], match[3], bool(match[1]))
            if operation is not None:
                current[operation.name] = operation
    if not entry:
        raise ValueError(f"`text` ({text[:40]!r}…) has no entry computation")
    header = text.partition("\n")[0]
    aliases = re.search(r"input_output_alias=\{(.*?)\}, \w+=", header)
    return Program(
        computations, entry, len(_ALIAS.findall(aliases[1])) if aliases else 0
    )


def _parse_operation(name: str, text: str, is_root: bool) -> Operation | None:
    kind, rest = _split_type(text)
    match = re.match(r"\s*([\w\-]+)\(", rest)
    if match is None:
        return None
    end = _closing(rest, match.end() - 1)
    inside = rest[match.end() : end]
    return Operation(
        name,
        match[1],
        arrays_of(kind),
        tuple(_REFERENCE.findall(inside)),
        rest[end + 1 :],
        inside,
        is_root,
    )


def arrays_of(kind: str) -> tuple[Array, ...]:
    """Returns the arrays of a type, of nested tuples in one row."""
    kind = re.sub(r"/\*.*?\*/", "", kind)
    return tuple(
        Array(dtype, tuple(int(side) for side in re.findall(r"\d+", shape)), layout)
        for dtype, shape, layout in _ARRAY.findall(kind)
    )


def _split_type(text: str) -> tuple[str, str]:
    """Splits `type opcode(…)` behind the type."""
    if text.startswith("("):
        end = _closing(text, 0) + 1
        return text[:end], text[end:]
    kind, _, rest = text.partition(" ")
    return kind, rest


def _closing(text: str, start: int) -> int:
    """Returns where the parenthesis that opens at `start` closes."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if not depth:
            return index
    return len(text)
