"""python -m benchmarks.fit: the rates of the cost model, and how well it chooses.

Times every plan of every shape of a sweep, fits the rates of `dynconv_jax`'s cost model
by least squares of the relative errors, prints the residuals, and then the regret: the
time of the plan that the rates choose over that of the fastest. It is printed also for
random shapes, on which nothing was fitted. What is fitted is a file of rates for
`dynconv_jax/functional/rates/`. Of a chip that is not there, the bounds that
`python -m benchmarks.compiled` has written take the place of times.
"""

import dataclasses
import datetime
import functools
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy.optimize import nnls

from benchmarks.compiled.jobs import AUTO, PASSES, STATIC
from benchmarks.shapes import DEPTHWISE, LAYERS, OTHERS, Shape, random_shapes
from benchmarks.timing import Function, interleave
from dynconv_jax.functional.chips import KINDS, Chip, chip_for, chips, processor
from dynconv_jax.functional.choice import plans
from dynconv_jax.functional.cost import Plan, Problem, estimate, work_of
from dynconv_jax.functional.dynamic import dynamic_conv_by_plan
from dynconv_jax.functional.numerics import Numerics
from dynconv_jax.functional.pallas.by_platform import pallas_refuses

# So many Gflop take a second or so; all experts on all samples then cannot win.
_TOO_MUCH = 100.0
# A form has rates of its own if it was seen on so many shapes.
_ENOUGH = 5

_START = time.monotonic()

