"""Pictures of a run."""

import io
import math
from collections.abc import Mapping

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

COLORS = "PuOr_r"  # light in the middle of the scale


def draw_routing(attention: Mapping[str, np.ndarray]) -> bytes:
    """Draws what the routers learned: for each a heat map, classes by experts.

    Args:
        attention: For every router its mean attention by class, (classes, K).

    Returns:
        The picture, as PNG.
    """
    columns = min(4, len(attention))
    rows = math.ceil(len(attention) / columns)
    classes, experts = next(iter(attention.values())).shape
    panel = (1.2 + 0.55 * experts, 1.2 + 0.38 * classes)
    # A Figure of its own, not pyplot's: no display is opened and no state is shared.
    figure = Figure((columns * panel[0] + 1.2, rows * panel[1]), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    even = 1 / experts
    highest = max(float(each.max()) for each in attention.values())
    # White is an even share. The scale does not shrink with the differences, or routers
    # that learned nothing would look as if they had.
    norm = TwoSlopeNorm(vmin=0, vcenter=even, vmax=max(highest, 2 * even))
    for axes in grid.flat[len(attention) :]:
        axes.remove()
    for axes, (path, table) in zip(grid.flat, attention.items(), strict=False):
        axes.imshow(table, cmap=COLORS, norm=norm, aspect="auto")
        axes.set_title(path.removesuffix(".router") or "router", fontsize=11)
        axes.set_xlabel("expert")
        axes.set_xticks(range(table.shape[1]))
        axes.set_yticks(range(table.shape[0]))
        axes.tick_params(length=0)
        if table.shape[1] > 8:  # The numbers would run into one another.
            continue
        for (row, column), value in np.ndenumerate(table):
            is_dark = abs(float(norm(value)) - 0.5) > 0.35
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
        label="mean attention (white: an even share)",
        aspect=30,
        pad=0.02,
    )
    figure.suptitle("Attention over the experts, by class of the test images")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
