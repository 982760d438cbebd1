"""The page: tables and plots of what was measured, and which goals were met."""

import io
import json
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

from benchmarks.tables import write_tables  # noqa: E402
from dynconv_jax.weights import write_file  # noqa: E402

Record = Mapping[str, Any]

SUBJECTS = {"forward": "forward", "gradient": "forward + backward"}
TORCH_FORMS = ("torch grouped", "torch loop")

# environment: (subject, least geometric mean, least ratio, least ratios of the step to
# PyTorch by batch, most times the floor). From the design of the library.
GOALS = {
    "as found": {"layers": (1.5, 0.9), "depthwise": (1.2, 0.9), 32: 3.0, 128: 3.0},
    "pages kept": {"layers": (1.0, 0.7), 32: 1.7, 128: 1.7},
}
MOST_TIMES_FLOOR = 3.0
LEAST_OVER_VMAP = 20.0


# How calls were timed: each between those of the others, or in a row of its own.
IN_TURN, IN_A_ROW = "median", "steady"


def _median(timings: Record, name: str, how: str = IN_TURN) -> float:
    return timings[name][how]


def torch_best(timings: Record, how: str = IN_TURN) -> float:
    """Returns the time of the better of PyTorch's two published forms."""
    return min(_median(timings, form, how) for form in TORCH_FORMS)


def ratio(timings: Record, how: str = IN_TURN) -> float:
    """Returns how many times faster than PyTorch's best `"auto"` is."""
    return torch_best(timings, how) / _median(timings, "jax auto", how)


def goals(results: Record) -> Iterator[tuple[str, str, str, bool]]:
    """Yields what is asked, how much of it, what came out, and whether it is met."""
    for environment, measured in results["environments"].items():
        record = measured["float32"]
        asked = GOALS[environment]
        for subject in ("layers", "depthwise"):
            if subject not in asked:
                continue
            least_mean, least = asked[subject]
            ratios, steady = (
                [ratio(each["gradient"], how) for each in record[subject]]
                for how in (IN_TURN, IN_A_ROW)
            )
            mean = statistics.geometric_mean(ratios)
            yield (
                f"{subject}, forward + backward over PyTorch's best, {environment}",
                f"geometric mean ≥ {least_mean}, none under {least}",
                f"{mean:.2f}, lowest {min(ratios):.2f} (in a row "
                f"{statistics.geometric_mean(steady):.2f}, lowest {min(steady):.2f})",
                mean >= least_mean and min(ratios) >= least,
            )
        for net in record["nets"]:
            yield from _net_goals(net, environment, asked)


def _net_goals(
    net: Record, environment: str, asked: Mapping
) -> Iterator[tuple[str, str, str, bool]]:
    step, batch = net["step"], net["batch"]
    ours = _median(step, "jax auto")
    if batch in asked:
        over_torch = _median(step, "torch grouped") / ours
        yield (
            f"DynamicNet step, B {batch}, over PyTorch grouped, {environment}",
            f"≥ {asked[batch]}",
            f"{over_torch:.2f}",
            over_torch >= asked[batch],
        )
    if batch != 32:
        return
    over_floor = ours / net["floor_ms"]
    yield (
        f"DynamicNet step, B {batch}, over its arithmetic, {environment}",
        f"≤ {MOST_TIMES_FLOOR}",
        f"{over_floor:.2f}",
        over_floor <= MOST_TIMES_FLOOR,
    )
    if environment == "as found" and "jax vmap" in step:
        over_vmap = _median(step, "jax vmap") / ours
        yield (
            f"DynamicNet step, B {batch}, over vmap of a convolution",
            f"≥ {LEAST_OVER_VMAP}",
            f"{over_vmap:.1f}",
            over_vmap >= LEAST_OVER_VMAP,
        )