# The milliseconds of each plan, by its name.
Times = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to sweep, or whose bounds to read, and where the rates go."""

    rounds: int = 5
    """How often to time each plan; the median counts."""

    random: int = 24
    """How many random shapes to judge the rates by."""

    seed: int = 0
    """Which random shapes."""

    times: Path | None = None
    """Where the times are kept (JSON). What is there already is not timed again."""

    seconds: float | None = None
    """End after the shape that is timed when so many seconds have passed; the same
    command goes on from there. It needs `times`."""

    compiled: Path | None = None
    """Records of `benchmarks.compiled`, such as `docs/benchmarks/compiled/v5e.json`, to
    fit to in place of times; they name the chip."""

    out: Path | None = None
    """The file of rates to write; its name is that of the chip."""


@functools.cache
def problem_of(shape: Shape, chip: Chip) -> Problem:
    """Returns the problem of a shape on a chip: of a CPU in float32."""
    dtype = jnp.float32 if chip.platform == "cpu" else jnp.bfloat16
    inputs = jax.ShapeDtypeStruct(shape.input_shape, dtype)
    problem = Problem.of(inputs, shape.geometry, shape.experts, chip=chip)
    refusal = pallas_refuses(
        chip.platform, shape.geometry, shape.input_shape, shape.experts, dtype
    )
    return dataclasses.replace(problem, device_count=1, has_kernels=refusal is None)


@functools.cache
def plans_of(shape: Shape, chip: Chip) -> list[Plan]:
    """Returns the plans of a shape that are worth timing."""
    problem = problem_of(shape, chip)
    found = plans(problem)
    if problem.geometry.is_depthwise and math.prod(shape.output_shape) > 3e5:
        # As a product it would take seconds.
        found = [plan for plan in found if plan.implementation == "taps"]
    return [
        plan
        for plan in found
        if plan.form != "experts" or shape.gigaflops * shape.experts < _TOO_MUCH
    ]


def gradient_by_plan(shape: Shape, plan: Plan) -> Function:
    """Returns a call of forward and backward of a shape, as a plan says."""
    rng = np.random.default_rng(2)
    kernel_shape = (shape.experts, *shape.geometry.kernel_shape)
    kernel = jnp.asarray(rng.normal(size=kernel_shape) * 0.02, jnp.float32)
    logits = rng.normal(size=(shape.batch, shape.experts))
    attention = jax.nn.softmax(jnp.asarray(logits, jnp.float32))
    inputs, cotangent = jnp.asarray(shape.inputs()), jnp.asarray(shape.cotangent())

    @jax.jit
    def gradient(inputs, attention, kernel, cotangent):
        outputs, pull = jax.vjp(
            lambda inputs, attention, kernel: dynamic_conv_by_plan(
                plan, inputs, attention, kernel, shape.geometry, Numerics()
            ),
            inputs,
            attention,
            kernel,
        )
        return outputs, pull(cotangent)

    return lambda: jax.block_until_ready(gradient(inputs, attention, kernel, cotangent))


def sweep(shapes: Sequence[Shape], chip: Chip, config: Config) -> dict[Shape, Times]:
    """Times every plan of every shape; forward and backward, in milliseconds.

    Raises:
        SystemExit: If the time is over before all have been timed.
    """
    kept: dict[str, Times] = {}
    if config.times is not None and config.times.exists():
        kept = json.loads(config.times.read_text())
    for shape in shapes:
        if str(shape) in kept:
            continue
        if config.seconds is not None and time.monotonic() - _START > config.seconds:
            left = sum(str(each) not in kept for each in shapes)
            raise SystemExit(f"{left} shapes are left; run the same command again")
        functions = {
            str(plan): gradient_by_plan(shape, plan) for plan in plans_of(shape, chip)
        }
        timings = interleave(functions, config.rounds)
        kept[str(shape)] = {name: timing.median for name, timing in timings.items()}
        fastest = min(kept[str(shape)], key=kept[str(shape)].__getitem__)
        print(f"{shape}: {fastest}, {kept[str(shape)][fastest]:.3g} ms", flush=True)
        if config.times is not None:
            config.times.write_text(json.dumps(kept, indent=1))
    return {shape: kept[str(shape)] for shape in shapes}


def read_bounds(path: Path) -> tuple[Chip, dict[Shape, Times], str]:
    """Reads the bounds that a compiler gave, in milliseconds.

    Returns:
        The chip that they are for, the bounds of each plan that `"auto"` could choose,
        also those that could not be counted whole, and where they come from, in words.
    """
    results = json.loads(path.read_text())
    chip = chips()[results["chip"]]
    by_title = {str(shape): shape for shape in (*LAYERS, *DEPTHWISE, *OTHERS)}
    found: dict[Shape, Times] = {}
    for record in results["records"].values():
        if (
            record["kind"] == "layer"
            and record["variant"] == PASSES[1]
            and record["form_title"] not in (STATIC, AUTO)
            and "bound" in record
        ):
            shape = by_title[record["title"]]
            names = {str(plan) for plan in plans(problem_of(shape, chip))}
            if record["form_title"] in names:
                times = found.setdefault(shape, {})
                times[record["form_title"]] = 1e-3 * record["bound"]
    versions = ", ".join(f"{name} {of}" for name, of in results["versions"].items())
    source = (
        f"Fitted on {len(found)} shapes to the compiler's estimates, lower bounds of "
        f"{results['date']} ({versions}); not measured."
    )
    return chip, found, source


def fit(times: Mapping[Shape, Times], chip: Chip) -> tuple[Chip, float]:
    """Fits the rates of a chip.

    On a CPU all forms share their rates: what the work is made of is the same loops
    over memory. What the compiler of another chip makes of a form is its own, so each
    form has rates of its own there. Of one that was seen on a few shapes only they are
    those of all forms, as much slower as it was; of one that was not looked at, slower
    by the worst underestimate, lest it be chosen for an estimate that is too low.

    Returns:
        The chip with the rates, and the root of the mean square of the relative errors.
    """
    rates, error = _fit_some(times, chip, None)
    fitted = dataclasses.replace(chip, rates=rates, form_rates={})
    if chip.platform == "cpu":
        return fitted, error
    counts = _times_seen(times, chip)
    own = {}
    for form in counts:
        if counts[form] >= _ENOUGH:
            own[form] = _fit_some(times, chip, form)[0]
            continue
        ratios = _over_estimates(times, fitted, form if counts[form] else None)
        slower = statistics.geometric_mean(ratios) if counts[form] else max(ratios)
        own[form] = {kind: slower * rate for kind, rate in rates.items()}
    fitted = dataclasses.replace(fitted, form_rates=own)
    errors = [1 / ratio - 1 for ratio in _over_estimates(times, fitted, None)]
    return fitted, math.sqrt(statistics.fmean(each * each for each in errors))


def _times_seen(times: Mapping[Shape, Times], chip: Chip) -> dict[str, int]:
    """Returns on how many shapes each form that the chip may choose was seen."""
    counts: dict[str, int] = {}
    for shape, by_plan in times.items():
        for plan in plans(problem_of(shape, chip)):
            counts[plan.form] = counts.get(plan.form, 0) + (str(plan) in by_plan)
    return counts


def _over_estimates(
    times: Mapping[Shape, Times], chip: Chip, form: str | None
) -> list[float]:
    """Returns the times of a form over their estimates; of None those of all forms."""
    return [
        by_plan[str(plan)] / estimate(problem, plan).milliseconds
        for shape, by_plan in times.items()
        for problem in (problem_of(shape, chip),)
        for plan in plans(problem)
        if str(plan) in by_plan and form in (None, plan.form)
    ]


def _fit_some(
    times: Mapping[Shape, Times], chip: Chip, form: str | None
) -> tuple[dict[str, float], float]:
    """Fits to the plans of a form, or to all of them."""
    rows = []
    for shape, by_plan in times.items():
        problem = problem_of(shape, chip)
        for plan in plans(problem):
            if str(plan) in by_plan and form in (None, plan.form):
                work = work_of(problem, plan, chip.cache)
                seconds = 1e-3 * by_plan[str(plan)]
                rows.append([getattr(work, kind) / seconds for kind in KINDS])
    solution, residual = nnls(np.array(rows), np.ones(len(rows)))
    rates = dict(zip(KINDS, map(float, solution), strict=True))
    return rates, float(residual) / math.sqrt(len(rows))


def to_toml(chip: Chip) -> str:
    """Returns a chip as a file of `rates/`, its rates with three digits."""
    tables = {"rates": chip.rates}
    tables |= {f'form_rates."{form}"': own for form, own in chip.form_rates.items()}
    lines = [
        "# What work costs on such a chip: see dynconv_jax/functional/chips.py.",
        f"platform = {json.dumps(chip.platform)}",
        f"kinds = {json.dumps(chip.kinds)}",
        f"is_default = {json.dumps(chip.is_default)}",
        f"memory = {chip.memory}",
        f"cache = {chip.cache}",
        f"lanes = {chip.lanes}",
        f"source = {json.dumps(chip.source, ensure_ascii=False)}",
    ]
    if not chip.form_rates:
        lines.append("form_rates = {}")
    for name, rates in tables.items():
        lines += ["", f"[{name}]"]
        lines += [f"{kind} = {float(f'{rates[kind]:.3g}')}" for kind in KINDS]
    return "\n".join(lines) + "\n"


def regrets(chip: Chip, times: Mapping[Shape, Times]) -> list[float]:
    """Returns the time of each choice over that of the fastest plan."""
    return [
        by_plan[str(choice_by(chip, shape, by_plan))] / min(by_plan.values())
        for shape, by_plan in times.items()
    ]


def choice_by(chip: Chip, shape: Shape, by_plan: Times) -> Plan:
    """Returns the plan that a chip's rates choose among those that were timed."""
    problem = problem_of(shape, chip)
    timed = [plan for plan in plans(problem) if str(plan) in by_plan]
    return min(timed, key=lambda plan: estimate(problem, plan).milliseconds)


