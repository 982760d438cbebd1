"""Pictures of runs, as PNG."""

import io
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from train.data.dataset import PARTS, Part
from train.printable import printable
from train.showing.routing_words import router_name

COLORS = "PuOr_r"  # light in the middle of the scale
# Larger tables are drawn without numbers, and no larger than this.
MOST_CLASSES = 20
MOST_EXPERTS = 8


def draw_routing(attention: Mapping[str, np.ndarray], part: Part = "test") -> bytes:
    """Draws what the routers learned: for each a heat map, classes by experts.

    Args:
        attention: For every router, one at least, its mean attention by class,
            (classes, K).
        part: Of which images it is.
    """
    columns = min(4 if len(attention) <= 16 else 6, len(attention))
    rows = math.ceil(len(attention) / columns)
    classes = len(next(iter(attention.values())))
    experts = max(table.shape[1] for table in attention.values())
    panel = (
        1.2 + 0.55 * min(experts, MOST_EXPERTS),
        1.2 + 0.38 * min(classes, MOST_CLASSES),
    )
    # A Figure of its own, not pyplot's: no display is opened and no state is shared.
    figure = Figure((columns * panel[0] + 1.2, rows * panel[1]), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    # White is an even share, of which routers may have different ones. The scale does
    # not shrink with the differences, or routers that learned nothing would look as if
    # they had.
    ratios = {path: _to_even(table) for path, table in attention.items()}
    lowest = min(float(each.min()) for each in ratios.values())
    highest = max(float(each.max()) for each in ratios.values())
    norm = TwoSlopeNorm(vmin=min(0, lowest), vcenter=1, vmax=max(highest, 2))
    for axes in grid.flat[len(attention) :]:
        axes.remove()
    for axes, (path, table) in zip(grid.flat, attention.items(), strict=False):
        axes.imshow(ratios[path], cmap=COLORS, norm=norm, aspect="auto")
        axes.set_title(router_name(path), fontsize=11)
        axes.set_xlabel("expert")
        axes.tick_params(length=0)
        if classes > MOST_CLASSES or table.shape[1] > MOST_EXPERTS:
            continue  # The numbers would run into one another.
        axes.set_xticks(range(table.shape[1]))
        axes.set_yticks(range(classes))
        for (row, column), value in np.ndenumerate(table):
            is_dark = abs(float(norm(ratios[path][row, column])) - 0.5) > 0.3
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                color="white" if is_dark else "black",
                fontsize=8,
            )
    for axes in grid[:, 0]:
        axes.set_ylabel("class")
    figure.colorbar(
        ScalarMappable(norm, COLORS),
        ax=figure.axes,
        label="mean attention, as a multiple of an even share",
        aspect=30,
        pad=0.02,
    )
    figure.suptitle(f"Attention over the experts, by class of the {PARTS[part]} images")
    return as_png(figure)


def _to_even(table: np.ndarray) -> np.ndarray:
    """Returns attention as a multiple of an even share of all there is."""
    even = abs(float(table.mean()))
    return table / even if even else table + 1


def draw_comparison(
    runs: Mapping[str, tuple[Sequence[Mapping], Sequence[Mapping]]],
) -> bytes:
    """Draws the curves of several runs over one another.

    Args:
        runs: For each name the rows of the metrics of training, and of the tests.
    """
    figure = Figure((11, 4.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for index, (training, tests) in enumerate(runs.values()):
        color = f"C{index % 10}"
        style = ("-", "--", ":", "-.")[index // 10 % 4]
        for axes, key in ((loss, "loss"), (accuracy, "accuracy")):
            axes.plot(*_curve(training, key), color=color, alpha=0.3, linewidth=1)
            axes.plot(
                *_curve(tests, f"test_{key}", f"val_{key}"),
                color=color,
                linestyle=style,
                linewidth=2,
                marker="o" if len(tests) < 20 else None,
                markersize=4,
                label=f"run {index}",
            )
    loss.set_ylabel("loss")
    loss.set_yscale("log")
    accuracy.set_ylabel("accuracy")
    for axes in (loss, accuracy):
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = loss.get_legend_handles_labels()
    legend = figure.legend(
        *(handles, labels),
        loc="outside lower center",
        ncols=min(4, len(runs)),
        frameon=False,
        title="test or validation (strong) and training (faint)",
    )
    for label, name in zip(legend.get_texts(), runs, strict=True):
        label.set_parse_math(False)  # a name is no formula
        label.set_text(printable(name))
    return as_png(figure)


def _curve(rows: Sequence[Mapping], *keys: str) -> tuple[list, list]:
    """Returns steps and values of what has one of some names."""
    points = [(row["step"], row[key]) for row in rows for key in keys if key in row]
    return [step for step, _ in points], [value for _, value in points]


def as_png(figure: Figure) -> bytes:
    """Returns a figure as the content of a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # of letters that the font has not
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
