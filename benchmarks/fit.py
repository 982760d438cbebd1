"""python -m benchmarks.fit: the rates of the cost model, and how well it chooses.

Times every plan of every shape of a sweep, fits `dynconv_jax.functional.cost.Rates` by
least squares of the relative errors, prints the residuals, and then the regret: the
time of the plan that the rates choose over that of the fastest. It is printed also for
random shapes, on which nothing was fitted.
"""

import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from scipy.optimize import nnls

from benchmarks.shapes import DEPTHWISE, LAYERS, OTHERS, Shape, random_shapes
from benchmarks.timing import Function, interleave
from dynconv_jax.functional.choice import plans
from dynconv_jax.functional.cost import (
    KINDS,
    RATES,
    Plan,
    Problem,
    Rates,
    work_of,
)
from dynconv_jax.functional.dynamic import dynamic_conv_by_plan
from dynconv_jax.functional.numerics import Numerics

# So many Gflop take a second or so; all experts on all samples then cannot win.
_TOO_MUCH = 100.0

# The milliseconds of each plan, by its name.
Times = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to sweep."""

    rounds: int = 5
    """How often to time each plan; the median counts."""

    random: int = 24
    """How many random shapes to judge the rates by."""

    seed: int = 0
    """Which random shapes."""

    times: Path | None = None
    """Where the times are kept (JSON). What is there already is not timed again."""


@functools.cache
def problem_of(shape: Shape) -> Problem:
    """Returns the problem of a shape, here and in float32."""
    inputs = jax.ShapeDtypeStruct(shape.input_shape, jnp.float32)
    return Problem.of(inputs, shape.geometry, shape.experts)


@functools.cache
def plans_of(shape: Shape) -> list[Plan]:
    """Returns the plans of a shape that are worth timing."""
    problem = problem_of(shape)
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


def sweep(shapes: Sequence[Shape], config: Config) -> dict[Shape, Times]:
    """Times every plan of every shape; forward and backward, in milliseconds."""
    kept: dict[str, Times] = {}
    if config.times is not None and config.times.exists():
        kept = json.loads(config.times.read_text())
    for shape in shapes:
        if str(shape) in kept:
            continue
        functions = {
            str(plan): gradient_by_plan(shape, plan) for plan in plans_of(shape)
        }
        timings = interleave(functions, config.rounds)
        kept[str(shape)] = {name: timing.median for name, timing in timings.items()}
        fastest = min(kept[str(shape)], key=kept[str(shape)].__getitem__)
        print(f"{shape}: {fastest}, {kept[str(shape)][fastest]:.3g} ms", flush=True)
        if config.times is not None:
            config.times.write_text(json.dumps(kept, indent=1))
    return {shape: kept[str(shape)] for shape in shapes}


def fit(times: dict[Shape, Times], cache: float) -> tuple[Rates, float]:
    """Fits the rates, for a size of the cache.

    Returns:
        The rates, and the root of the mean square of the relative errors.
    """
    rows = []
    for shape, by_plan in times.items():
        for plan in plans_of(shape):
            work = work_of(problem_of(shape), plan, cache)
            seconds = 1e-3 * by_plan[str(plan)]
            rows.append([getattr(work, kind) / seconds for kind in KINDS])
    solution, residual = nnls(np.array(rows), np.ones(len(rows)))
    rates = Rates(**dict(zip(KINDS, solution.tolist(), strict=True)), cache=cache)
    return rates, residual / math.sqrt(len(rows))


def regrets(rates: Rates, times: dict[Shape, Times]) -> list[float]:
    """Returns the time of each choice over that of the fastest plan."""
    return [
        by_plan[str(choice_by(rates, shape))] / min(by_plan.values())
        for shape, by_plan in times.items()
    ]


def choice_by(rates: Rates, shape: Shape) -> Plan:
    """Returns the plan that `rates` choose among those that were timed."""
    problem = problem_of(shape)
    return min(
        plans_of(shape),
        key=lambda plan: work_of(problem, plan, rates.cache).seconds(rates),
    )


def print_regret(title: str, rates: Rates, times: dict[Shape, Times]) -> None:
    """Prints what the choices cost over the fastest plans."""
    print(f"\n{title}\n\n| shape | chosen | ms | fastest | ms | regret |")
    print("|---|---|---:|---|---:|---:|")
    found = regrets(rates, times)
    for (shape, by_plan), regret in zip(times.items(), found, strict=True):
        chosen = str(choice_by(rates, shape))
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
    """Sweeps, fits, and prints the rates and how well they choose."""
    fitted_on = sweep([*LAYERS, *DEPTHWISE, *OTHERS], config)
    in_use = RATES[jax.default_backend()]
    rates, error = fit(fitted_on, in_use.cache)
    print(f"\nrelative error {error:.2f}")
    for name, rate in rates._asdict().items():
        print(f"    {name}={rate:.3g},")
    judged_on = sweep(random_shapes(config.random, config.seed), config)
    for title, times in (("Fitted on", fitted_on), ("Random", judged_on)):
        print_regret(f"{title}, by the rates just fitted", rates, times)
        print_regret(f"{title}, by the rates in use", in_use, times)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
