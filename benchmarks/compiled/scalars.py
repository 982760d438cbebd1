"""The scalar instructions of a TPU that decide where a program branches."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

MASK = 0xFFFFFFFF

# A value is named %<unique>_<register>: the same register holds what a loop carries.
_VALUE = re.compile(r"%([sp]\d+)_([sp]\d+)")
_DEFINED = re.compile(r"%([sp]\d+)_([sp]\d+) = ([\w.]+)\s*(.*)", re.DOTALL)
_BRANCH = re.compile(r"%\d+ = sbr\.rel\s*(.*?)\s*target = \$region(\d+)", re.DOTALL)
_STORE = re.compile(r"%\d+ = sst \[smem:\[(#[^%\]]*)\]\]\s*,?\s*(%\S+|\d+)$")
_LOAD = re.compile(r"\[smem:\[(#[^%\]]*)\]\]$")
_GUARDED = re.compile(r"\((!?)(%[\w]+)(?:, (%\w+|\d+))?\),?\s*(.*)", re.DOTALL)


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        name: The operation, such as `sadd.s32`; `branch`, `call`, or `store`.
        writes: What it defines: a value by its unique name, or a place in memory.
        register: Where that is kept.
        operands: Registers (`s3`, `!p1`), places in memory, or numbers, as text.
        target: Of a branch the region, of a call the operation.
        reads: What it needs, by unique names.
        guard: The predicate under which it does anything, or "".
        otherwise: What is written where the predicate does not hold, or "".
    """

    name: str
    writes: str | None
    register: str | None
    operands: tuple[str, ...]
    target: str | None = None
    reads: tuple[str, ...] = ()
    guard: str = ""
    otherwise: str = ""

    @property
    def is_branch(self) -> bool:
        """Whether it may go on elsewhere."""
        return self.name == "branch"


def parse_instruction(text: str) -> Instruction | None:
    """Reads an instruction without its comments; None if no branch can depend on it."""
    if match := _BRANCH.match(text):
        condition = match[1].strip().strip("()").rstrip(",")
        reads = tuple(found[0] for found in _VALUE.findall(condition))
        operands = (_operand(condition),) if condition else ()
        return Instruction("branch", None, None, operands, match[2], reads)
    if match := _STORE.match(text):
        reads = tuple(found[0] for found in _VALUE.findall(match[2]))
        return Instruction(
            "store", match[1], match[1], (_operand(match[2]),), reads=reads
        )
    match = _DEFINED.match(text)
    if match is None:
        return None
    unique, register, name, rest = match.groups()
    reads = tuple(found[0] for found in _VALUE.findall(rest))
    guard = otherwise = ""
    if name == "sld":
        place = _LOAD.search(rest)
        operands = (place[1],) if place else ()
        return Instruction(name, unique, register, operands, reads=operands)
    if guarded := _GUARDED.match(rest):
        guard = guarded[1] + _operand(guarded[2])
        otherwise = _operand(guarded[3]) if guarded[3] else register
        rest = guarded[4]
    operands = tuple(_operand(each) for each in rest.split(",") if each.strip())
    return Instruction(name, unique, register, operands, None, reads, guard, otherwise)


def _operand(text: str) -> str:
    """Returns the register, with `!` if negated, or the number."""
    text = text.strip()
    negated = "!" if text.startswith("!") else ""
    value = _VALUE.search(text)
    return negated + value[2] if value else text


def _signed(value: int) -> int:
    value &= MASK
    return value - (1 << 32) if value >> 31 else value


def _and(left: int | None, right: int | None) -> int | None:
    if left == 0 or right == 0:
        return 0
    return None if left is None or right is None else 1


def _not(value: int | None) -> int | None:
    return None if value is None else int(not value)


_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "sadd": lambda a, b: a + b,
    "ssub": lambda a, b: a - b,
    "smul": lambda a, b: a * b,
    "sand": lambda a, b: a & b,
    "sor": lambda a, b: a | b,
    "sxor": lambda a, b: a ^ b,
    "sshll": lambda a, b: a << min(b, 32),
    "sshrl": lambda a, b: (a & MASK) >> min(b, 32),
    "sshra": lambda a, b: _signed(a) >> min(b, 31),
    "smax": lambda a, b: max(_signed(a), _signed(b)),
    "smin": lambda a, b: min(_signed(a), _signed(b)),
}
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


def evaluate(instruction: Instruction, state: Mapping[str, int | None]) -> int | None:
    """Returns what an instruction computes; None where that is not known.

    Args:
        instruction: A branch answers whether it is taken.
        state: What registers and places in memory hold.
    """

    def value(operand: str) -> int | None:
        if operand.startswith("!"):
            return _not(value(operand[1:]))
        try:
            return int(operand, 0)
        except ValueError:
            return state.get(operand)

    values = [value(each) for each in instruction.operands]
    if instruction.is_branch:
        return values[0] if values else 1
    result = _compute(instruction.name, values)
    if not instruction.guard:
        return result
    holds, otherwise = value(instruction.guard), value(instruction.otherwise)
    if holds is None:
        return result if result == otherwise else None
    return result if holds else otherwise


def _compute(name: str, values: list[int | None]) -> int | None:
    if name in ("smov", "pmov", "sld", "store") or name == "int_to_ptr":
        return values[0] if values else None
    if name == "pneg":
        return _not(values[0])
    if name == "pand":
        return _and(values[0], values[1])
    if name == "pnand":
        return _not(_and(values[0], values[1]))
    if name in ("por", "pnor"):
        either = _not(_and(_not(values[0]), _not(values[1])))
        return _not(either) if name == "pnor" else either
    if name == "scalar_select":
        chosen, yes, no = values
        if chosen is None:
            return yes if yes == no else None
        return yes if chosen else no
    if len(values) != 2 or values[0] is None or values[1] is None:
        return None
    left, right = values[0], values[1]
    base, _, kind = name.partition(".")
    if base == "pxor":
        return int(bool(left) != bool(right))
    if base == "scmp":
        relation, _, kind = kind.partition(".")
        if kind.startswith("s32"):
            left, right = _signed(left), _signed(right)
        else:
            left, right = left & MASK, right & MASK
        return int(_COMPARE[relation](left, right))
    if base in _ARITHMETIC:
        return _ARITHMETIC[base](left, right)
    return None
