"""Curves as SVG whose lines stretch with the page and whose words do not."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from train.showing.report.markup import number, text

# A longer curve is drawn by the means of so many stretches of it.
MOST_POINTS = 400
# From this ratio between the largest and the smallest value on the axis is logarithmic.
LOGARITHMIC = 30


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        name: What the legend calls it; without it, it is not in there.
        steps: Where its points are.
        values: What they are.
        color: A CSS color.
        is_faint: Whether it stands behind others.
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    color: str
    is_faint: bool = False


def palette(index: int, count: int) -> str:
    """Returns the color of one of several lines: by name if few, by order if many."""
    if count <= 6:
        return f"var(--line-{index})"
    share = 100 * index / (count - 1)
    return f"color-mix(in oklab, var(--last) {share:.0f}%, var(--first))"


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    low: float | None = None,
    high: float | None = None,
    may_be_logarithmic: bool = False,
    note: str = "",
) -> str:
    """Draws curves over the steps of a run.

    Args:
        title: What is drawn.
        lines: The curves; points that are not finite are left out.
        low: A value that the vertical axis reaches down to.
        high: One that it reaches up to.
        may_be_logarithmic: Whether it is, if the values differ much.
        note: A few words beside the title.
    """
    curves = [(line, *_points(line)) for line in lines]
    curves = [curve for curve in curves if len(curve[1])]
    if not curves:
        return ""
    steps = np.concatenate([each for _, each, _ in curves])
    values = np.concatenate([each for _, _, each in curves])
    across = _Axis.linear(min(0, steps.min()), steps.max(), ticks=5, is_loose=False)
    bottom = min(values.min(), math.inf if low is None else low)
    top = max(values.max(), -math.inf if high is None else high)
    if may_be_logarithmic and bottom > 0 and top / bottom > LOGARITHMIC:
        up = _Axis.logarithmic(bottom, top)
    else:
        up = _Axis.linear(bottom, top, ticks=4)
    grid = "".join(
        f'<line class="grid" x1="0" x2="100" y1="{y}" y2="{y}"/>'
        for y in (_down(up, tick) for tick in up.ticks)
    )
    drawn = "".join(_curve(*curve, across, up) for curve in curves)
    y_labels = "".join(
        f'<span style="top:{_down(up, tick)}%">{number(tick)}</span>'
        for tick in up.ticks
    )
    x_labels = "".join(
        f'<span style="left:{_of(across, tick)}%">{number(tick)}</span>'
        for tick in across.ticks
    )
    return (
        f'<figure class="chart"><figcaption><b>{text(title)}</b>'
        f"{_legend(lines)}<small>{text(note)}</small></figcaption>"
        f'<div class="plot"><div class="y">{y_labels}</div>'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{text(title)} by step">{grid}{drawn}</svg>'
        f'<div class="x">{x_labels}</div></div></figure>'
    )


@dataclasses.dataclass(frozen=True)
class _Axis:
    """An axis from `low` to `high`, with `ticks` on it."""

    low: float
    high: float
    ticks: list[float]
    is_logarithmic: bool = False

    @classmethod
    def linear(
        cls, low: float, high: float, *, ticks: int, is_loose: bool = True
    ) -> "_Axis":
        """Ends at a tick if loose, else where it is told."""
        if low == high:
            low, high = (0.0, 2 * high or 1.0) if high >= 0 else (low - 1, high + 1)
        found = MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        if is_loose:
            low, high = found[0], found[-1]
        slack = 1e-9 * (high - low)
        inside = [float(t) for t in found if low - slack <= t <= high + slack]
        return cls(low, high, inside)

    @classmethod
    def logarithmic(cls, low: float, high: float) -> "_Axis":
        decades = math.log10(high / low)
        subs = (1.0, 2.0, 5.0) if decades < 2 else (1.0,)
        found = LogLocator(subs=subs, numticks=6).tick_values(low, high)
        low, high = low / 1.1, high * 1.1
        inside = [float(tick) for tick in found if low <= tick <= high]
        return cls(low, high, inside, is_logarithmic=True)

    def place(self, values: np.ndarray) -> np.ndarray:
        """Returns where values are, from 0 to 1."""
        low, high = self.low, self.high
        if self.is_logarithmic:
            low, high, values = math.log(low), math.log(high), np.log(values)
        return (values - low) / (high - low)


def _of(axis: _Axis, value: float) -> float:
    return round(100 * float(axis.place(np.array(value))), 2)


def _down(axis: _Axis, value: float) -> float:
    return round(100 - _of(axis, value), 2)


def _points(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points to draw, by stretches where there are many."""
    steps, values = np.array(line.steps, float), np.array(line.values, float)
    is_finite = np.isfinite(values)
    steps, values = steps[is_finite], values[is_finite]
    if len(steps) <= MOST_POINTS:
        return steps, values
    pieces = [np.array_split(each, MOST_POINTS) for each in (steps, values)]
    steps, values = ([piece.mean() for piece in each] for each in pieces)
    return np.array(steps), np.array(values)


def _curve(
    line: Line, steps: np.ndarray, values: np.ndarray, across: _Axis, up: _Axis
) -> str:
    places = zip(100 * across.place(steps), 100 - 100 * up.place(values), strict=True)
    points = " ".join(f"{x:.2f},{y:.2f}" for x, y in places)
    if len(steps) == 1:  # a stroke of no length with round ends is a dot
        points = f"{points} {points}"
    kind = "faint" if line.is_faint else "curve"
    if len(steps) == 1:
        kind += " dot"
    name = f"<title>{text(line.name)}</title>"
    return (
        f'<polyline class="{kind}" style="stroke:{line.color}" points="{points}">'
        f"{name}</polyline>"
    )


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) == 1:
        return ""
    if len(lines) > 6:
        first, last = text(lines[0].name), text(lines[-1].name)
        return f'<span class="ramp">{first}<i></i>{last}</span>'
    return "".join(
        f'<span class="key"><i style="background:{line.color}"></i>'
        f"{text(line.name)}</span>"
        for line in lines
    )
