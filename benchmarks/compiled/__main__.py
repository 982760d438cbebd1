"""python -m benchmarks.compiled: what a chip's own compiler makes of the library.

Compiles layers in every form, and whole training steps, for a chip that need not be
there, and writes for each program a lower bound on its time, its temporary memory, its
collectives, or why it was refused. Nothing is timed, unless --measure is given on a
machine that has the chip.
"""

import concurrent.futures
import dataclasses
import datetime
import json
import math
import os
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

from benchmarks.compiled import compiler
from benchmarks.compiled.chips import CHIPS, Chip
from benchmarks.compiled.jobs import (
    DENSE,
    DEPTHWISE,
    PASSES,
    STEPS,
    SWEEP,
    Job,
    choice,
    layer_jobs,
    stack_jobs,
    step_jobs,
)
from benchmarks.compiled.measure import measure_all
from benchmarks.compiled.page import write_page
from benchmarks.compiled.run import describe, fingerprint, key, known, run_job, versions
from benchmarks.stacks import STACKS


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compile, for which chip, and where the page goes."""

    chip: Literal["v5e", "v6e", "v5p", "h100", "a100"]
    """The chip; it need not be there."""

    layers: bool = False
    """The dense layers. Without a part asked for, these, `--depthwise` and `--steps`
    are compiled."""

    depthwise: bool = False
    """The depthwise layers."""

    sweep: bool = False
    """More layers, for the rates of the cost model to be fitted to."""

    mapped: bool = False
    """Convolutions that are mapped over their kernels, and nothing else unless it is
    asked for too."""

    steps: bool = False
    """Whole training steps, on one chip and on four and eight."""

    models: tuple[str, ...] = ()
    """Only the training steps of these networks, such as `dynamic_net`."""

    devices: tuple[int, ...] = ()
    """Only training steps over so many chips, such as `1 4`."""

    forms: tuple[str, ...] = ()
    """Only these forms, such as `static auto rows`. Without it layers are compiled in
    all, and training steps, which take long, static and as `auto`."""

    passes: Literal["all", "forward", "gradient"] = "all"
    """Only the forward pass of layers, or only forward and backward together."""

    quick: bool = False
    """One layer of each kind, forward, and the steps of one network."""

    limit: float = 300.0
    """Seconds after which the compiler of a layer is ended; it is reported as such."""

    step_limit: float = 3600.0
    """The same for a whole training step."""

    processes: int = 1
    """How many programs to compile side by side."""

    measure: bool = False
    """Time the programs instead, on the chip, and compare with the page's bounds."""

    fresh: bool = False
    """Compile again what an earlier run of the same library has compiled."""

    out: Path = Path("runs/benchmarks/compiled")
    """The folder for `<chip>.md` and `<chip>.json`."""

    def limit_of(self, job: Job) -> float:
        """Returns the limit of a program."""
        return self.step_limit if job.kind == "step" else self.limit


def jobs_of(config: Config) -> list[Job]:
    """Returns what there is to do, gradients first: they tell the most."""
    jobs = _jobs(config)
    if config.forms:
        jobs = [job for job in jobs if job.form_title in config.forms]
    return jobs


def _jobs(config: Config) -> list[Job]:
    chip = CHIPS[config.chip]
    asked = config.layers, config.depthwise, config.mapped, config.steps, config.sweep
    every = not any(asked)
    one = 1 if config.quick else None
    passes = {"all": PASSES[::-1], "forward": PASSES[:1], "gradient": PASSES[1:]}
    chosen = PASSES[:1] if config.quick else passes[config.passes]
    shapes = (*(DENSE[2:3] if config.quick else DENSE),) * (every or config.layers)
    shapes += DEPTHWISE[:one] * (every or config.depthwise)
    shapes += SWEEP * config.sweep
    jobs = [
        job for variant in chosen for job in layer_jobs(shapes, (variant,), chip.name)
    ]
    if config.mapped:
        jobs += stack_jobs(chosen, STACKS[:one])
    if every or config.steps:
        counts = (1,) if config.quick else tuple(dict(chip.topologies))
        counts = tuple(count for count in counts if count in (config.devices or counts))
        steps = STEPS[:2] if config.quick else STEPS
        steps = tuple(step for step in steps if step[0] in (config.models or step))
        jobs += step_jobs(steps, counts, every_form=bool(config.forms))
    return jobs


def check_filters(config: Config) -> None:
    """Ends the program where something is asked for that no job has."""
    _check_among("models", config.models, sorted({model for model, *_ in STEPS}))
    _check_among("devices", config.devices, list(dict(CHIPS[config.chip].topologies)))
    _check_among("forms", config.forms, sorted({j.form_title for j in _jobs(config)}))


def _check_among(flag: str, asked: tuple[Any, ...], known: list[Any]) -> None:
    for each in asked:
        if each not in known:
            sys.exit(f"--{flag} (={each}) must be among {', '.join(map(str, known))}")


def compile_all(config: Config, jobs: list[Job]) -> dict[str, Any]:
    """Compiles, and writes what is there after every program."""
    chip, mark = CHIPS[config.chip], fingerprint()
    config.out.mkdir(parents=True, exist_ok=True)
    path = config.out / f"{chip.name}.json"
    records = {} if config.fresh else dict(known(path, mark))
    results = {
        "chip": chip.name,
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "fingerprint": mark,
        "choices": _choices(chip),
        "records": records,
    }
    # What was late may have had a shorter limit, or a busier machine.
    missing = [
        job
        for job in jobs
        if records.get(key(job), {"late": 0}).get("late", math.inf)
        < config.limit_of(job)
    ]
    with concurrent.futures.ThreadPoolExecutor(config.processes) as pool:
        running = {
            pool.submit(run_job, job, chip, config.limit_of(job)): job
            for job in missing
        }
        for done in concurrent.futures.as_completed(running):
            name = key(running[done])
            records[name] = done.result() | describe(running[done])
            print(f"{name}: {_line(records[name])}", flush=True)
            path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return results


def _choices(chip: Chip) -> dict[str, str]:
    """Returns what `"auto"` chooses for each layer on the chip."""
    return {
        str(shape): str(choice(shape, chip.name))
        for shape in (*DENSE, *DEPTHWISE, *SWEEP)
    }


def _line(record: dict[str, Any]) -> str:
    if "bound" in record:
        return f"{record['bound']:.1f} µs at least"
    if "late" in record:
        return f"not compiled within {record['late']:.0f} s"
    return record["refused"]


def main(config: Config) -> None:
    """Compiles or measures, and writes the page."""
    chip = CHIPS[config.chip]
    if not config.measure:
        try:
            compiler.check_installed(chip)
        except compiler.CompilerMissing as error:
            sys.exit(str(error))
        os.environ.update(compiler.environment(chip, config.out))
    # What is compiled, and what is timed, has processes of its own; this one is to take
    # no chip, and look for none.
    jax.config.update("jax_platforms", "cpu")
    jobs = jobs_of(config)
    check_filters(config)
    if config.measure:
        measure_all(jobs, chip, config.limit_of, config.out)
        return
    page = write_page(compile_all(config, jobs), config.out)
    print(f"\n{page.read_text()}\nwritten to {page}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
