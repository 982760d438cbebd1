"""What a compiled program moves and computes: bytes, arithmetic, collectives."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator

from benchmarks.compiled.hlo import Array, Computation, Operation, Program

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
    "collective-broadcast",
)

# What moves nothing: names for what is there, ends of what was started before.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "call", "conditional", "partition-id", "replica-id", "opt-barrier"),
}
# Calls of the compiler's own that only name memory.
_NO_CALLS = ("AllocateBuffer", "ConcatBitcast")
_SLICES = ("dynamic-slice", "slice", "gather")


def exchanges(program: Program) -> dict[str, Operation]:
    """Returns the operations that are collectives, or start or end one, by name."""
    return {
        operation.name: operation
        for computation in program.computations.values()
        for operation in computation.values()
        if operation.opcode.removesuffix("-start").removesuffix("-done") in COLLECTIVES
    }


def collectives(program: Program) -> dict[str, int]:
    """Counts the collectives by kind and dtype, such as `all-reduce f32`.

    Those of loops count once. What they combine may be many arrays, also of several
    dtypes: it is one operation.
    """
    found: Counter[str] = Counter()
    for operation in exchanges(program).values():
        if not operation.opcode.endswith("-done"):
            kind = operation.opcode.removesuffix("-start")
            dtypes = sorted({each.dtype for each in operation.results})
            found[f"{kind} {'+'.join(dtypes)}"] += 1
    return dict(sorted(found.items()))


def operations(program: Program) -> Iterator[tuple[Operation, Computation, int]]:
    """Yields what runs, where it stands, and how often."""
    times, _ = program.trips
    for name, count in times.items():
        computation = program.computations[name]
        for operation in computation.values():
            if operation.opcode not in _FREE and not operation.opcode.endswith("-done"):
                yield operation, computation, count


def memory_bytes(program: Program) -> int:
    """Returns the bytes that operations read from and write to the chip's memory.

    Operands and results of each operation, as they lie there, without those that are
    kept on the core (`S(1)`). Of an operand of which only slices are read, these count;
    of one that is updated in place, the update.
    """
    return sum(
        count * operation_bytes(operation, computation, program)
        for operation, computation, count in operations(program)
    )


def operation_bytes(
    operation: Operation, computation: Computation, program: Program
) -> int:
    """Returns the bytes that one operation reads and writes."""
    if operation.opcode == "async-start":  # what it calls is counted
        return 0
    if any(f'target="{name}"' in operation.attributes for name in _NO_CALLS):
        return 0
    inside = None
    if operation.opcode == "fusion":
        inside = program.computations[operation.called("calls") or ""]
    operands = [
        _only(computation[name].results)
        for name in operation.operands
        if name in computation
    ]
    results = list(operation.results)
    if operation.opcode == "copy-start":  # (destination, source, context)
        results = results[:1]
    elif operation.opcode.endswith("-start"):  # ((sources), destinations, contexts)
        taken = len(operation.operands)
        results = results[taken : 2 * taken] or results
    if "__cu" in operation.attributes:  # (result, what the library may work in)
        results = results[:1]
    if inside is None:
        return _plain_bytes(operation, operands, results)
    read = sum(
        _parameter_bytes(inside, index, array)
        for index, array in enumerate(operands)
        if array is not None
    )
    return read + _result_bytes(inside, results)


def _only(arrays: tuple[Array, ...]) -> Array | None:
    return arrays[0] if len(arrays) == 1 else None


def _in_memory(array: Array | None) -> int:
    return array.size if array is not None and array.space == 0 else 0


def _plain_bytes(
    operation: Operation, operands: list[Array | None], results: list[Array]
) -> int:
    written = sum(map(_in_memory, results))
    if operation.opcode.removesuffix("-start") in _SLICES:
        is_read = bool(operands) and bool(_in_memory(operands[0]))
        return written + (results[0].size if is_read else 0)
    if operation.opcode == "dynamic-update-slice":
        update = operands[1]
        return 2 * update.size if update and _in_memory(results[0]) else 0
    return written + sum(map(_in_memory, operands))


def _parameter_bytes(inside: Computation, index: int, array: Array) -> int:
    """Returns what a fusion reads of its operand."""
    if not _in_memory(array):
        return 0
    name = next(
        (
            each.name
            for each in inside.values()
            if each.opcode == "parameter" and each.text.strip() == str(index)
        ),
        None,
    )
    users = _users(inside, name)
    if users and all(
        (each.opcode in _SLICES and each.operands[0] in names)
        or (each.opcode == "dynamic-update-slice" and each.operands[0] in names)
        for each, names in users
    ):
        sliced = sum(
            each.results[0].size for each, _ in users if each.opcode in _SLICES
        )
        return min(array.size, sliced)
    return array.size


def _users(
    inside: Computation, name: str | None
) -> list[tuple[Operation, frozenset[str]]]:
    """Returns who uses a value, itself or as a bitcast."""
    names = {name}
    for each in inside.values():
        if each.opcode in ("bitcast", "copy") and names & set(each.operands):
            names.add(each.name)
    known = frozenset(each for each in names if each)
    return [
        (each, known)
        for each in inside.values()
        if known & set(each.operands) and each.name not in known
    ]


def _result_bytes(inside: Computation, results: list[Array]) -> int:
    """Returns what a fusion writes."""
    root = inside.root
    roots = [root]
    if root.opcode == "tuple":
        roots = [inside[name] for name in root.operands]
    total = 0
    for each, array in zip(roots, results, strict=False):
        while each.opcode == "bitcast" and each.operands[0] in inside:
            each = inside[each.operands[0]]
        written = _in_memory(array)
        if each.opcode == "dynamic-update-slice" and written:
            update = _only(inside[each.operands[1]].results)
            written = update.size if update is not None else written
        total += written
    return total


def operation_flops(
    operation: Operation, computation: Computation, program: Program
) -> int:
    """Returns the arithmetic of the products and convolutions in one operation."""
    if operation.opcode == "fusion":
        inside = program.computations[operation.called("calls") or ""]
        return sum(operation_flops(each, inside, program) for each in inside.values())
    if operation.opcode == "dot":
        left = computation[operation.operands[0]].results[0].shape
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", operation.attributes)
        summed = [int(axis) for axis in re.findall(r"\d+", axes[1])] if axes else []
        each = math.prod(left[axis] for axis in summed)
        return 2 * each * math.prod(operation.results[0].shape)
    if operation.opcode == "convolution" or "__cudnn$conv" in operation.attributes:
        return _convolution_flops(operation, computation)
    if "__cublas" in operation.attributes:
        left = computation[operation.operands[0]].results[0].shape
        axes = re.search(
            r'lhs_contracting_dimensions":\["?([\d",]*)\]', operation.attributes
        )
        summed = [int(axis) for axis in re.findall(r"\d+", axes[1])] if axes else []
        each = math.prod(left[axis] for axis in summed)
        return 2 * each * math.prod(operation.results[0].shape)
    if 'target="__gpu$xla.gpu.triton"' in operation.attributes:
        return _told_flops(operation)
    return 0


def _told_flops(operation: Operation) -> int:
    """Returns what a kernel of Pallas says of itself: nobody else can tell.

    It is the entry `flops` of the `metadata` given to `pallas_call`.
    """
    found = re.search(r'\bserialized_metadata = "(.*?)"', operation.attributes)
    if found is None:
        return 0
    told = json.loads(found[1].replace(r"\22", '"'))
    return int(told.get("flops", 0))


def _convolution_flops(operation: Operation, computation: Computation) -> int:
    """Returns 2 · outputs · (taps · channels of a group), whichever gradient it is."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", operation.attributes)
    if labels is None:
        return 0
    shapes = [computation[name].results[0].shape for name in operation.operands[:2]]
    shapes.append(operation.results[0].shape)
    # Forward, the kernel is the second operand; cuDNN's gradient of it, the result.
    if "BackwardFilter" in operation.attributes:
        kernel, outputs = shapes[2], shapes[1]
        kernel_labels, output_labels = labels[2], labels[3]
    elif "BackwardInput" in operation.attributes:
        kernel, outputs = shapes[1], shapes[0]
        kernel_labels, output_labels = labels[2], labels[3]
    else:
        kernel, outputs = shapes[1], shapes[2]
        kernel_labels, output_labels = labels[2], labels[3]
    per_output = math.prod(
        side for side, label in zip(kernel, kernel_labels, strict=True) if label != "o"
    )
    assert len(outputs) == len(output_labels)
    return 2 * per_output * math.prod(outputs)
