"""python -m benchmarks.compiled.timed: times one program on the chip that is here."""

import json
import math
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.compiled import compiler
from benchmarks.compiled.chips import CHIPS, Chip
from benchmarks.compiled.clock import microseconds
from benchmarks.compiled.jobs import Job
from benchmarks.compiled.layers import layer_work, lower_layer
from benchmarks.compiled.steps import lower_step
from benchmarks.compiled.worker import Task


def devices_of(chip: Chip, count: int) -> list[Any]:
    """Returns the first devices of this machine.

    Raises:
        ValueError: If it has too few, or they are no such chips.
    """
    found = jax.devices()
    kind = found[0].device_kind
    if not re.fullmatch(chip.kinds, kind):
        raise ValueError(
            f"--chip (={chip.name}) is not what JAX finds here: {len(found)} {kind}"
        )
    if len(found) < count:
        raise ValueError(f"{count} chips are needed, and there are {len(found)}")
    return found[:count]


def time_job(job: Job, chip: Chip) -> dict[str, Any]:
    """Compiles a program for the chip that is here, and times it.

    Returns:
        `time` in microseconds and `by`, what measured it; or why it was `refused`.
    """
    try:
        call = _call(job, chip)
        time, by = microseconds(call)
    except Exception as error:  # whatever a compiler or a chip raises is the answer
        first = (str(error).strip() or repr(error)).splitlines()[0]
        return {"refused": f"{type(error).__name__}: {first}"}
    return {"time": time, "by": by}


def _call(job: Job, chip: Chip) -> Callable[[], Any]:
    options = compiler.OPTIONS.get(chip.platform)
    if job.kind == "step":
        step = lower_step(job, devices_of(chip, int(job.variant)))
        compiled = step.lowered.compile(options)
        state, *rest = step.arguments()
        states = [state]  # each is donated to the call that makes the next one

        def train() -> Any:
            following, metrics = compiled(states.pop(), *rest)
            states.append(following)
            return metrics

        return train
    (device,) = devices_of(chip, 1)
    compiled = lower_layer(job, device).compile(options)
    draw = np.random.default_rng(0)
    arguments = [
        jax.device_put(draw.normal(size=each.shape).astype(each.dtype), layout)
        for each, layout in zip(
            layer_work(job).arguments, compiled.input_formats[0], strict=True
        )
    ]
    return lambda: compiled(*arguments)


def main(argument: str) -> None:
    """Times one program and writes its record."""
    task = Task.from_json(argument)
    signal.alarm(math.ceil(task.limit) + 10)
    task.out.write_text(json.dumps(time_job(task.job, CHIPS[task.chip])))


if __name__ == "__main__":
    main(sys.argv[1])
