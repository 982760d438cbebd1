"""Lower bounds on the time of a compiled program, from what its compiler wrote."""

from pathlib import Path
from typing import Any

from benchmarks.compiled.bundles import read_schedule
from benchmarks.compiled.chips import LAUNCH_SECONDS, Chip
from benchmarks.compiled.hlo import Program
from benchmarks.compiled.traffic import (
    exchanges,
    memory_bytes,
    operation_bytes,
    operation_flops,
    operations,
)
from benchmarks.compiled.twins import twins


def bound(program: Program, chip: Chip, dump: Path) -> dict[str, Any]:
    """Returns the bound of a program and its two parts, in microseconds.

    Args:
        program: As compiled.
        chip: What for.
        dump: Where the schedules of a TPU program are.

    Returns:
        `compute`, `memory`, their larger one or, of a GPU, the sum over kernels of the
        larger one as `bound`; `bytes`; and `unknown`, what was counted once because its
        number of turns depends on data.
    """
    _, loops = program.trips
    if chip.platform == "gpu":
        return _of_kernels(program, chip) | {"unknown": list(loops)}
    schedule = read_schedule(dump, twins(program), exchanges(program))
    moved = memory_bytes(program)
    compute, memory = schedule.bundles / chip.clock, moved / chip.bandwidth
    return {
        "compute": 1e6 * compute,
        "memory": 1e6 * memory,
        "bound": 1e6 * max(compute, memory),
        "bytes": moved,
        "unknown": [*loops, *schedule.unknown],
    }


def _of_kernels(program: Program, chip: Chip) -> dict[str, Any]:
    """Returns the roofline of each kernel, one after the other, and their launches."""
    compute = memory = total = moved = 0.0
    kernels = 0
    for operation, computation, count in operations(program):
        size = operation_bytes(operation, computation, program)
        flops = operation_flops(operation, computation, program)
        if not size and not flops:
            continue
        kernels += count
        moved += count * size
        compute += count * flops / chip.flops
        memory += count * size / chip.bandwidth
        total += count * max(flops / chip.flops, size / chip.bandwidth)
    return {
        "compute": 1e6 * compute,
        "memory": 1e6 * memory,
        "bound": 1e6 * (total + kernels * LAUNCH_SECONDS),
        "bytes": moved,
        "kernels": kernels,
    }