def print_regret(title: str, chip: Chip, times: Mapping[Shape, Times]) -> None:
    """Prints what the choices cost over the fastest plans."""
    print(f"\n{title}\n\n| shape | chosen | ms | fastest | ms | regret |")
    print("|---|---|---:|---|---:|---:|")
    found = regrets(chip, times)
    for (shape, by_plan), regret in zip(times.items(), found, strict=True):
        chosen = str(choice_by(chip, shape, by_plan))
        fastest = min(by_plan, key=by_plan.__getitem__)
        print(
            f"| {shape} | {chosen} | {by_plan[chosen]:.3g} | {fastest} | "
            f"{by_plan[fastest]:.3g} | {regret:.2f} |"
        )
    print(
        f"\ngeometric mean {statistics.geometric_mean(found):.3f}, "
        f"worst {max(found):.2f}, "
        f"{sum(regret <= 1.15 for regret in found)} of {len(found)} within 1.15"
    )


def main(config: Config) -> None:
    """Sweeps or reads, fits, and prints the rates and how well they choose."""
    if config.seconds is not None and config.times is None:
        raise SystemExit("--seconds needs --times, where what was timed is kept")
    judged: dict[str, Mapping[Shape, Times]] = {}
    if config.compiled is not None:
        in_use, fitted_on, source = read_bounds(config.compiled)
    else:
        in_use = chip_for("cpu")
        fitted_on = sweep([*LAYERS, *DEPTHWISE, *OTHERS], in_use, config)
        judged["Random"] = sweep(
            random_shapes(config.random, config.seed), in_use, config
        )
        source = (
            f"Measured on {datetime.date.today()} on {jax.device_count()} device(s) of "
            f"{processor()}, jax {jax.__version__}, {len(fitted_on)} shapes, float32."
        )
    fitted, error = fit(fitted_on, in_use)
    fitted = dataclasses.replace(fitted, source=source)
    if config.out is not None:
        fitted = dataclasses.replace(fitted, name=config.out.stem)
        config.out.write_text(to_toml(fitted))
    print(f"\nrelative error {error:.2f}\n\n{to_toml(fitted)}")
    for title, times in {"Fitted on": fitted_on, **judged}.items():
        print_regret(f"{title}, by the rates just fitted", fitted, times)
        print_regret(f"{title}, by the rates in use", in_use, times)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
