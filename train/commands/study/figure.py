"""The plot of a study: differences to static, and accuracy over each budget."""

import statistics
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from train.showing.figures import as_png

# The budgets, the name of each in a title, and on an axis.
AXES = {
    "parameters": ("parameters", "parameters"),
    "multiply_adds": ("multiply-adds", "multiply-adds of an image"),
    "time": ("training time", "seconds of training"),
}
STATIC = "0.35"


def draw(results: Mapping[str, Any]) -> bytes:
    """Returns the plot as PNG.

    Args:
        results: What came out, see `train.commands.study.results`.
    """
    figure = Figure(figsize=(12, 7.8), layout="constrained")
    panels = figure.subplots(2, len(AXES), sharey="row")
    convs = list(dict.fromkeys(each["conv"] for each in results["comparisons"]))
    colors = {conv: f"C{index}" for index, conv in enumerate(convs)}
    for (budget, (title, axis)), above, below in zip(
        AXES.items(), *panels, strict=True
    ):
        _draw_differences(above, budget, results, colors)
        above.set_title(f"same {title}")
        _draw_accuracies(below, budget, results, colors)
        below.set_xlabel(axis)
    panels[0][0].set_yticks(range(len(convs)), convs)
    panels[0][0].set_ylim(len(convs) - 0.4, -0.6)
    panels[0][1].set_xlabel(
        "test accuracy less that of static, percentage points: mean, 95 % interval, "
        "seeds"
    )
    panels[1][0].set_ylabel("test accuracy, %")
    handles = panels[1][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(convs) + 1)
    return as_png(figure)


def _draw_differences(panel: Any, budget: str, results: Any, colors: Any) -> None:
    panel.axvline(0, color=STATIC, linewidth=1)
    compared = [each for each in results["comparisons"] if each["budget"] == budget]
    for row, each in enumerate(compared):
        color = colors[each["conv"]]
        reach = each["high"] - each["mean"]
        panel.errorbar(
            each["mean"], row, xerr=reach, fmt="o", color=color, capsize=4, linewidth=2
        )
        differences = each["differences"]
        rows = [row + 0.25] * len(differences)
        panel.plot(differences, rows, "|", color=color, alpha=0.7)
    panel.grid(axis="x", alpha=0.3)


def _draw_accuracies(panel: Any, budget: str, results: Any, colors: Any) -> None:
    """Draws the static nets as a line, and the members as points."""

    def spent(row: Mapping[str, Any]) -> float:
        if budget == "time":
            return statistics.median(row["seconds"])
        return row[budget]

    def of_budget(row: Mapping[str, Any]) -> bool:
        """Whether a static net differs from the base in nothing but this budget."""
        kept = "width_mult" if budget == "time" else "steps"
        return row[kept] == results[kept]

    static = [row for row in results["entrants"] if row["conv"] == "static"]
    static = sorted(filter(of_budget, static), key=spent)
    drawn = [("static", static, STATIC, "s-")]
    for row in results["entrants"]:
        if row["conv"] in colors:
            drawn.append((row["conv"], [row], colors[row["conv"]], "o"))
    for label, rows, color, form in drawn:
        panel.errorbar(
            [spent(row) for row in rows],
            [row["mean"] for row in rows],
            yerr=[row["high"] - row["mean"] for row in rows],
            fmt=form,
            color=color,
            capsize=3,
            label=label,
        )
    panel.grid(alpha=0.3)