def write_report(results: Record, folder: Path) -> Path:
    """Writes `index.md`, `summary.md`, the plots and the tables into a folder.

    The tables are `layers.csv` and `networks.csv`; `results.json` has all.

    Args:
        results: What the workers measured, by environment and dtype.
        folder: It is made if it is not there.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "results.json", json.dumps(results, indent=1).encode())
    plots = [plot_ratios(results, folder / "ratios.png")]
    first = next(iter(results["environments"].values()))["float32"]
    if "scaling" in first:
        plots.append(plot_growth(first["scaling"], folder / "growth.png"))
    write_file(folder / "summary.md", ("\n".join(summary(results)) + "\n").encode())
    write_tables(results, folder)
    page = folder / "index.md"
    write_file(page, ("\n".join(_page(results, plots)) + "\n").encode())
    return page


def _page(results: Record, plots: list[Path]) -> Iterator[str]:
    environments = results["environments"]
    described = next(iter(environments.values()))["float32"]["machine"]
    yield "# Benchmarks\n"
    yield f"`{results['command']}` on {results['date']}:\n"
    yield from (f"- {name}: {value}" for name, value in described.items())
    yield (
        "\nTimes are medians in milliseconds of calls taken in turn, the quartiles in "
        "brackets, and then the median of calls in a row; each framework computes "
        "in a process of its own. Of a call between others the memory is cold, and has "
        "been given away; goals are judged by those, and that is the first ratio of "
        "two. Ratios above 1 are in favour of dynconv_jax. The floor is the "
        "arithmetic of a static convolution of the shape, at the rate of a 1024³ "
        "product in the same run. For programs: [layers.csv](layers.csv), and "
        "[networks.csv](networks.csv) with timm's names of columns.\n"
    )
    yield "## Goals\n"
    yield "| | goal | measured | |\n|---|---|---|---|"
    for what, asked, measured, is_met in goals(results):
        yield f"| {what} | {asked} | {measured} | {'met' if is_met else '**missed**'} |"
    yield from (f"\n![{path.stem}]({path.name})" for path in plots)
    for environment, by_dtype in environments.items():
        for dtype, record in by_dtype.items():
            yield f"\n## {environment}, {dtype}\n"
            yield from _layer_tables(record)
            yield from _net_tables(record)
    for dtype, record in next(iter(environments.values())).items():
        yield f"\n## Memory of the gradient, {dtype}, MB\n"
        yield from _memory_table([*record["layers"], *record["depthwise"]])
        if "scaling" in record:
            yield f"\n## How cost grows, {dtype}, forward + backward\n"
            yield from _growth_table(record["scaling"])


def summary(results: Record) -> Iterator[str]:
    """Yields a table of how many times faster than PyTorch `"auto"` is."""
    environments = results["environments"]
    records = [by_dtype["float32"] for by_dtype in environments.values()]
    columns = [(subject, record) for subject in SUBJECTS for record in records]
    header = [f"{SUBJECTS[s]}, {e}" for s in SUBJECTS for e in environments]
    rows = []
    for kind in ("layers", "depthwise"):
        ratios = [
            [ratio(each[subject]) for each in record[kind]]
            for subject, record in columns
        ]
        for index, each in enumerate(records[0][kind]):
            rows.append([each["shape"]] + [f"{column[index]:.2f}" for column in ratios])
        means = [statistics.geometric_mean(column) for column in ratios]
        rows.append([f"{kind}, geometric mean"] + [f"{mean:.2f}" for mean in means])
    for index, net in enumerate(records[0]["nets"]):
        cells = []
        for subject, record in columns:
            timings = record["nets"][index][
                "step" if subject == "gradient" else subject
            ]
            ours = _median(timings, "jax auto")
            cells.append(f"{_median(timings, 'torch grouped') / ours:.2f}")
        rows.append([f"DynamicNet, B {net['batch']} (a step of training)", *cells])
    yield from _table(["", *header], rows)


def _cell(timings: Record, name: str) -> str:
    if name not in timings:
        return ""
    timing = timings[name]
    cell = f"{timing['median']:.3g} [{timing['low']:.3g}, {timing['high']:.3g}]"
    return f"{cell} {timing['steady']:.3g}"


def _both_ratios(timings: Record) -> str:
    return f"{ratio(timings):.2f}, {ratio(timings, IN_A_ROW):.2f}"


def _table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|---|{'---:|' * (len(header) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _layer_tables(record: Record) -> Iterator[str]:
    for subject, title in SUBJECTS.items():
        for kind in ("layers", "depthwise"):
            names = list(
                dict.fromkeys(n for each in record[kind] for n in each[subject])
            )
            rows = []
            for each in record[kind]:
                timings = each[subject]
                floor = each["floor_ms"] / (3 if subject == "forward" else 1)
                rows.append(
                    [each["shape"], _both_ratios(timings), f"{floor:.3g}"]
                    + [_cell(timings, name) for name in names]
                )
            yield f"\n### {kind}, {title}\n"
            yield from _table(["", "over PyTorch's best", "floor", *names], rows)


def _net_tables(record: Record) -> Iterator[str]:
    yield "\n### DynamicNet, 32×32 images\n"
    names = list(dict.fromkeys(n for net in record["nets"] for n in net["step"]))
    rows = [
        [f"B {net['batch']}, {subject}", f"{net['floor_ms']:.3g}"]
        + [_cell(net[subject], name) for name in names]
        for net in record["nets"]
        for subject in ("forward", "gradient", "step")
    ]
    yield from _table(["", "floor of the step", *names], rows)
    yield "\nWhere the time of a step goes, from the profiler, ms (cores overlap):\n"
    kinds = list(dict.fromkeys(k for net in record["nets"] for k in net["breakdown"]))
    rows = [
        [f"B {net['batch']}"] + [f"{net['breakdown'].get(k, 0):.3g}" for k in kinds]
        for net in record["nets"]
    ]
    yield from _table(["", *kinds], rows)


def _memory_table(layers: list[Record]) -> Iterator[str]:
    names = list(dict.fromkeys(name for each in layers for name in each["memory"]))
    rows = [
        [each["shape"]]
        + [
            f"{1e3 * each['memory'][n]:.1f}" if n in each["memory"] else ""
            for n in names
        ]
        for each in layers
    ]
    yield from _table(["", *names], rows)


def _growth_table(scaling: list[Record]) -> Iterator[str]:
    names = ("jax auto", "torch grouped")
    rows = [
        [f"{growth['name']} {point['value']}", f"{point['floor_ms']:.3g}"]
        + [_cell(point["gradient"], name) for name in names]
        for growth in scaling
        for point in growth["points"]
    ]
    yield from _table(["", "floor", *names], rows)


def plot_ratios(results: Record, path: Path) -> Path:
    """Draws how many times faster than PyTorch's best each layer is."""
    environments = results["environments"]
    first = next(iter(environments.values()))["float32"]
    shapes = [each["shape"] for kind in ("layers", "depthwise") for each in first[kind]]
    figure, axes = plt.subplots(
        figsize=(8, 0.55 * len(shapes) + 1.4), layout="constrained"
    )
    height = 0.8 / len(environments)
    for index, (name, by_dtype) in enumerate(environments.items()):
        record = by_dtype["float32"]
        values = [
            ratio(each["gradient"])
            for kind in ("layers", "depthwise")
            for each in record[kind]
        ]
        positions = [place + index * height for place in range(len(values))]
        bars = axes.barh(positions, values, height, label=name)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    middle = height * (len(environments) - 1) / 2
    axes.set_yticks([place + middle for place in range(len(shapes))], shapes)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.12)
    ticks = (0.5, 0.7, 1, 1.5, 2, 3, 4)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("times faster than PyTorch's best form, forward + backward")
    axes.legend(title="allocator")
    return _save(figure, path)


def plot_growth(scaling: list[Record], path: Path) -> Path:
    """Draws the time of forward and backward against each size, with the floor."""
    figure, grid = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    for axes, growth in zip(grid.flat, scaling, strict=True):
        points = growth["points"]
        values = [point["value"] for point in points]
        for name in points[0]["gradient"]:
            times = [_median(point["gradient"], name) for point in points]
            axes.plot(values, times, marker="o", label=name)
        floors = [point["floor_ms"] for point in points]
        axes.plot(values, floors, "k--", label="arithmetic at the product rate")
        axes.set(xscale="log", yscale="log", xlabel=growth["name"], ylabel="ms")
        axes.set_xticks(values, [str(value) for value in values])
        axes.minorticks_off()
        decades = [math.log10(value) for value in axes.get_ylim()]  # whole ones
        axes.set_ylim(10 ** math.floor(decades[0]), 10 ** math.ceil(decades[1]))
    grid.flat[0].legend()
    figure.suptitle("Forward + backward of one layer, as each size grows")
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    plt.close(figure)
    write_file(path, picture.getvalue())
    return path
