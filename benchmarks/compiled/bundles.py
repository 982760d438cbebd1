"""Reads the static schedule of a TPU program from the compiler's dump.

A TPU issues one VLIW bundle a cycle, in the order that the compiler has written down:
so the bundles that are issued, counted through loops and skipped regions, are the
cycles of a program that never waits for memory. How often a loop turns, and which
regions its first and last turns skip, is decided by scalar instructions; those that
branches depend on are followed here, all others only counted.
"""

import bisect
import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from benchmarks.compiled.scalars import MASK, Instruction, evaluate, parse_instruction

# The program whose bundles call those of the operations.
ENTRY = "TLP"
# Bundles that are still issued after a branch that is taken.
DELAY_SLOTS = 4
# A program that has not ended after following so many bundles is given up.
LIMIT = 5_000_000

_LINE = re.compile(r"^\s*(?:0x)?([0-9a-f]+)\s+(?:[A-Z]{2})?\s*:\s*[> ]*\{")
_COMMENT = re.compile(r"/\*(.*?)\*/", re.DOTALL)
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
_CALLED = re.compile(r"/\* (?:%([\w.\-]+) =|(<[\w\-]+>))")
_FILE = re.compile(r"\d+-(.+)-\d+-final_bundles\.txt")


class Bundles(NamedTuple):
    """The bundles of one operation.

    Attributes:
        count: How many there are.
        events: Bundle → the instructions in it that are followed.
        regions: The number of a region → its first bundle.
    """

    count: int
    events: dict[int, list[Instruction]]
    regions: dict[str, int]


@dataclasses.dataclass
class Schedule:
    """How many bundles a program issues.

    Attributes:
        bundles: The number, those of called operations included.
        unknown: What could not be followed: loops whose end depends on data, counted
            once, and operations without a dump, not counted.
        operations: Operation → the bundles of all its calls.
    """

    bundles: int = 0
    unknown: list[str] = dataclasses.field(default_factory=list)
    operations: dict[str, int] = dataclasses.field(default_factory=dict)


def parse_bundles(text: str) -> Bundles:
    """Reads a dump `…-final_bundles.txt`."""
    lines: list[str] = []
    for line in text.splitlines():
        if _LINE.match(line):
            lines.append(line)
        elif lines:  # a comment of several lines
            lines[-1] += "\n" + line
    regions: dict[str, int] = {}
    parsed: list[list[Instruction]] = []
    for index, line in enumerate(lines):
        for comment in _COMMENT.findall(line):
            regions |= dict.fromkeys(_REGION.findall(comment), index)
        content = line[line.index("{") + 1 :]
        instructions = []
        for part in content.split(";;"):
            plain = _COMMENT.sub("", part).strip().rstrip("}").strip()
            called = _CALLED.search(part) if "inlined_call " in plain + " " else None
            instruction = parse_instruction(plain)
            if called:
                name = called[1] or called[2]
                instructions.append(Instruction("call", None, None, (), name))
            elif instruction is not None:
                instructions.append(instruction)
        parsed.append(instructions)
    return Bundles(len(lines), _followed(parsed), regions)


def _followed(parsed: list[list[Instruction]]) -> dict[int, list[Instruction]]:
    """Returns calls, branches, and what decides whether these are taken."""
    writers: dict[str, list[Instruction]] = {}
    for instruction in (each for bundle in parsed for each in bundle):
        if instruction.writes is not None:
            writers.setdefault(instruction.writes, []).append(instruction)
    wanted = [each for bundle in parsed for each in bundle if each.is_branch]
    kept = {id(each) for each in wanted}
    while wanted:
        for name in wanted.pop().reads:
            for writer in writers.get(name, ()):
                if id(writer) not in kept:
                    kept.add(id(writer))
                    wanted.append(writer)
    followed = {}
    for index, bundle in enumerate(parsed):
        found = [each for each in bundle if id(each) in kept or each.name == "call"]
        if found:
            followed[index] = found
    return followed


def issue(bundles: Bundles) -> tuple[int, Counter[str], list[str]]:
    """Follows a program.

    Returns:
        The bundles issued, how often each operation is called, and the loops whose end
        is not known: they are left after one turn, or when there is no end to them.
    """
    order = sorted(bundles.events)
    state: dict[str, int | None] = {}
    calls: Counter[str] = Counter()
    unknown: list[str] = []
    issued = at = followed = 0

    def execute(index: int) -> int | None:
        """Executes a bundle; returns where it branches to, if it does."""
        target = None
        writes = []
        for instruction in bundles.events.get(index, ()):
            if instruction.name == "call":
                calls[instruction.target or ""] += 1
            elif instruction.is_branch:
                goal = bundles.regions.get(instruction.target or "")
                taken = evaluate(instruction, state)
                if goal is None or (taken is None and goal <= index):
                    unknown.append(f"a loop to region {instruction.target}")
                elif taken:
                    target = goal
            elif instruction.name != "sphi":  # whose register has the value already
                writes.append((instruction.register, evaluate(instruction, state)))
        for register, value in writes:
            if register is not None:
                state[register] = None if value is None else value & MASK
        return target

    while at < bundles.count:
        position = bisect.bisect_left(order, at)
        if position == len(order):
            issued += bundles.count - at
            break
        event = order[position]
        issued += event + 1 - at
        target = execute(event)
        at = event + 1
        followed += 1
        if target is not None:
            for index in range(at, min(at + DELAY_SLOTS, bundles.count)):
                execute(index)
            issued += DELAY_SLOTS
            at = target
        if followed > LIMIT:
            unknown.append("a loop without end")
            break
    return issued, calls, sorted(set(unknown))


def read_schedule(
    folder: Path,
    twins: Mapping[str, Sequence[str]] = MappingProxyType({}),
    exchanges: Collection[str] = (),
) -> Schedule:
    """Reads the dumps of one program.

    Args:
        folder: What `--xla_jf_dump_to` named, with the dumps of `final_bundles`.
        twins: Operation → those that share its code, of which one has a dump.
        exchanges: The operations that exchange something with other chips. Neither
            they nor the loops of the program that wait for other chips are counted.

    Raises:
        FileNotFoundError: If the program itself is not among them.
    """
    texts = {
        match[1]: path
        for path in sorted(folder.iterdir())
        if (match := _FILE.fullmatch(path.name)) and "schedule" not in path.name
    }
    if ENTRY not in texts:
        raise FileNotFoundError(f"no final bundles of a program in {folder}")
    schedule = Schedule()
    issued: dict[str, tuple[int, Counter[str], list[str]]] = {}

    def total(name: str) -> int:
        if name in exchanges:
            return 0
        if name not in texts:
            name = next((each for each in twins.get(name, ()) if each in texts), name)
        if name not in texts:
            schedule.unknown.append(f"no bundles of {name}")
            return 0
        if name not in issued:
            issued[name] = issue(parse_bundles(texts[name].read_text()))
            if not exchanges or name != ENTRY:
                schedule.unknown += [f"{each} in {name}" for each in issued[name][2]]
        own, calls, _ = issued[name]
        below = {called: total(called) * times for called, times in calls.items()}
        if name == ENTRY:
            schedule.operations = below
        return own + sum(below.values())

    schedule.bundles = total(ENTRY)
    return schedule
