"""python -m benchmarks.compiled.worker: one program, see `__main__.py`.

The process ends with what the compiler allots and writes for that one program, so that
its schedules are told from those of others, and a compiler that hangs can be ended.
"""

import dataclasses
import json
import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.compiled import compiler
from benchmarks.compiled.chips import CHIPS, Chip
from benchmarks.compiled.estimate import bound
from benchmarks.compiled.hlo import parse_program
from benchmarks.compiled.jobs import Job
from benchmarks.compiled.layers import lower_layer
from benchmarks.compiled.steps import lower_step
from benchmarks.compiled.traffic import collectives


@dataclasses.dataclass(frozen=True)
class Task:
    """What one process does.

    Attributes:
        chip: The chip's name.
        job: What to compile.
        dump: A folder for the compiler.
        out: Where the record goes.
        limit: Seconds after which the process ends, also if nobody ends it.
    """

    chip: str
    job: Job
    dump: Path
    out: Path
    limit: float

    def to_json(self) -> str:
        """Returns the task as an argument of this program."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """Reads the argument."""
        fields = json.loads(text)
        return cls(
            fields["chip"],
            Job(**fields["job"]),
            Path(fields["dump"]),
            Path(fields["out"]),
            fields["limit"],
        )


def lower(job: Job, chip: Chip) -> tuple[jax.stages.Lowered, int]:
    """Returns the lowered program, and how many of its arguments are donated."""
    if job.kind == "step":
        return lower_step(job, compiler.topology(chip, int(job.variant)))[:2]
    (device,) = compiler.topology(chip, 1)
    return lower_layer(job, device), 0


def compile_job(task: Task) -> dict[str, Any]:
    """Compiles; returns what there is to tell, or why the compiler refused."""
    chip = CHIPS[task.chip]
    started = time.perf_counter()
    try:
        lowered, donated = lower(task.job, chip)
        compiled = lowered.compile(compiler.OPTIONS[chip.platform])
    except compiler.CompilerMissing:
        raise
    except Exception as error:  # whatever a compiler raises is what is asked for
        first = (str(error).strip() or repr(error)).splitlines()[0]
        return {"refused": f"{type(error).__name__}: {first}"}
    record: dict[str, Any] = {"seconds": time.perf_counter() - started}
    program = parse_program(compiled.as_text() or "")
    record |= bound(program, chip, task.dump)
    analysis = compiled.memory_analysis()
    record["temporary"] = analysis.temp_size_in_bytes if analysis else None
    record["collectives"] = collectives(program)
    # Of a step everything is donated but images and labels, which are always read.
    given = len(jax.tree.leaves(lowered.args_info))
    record["unread"] = given - program.arguments
    record["donated"], record["aliased"] = donated, program.aliased
    return record


def main(argument: str) -> None:
    """Compiles one program and writes its record."""
    task = Task.from_json(argument)
    signal.alarm(math.ceil(task.limit) + 10)
    task.out.write_text(json.dumps(compile_job(task)))


if __name__ == "__main__":
    main(sys.argv[1])
