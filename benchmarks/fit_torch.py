"""python -m benchmarks.fit_torch: the rates behind `"auto"` in dynconv_torch.

Times the forms of every shape of a sweep, forward alone and with the backward pass,
fits the rates of `dynconv_torch.functional.choice` by least squares of the relative
errors, and prints them and the regret: the time of the form that they choose over that
of the fastest.
"""

import dataclasses
import math
import statistics

import numpy as np
import torch
import tyro
from scipy.optimize import nnls

from benchmarks.shapes import DEPTHWISE, LAYERS, OTHERS, Shape, random_shapes
from benchmarks.timing import Function, interleave
from dynconv_torch import dynamic_conv
from dynconv_torch.functional.choice import Work, work_of
from dynconv_torch.functional.geometry import Geometry

FORMS = ("grouped", "loop", "experts")
# Outputs of all experts beyond this many numbers take seconds.
_TOO_MANY = 1e8


@dataclasses.dataclass(frozen=True)
class Config:
    """What to sweep."""

    rounds: int = 5
    """How often to time each form; the median counts."""

    random: int = 24
    """How many random shapes to judge the rates by."""

    seed: int = 0
    """Which random shapes."""


def calls(shape: Shape) -> dict[bool, dict[str, Function]]:
    """Returns the calls of each form, without and with the backward pass."""
    torch.manual_seed(0)
    x = torch.from_numpy(shape.inputs()).movedim(-1, 1).contiguous().requires_grad_()
    attention = torch.randn(shape.batch, shape.experts).softmax(1).requires_grad_()
    geometry = geometry_of(shape)
    weight = torch.randn(shape.experts, *geometry.weight_shape).requires_grad_()
    cotangent = torch.from_numpy(shape.cotangent()).movedim(-1, 1).contiguous()

    def run(form: str) -> torch.Tensor:
        return dynamic_conv(
            x,
            attention,
            weight,
            stride=shape.stride,
            padding=shape.kernel // 2,
            groups=shape.groups,
            implementation=form,
        )

    def forward(form: str) -> None:
        with torch.no_grad():
            run(form)

    def gradient(form: str) -> None:
        torch.autograd.grad(run(form), (x, attention, weight), cotangent)

    forms = [
        form
        for form in FORMS
        if form != "experts" or shape.experts * math.prod(cotangent.shape) < _TOO_MANY
    ]
    return {
        has_backward: {form: lambda form=form, call=call: call(form) for form in forms}
        for has_backward, call in ((False, forward), (True, gradient))
    }


def geometry_of(shape: Shape) -> Geometry:
    """Returns the geometry of a shape in the words of `dynconv_torch`."""
    return Geometry.create(
        shape.in_features,
        shape.out_features,
        shape.kernel,
        rank=2,
        stride=shape.stride,
        padding=shape.kernel // 2,
        groups=shape.groups,
    )


def work(shape: Shape, form: str) -> Work:
    """Returns the work of a form of a shape."""
    x = torch.empty(
        shape.batch, shape.in_features, shape.size, shape.size, device="meta"
    )
    return work_of(form, x, geometry_of(shape), shape.experts)


def main(config: Config) -> None:
    """Sweeps, fits, and prints the rates and how well they choose."""
    fitted_on = [*LAYERS, *DEPTHWISE, *OTHERS]
    judged_on = random_shapes(config.random, config.seed)
    times: dict[bool, dict[Shape, dict[str, float]]] = {False: {}, True: {}}
    for shape in [*fitted_on, *judged_on]:
        for has_backward, functions in calls(shape).items():
            timings = interleave(functions, config.rounds)
            times[has_backward][shape] = {
                form: timing.median for form, timing in timings.items()
            }
    for has_backward, title in ((False, "FORWARD"), (True, "FORWARD_AND_BACKWARD")):
        rows = [
            [amount / (1e-3 * milliseconds) for amount in work(shape, form)]
            for shape in fitted_on
            for form, milliseconds in times[has_backward][shape].items()
        ]
        solution, residual = nnls(np.array(rows), np.ones(len(rows)))
        rates = Work(*solution.tolist())
        print(f"\n{title}, relative error {residual / math.sqrt(len(rows)):.2f}")
        print(", ".join(f"{name}={rate:.3g}" for name, rate in rates._asdict().items()))
        for name, shapes in (("fitted on", fitted_on), ("random", judged_on)):
            regrets = []
            for shape in shapes:
                by_form = times[has_backward][shape]
                chosen = min(by_form, key=lambda form: work(shape, form).seconds(rates))
                fastest = min(by_form, key=by_form.__getitem__)
                regrets.append(by_form[chosen] / by_form[fastest])
                shown = ", ".join(f"{f} {t:.3g}" for f, t in by_form.items())
                print(f"{shape}: {chosen}, {regrets[-1]:.2f} ({shown} ms)")
            print(
                f"{name}: geometric mean {statistics.geometric_mean(regrets):.3f}, "
                f"worst {max(regrets):.2f}"
            )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
