"""Operations that are the same but for their names: their schedules are dumped once."""

import re
from typing import Any

from benchmarks.compiled.hlo import Computation, Operation, Program

_METADATA = re.compile(r",? ?metadata=\{(?:[^{}\"]|\"(?:[^\"\\]|\\.)*\")*\}")
_WINDOW = re.compile(r'"window_config":\{[^{}]*\}')
_NAMES = re.compile(r"%[\w.\-<>]+|channel_id=\d+")
_CALLED = ("calls", "to_apply", "condition", "body")


def twins(program: Program) -> dict[str, list[str]]:
    """Returns for each operation that has any the names of those like it.

    A compiler that has compiled an operation takes the code for the next one that has
    the same operands and does the same.

    Args:
        program: As compiled.
    """
    alike: dict[Any, list[str]] = {}
    for computation in program.computations.values():
        for operation in computation.values():
            key = _likeness(operation, computation, program)
            alike.setdefault(key, []).append(operation.name)
    return {
        name: [each for each in names if each != name]
        for names in alike.values()
        for name in names
        if len(names) > 1
    }


def _likeness(operation: Operation, computation: Computation, program: Program) -> Any:
    """Returns what two operations have in common that compile to the same code."""
    operands = tuple(
        computation[name].results if name in computation else None
        for name in operation.operands
    )
    return operands, _work(operation, program)


def _work(operation: Operation, program: Program) -> Any:
    attributes, _, config = operation.attributes.partition(", backend_config=")
    window = _WINDOW.search(config)
    called = tuple(
        _body(program.computations[name], program)
        for attribute in _CALLED
        if (name := operation.called(attribute)) in program.computations
    )
    return (
        operation.opcode,
        operation.results,
        operation.text if operation.opcode in ("parameter", "constant") else "",
        _NAMES.sub("", _METADATA.sub("", attributes)),
        window[0] if window else "",
        called,
    )


def _body(computation: Computation, program: Program) -> Any:
    numbers = {name: index for index, name in enumerate(computation)}
    return tuple(
        (
            tuple(numbers.get(name) for name in each.operands),
            _work(each, program),
        )
        for each in computation.values()
    )
