"""The page about one chip: tables of bounds, and what they are."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.compiled import figures
from benchmarks.compiled.chips import CHIPS, Chip
from benchmarks.compiled.figures import Record
from benchmarks.compiled.jobs import AUTO, EVERY_FORM, PASSES, STATIC
from benchmarks.stacks import BY_MAP, BY_VMAP, OURS
from dynconv_jax.weights import write_file

_WHAT = {
    "tpu": (
        "the larger of two parts: the *schedule*, that is the VLIW bundles that the "
        "compiler has written down, counted through its loops, at {clock:g} GHz; and "
        "the bytes that operations read from and write to the chip's memory, at "
        "{bandwidth:g} GB/s. Waiting for memory, and for other chips, is in neither."
    ),
    "gpu": (
        "the sum over its kernels of the larger of two parts, the arithmetic of "
        "products and convolutions at {flops:g} Tflop/s and the bytes that the kernel "
        "reads and writes at {bandwidth:g} GB/s, and 2 µs for each kernel. Nothing is "
        "autotuned, and how slow a library's kernel is (cuDNN's for grouped "
        "convolutions, as `vmap` takes) is not in it."
    ),
}


def write_page(results: Mapping[str, Any], folder: Path) -> Path:
    """Writes the page beside the records; returns its path."""
    path = folder / f"{results['chip']}.md"
    write_file(path, page(results).encode())
    return path


def page(results: Mapping[str, Any]) -> str:
    """Returns the page in Markdown."""
    chip = CHIPS[results["chip"]]
    records = list(results["records"].values())
    parts = [
        f"# What the compiler says of {chip.name}",
        _introduction(results, chip),
        *(_layers(records, results["choices"], variant) for variant in PASSES[::-1]),
        _stacks(records),
        _steps(records),
        _refusals(records),
        _remarks(records),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(results: Mapping[str, Any], chip: Chip) -> str:
    versions = ", ".join(f"{name} {of}" for name, of in results["versions"].items())
    what = _WHAT[chip.platform].format(
        clock=chip.clock / 1e9, bandwidth=chip.bandwidth / 1e9, flops=chip.flops / 1e12
    )
    return (
        f"Compiled on {results['date']} by `python -m benchmarks.compiled --chip "
        f"{chip.name}` on a machine without such a chip: {versions}. **No figure here "
        "is a time.** Each is the compiler's estimate, a lower bound in µs: "
        f"{what} It is for ratios between forms. "
        "[How it is made](../compiled.md)."
    )


def _cell(record: Record | None) -> str:
    if record is None:
        return "–"
    if "bound" in record:
        inexact = "≥ " if record["unknown"] else ""
        return f"{inexact}{record['bound']:.0f}"
    return f"> {record['late']:.0f} s" if "late" in record else "refused"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}×"


def _columns(records: Iterable[Record]) -> list[str]:
    """Returns the forms as the library has them, the static one first, `auto` last."""
    names = dict.fromkeys(each["form_title"] for each in records)
    middle = [name for name in names if name not in (STATIC, AUTO, *EVERY_FORM)]
    return [STATIC, *(name for name in EVERY_FORM if name in names), *middle, AUTO]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _layers(records: list[Record], choices: Mapping[str, str], variant: str) -> str:
    """Returns the tables of one pass of the layers."""
    chosen = [
        each
        for each in records
        if each["kind"] == "layer" and each["variant"] == variant
    ]
    if not chosen:
        return ""
    columns = _columns(chosen)
    bounds, ratios = [], []
    found: dict[str, list[float | None]] = {"static": [], "regret": []}
    for title in figures.titles(chosen, "layer"):
        forms = figures.by_form(chosen, title, variant)
        bounds.append([title, *(_cell(forms.get(name)) for name in columns)])
        least = figures.best(forms)
        row = [figures.over_static(forms, AUTO), figures.regret(forms)]
        for values, value in zip(found.values(), row, strict=True):
            values.append(value)
        best = ""
        if least is not None:
            over = _times(figures.over_static(forms, least[0]))
            best = ", ".join(filter(None, (least[0], over)))
        ratios.append([title, best, choices[title], *map(_times, row)])
    means = [
        figures.geometric_mean(each for each in values if each is not None)
        for values in found.values()
    ]
    counts = [sum(each is not None for each in values) for values in found.values()]
    shown = [
        f"{_times(mean)} ({count})" for mean, count in zip(means, counts, strict=True)
    ]
    ratios.append(["**geometric mean** (of)", "", "", *shown])
    parts = [
        f"## Layers, {variant}",
        "bfloat16, K = 4, the attention given"
        + (", all outputs and gradients returned" if variant == PASSES[1] else "")
        + ". Bounds in µs (the compiler's estimate, not a time); `> n s` was not "
        "compiled within n seconds, `≥` lacks what is listed at the end of the page, "
        "– is a form that cannot compute the shape or has not been compiled.",
        _table(["", *columns], bounds),
        _parts(chosen, columns, variant),
        "Ratios of these estimates. Regret is the bound over that of the best form "
        "compiled that `auto` may choose: `vmap`, the reference, is left out, and so "
        "are kernels that are offered by name only, and what could not be counted "
        "whole.",
        _table(
            [
                "",
                "best form, over static",
                "`auto` chooses",
                "`auto` over static",
                "regret of `auto`",
            ],
            ratios,
        ),
    ]
    return "\n\n".join(parts)


def _parts(records: list[Record], columns: list[str], variant: str) -> str:
    """Returns both parts of each bound, and the temporary memory."""
    rows = []
    for title in figures.titles(records, "layer"):
        forms = figures.by_form(records, title, variant)
        cells = []
        for name in columns:
            record = forms.get(name, {})
            if "bound" not in record:
                cells.append("")
                continue
            cells.append(
                f"{record['compute']:.0f}, {record['memory']:.0f}, "
                f"{(record['temporary'] or 0) / 1e6:.0f} MB"
            )
        rows.append([title, *cells])
    return (
        "The two parts of these estimates, arithmetic or schedule and memory (µs), and "
        "the memory that the compiler sets aside for temporaries:\n\n"
        f"{_table(['', *columns], rows)}"
    )


def _stacks(records: list[Record]) -> str:
    """Returns the table of the mapped convolutions."""
    stacks = [each for each in records if each["kind"] == "stack"]
    if not stacks:
        return ""
    others = (BY_VMAP, BY_MAP)
    rows = []
    for title in figures.titles(stacks, "stack"):
        for variant in PASSES:
            ways = figures.by_form(stacks, title, variant)
            own = ways.get(OURS, {}).get("bound")
            ratios = [
                _times(each["bound"] / own) if own and "bound" in each else _cell(each)
                for each in (ways[way] for way in others if way in ways)
            ]
            sizes = [
                f"{(ways[way].get('temporary') or 0) / 1e6:.1f}"
                if "bound" in ways.get(way, {})
                else ""
                for way in (OURS, *others)
            ]
            if ways:
                cells = [_cell(ways.get(OURS)), *ratios, *sizes]
                rows.append([f"{title}, {variant}", *cells])
    head = ["", "`conv`, µs", "`jax.vmap` over it", "`lax.map` over it"]
    head += ["MB: `conv`", "`jax.vmap`", "`lax.map`"]
    return (
        "## Mapped convolutions\n\n`dynconv_jax.conv` under `jax.vmap`, and what "
        "`jax.vmap` and `jax.lax.map` of XLA's convolution are over it, in bfloat16. "
        "Bounds are the compiler's estimates (not times); MB are temporaries.\n\n"
        f"{_table(head, rows)}"
    )


def _steps(records: list[Record]) -> str:
    """Returns the table of the training steps."""
    steps = [each for each in records if each["kind"] == "step"]
    if not steps:
        return ""
    static = {
        (each["title"], each["variant"]): each
        for each in steps
        if each["form_title"] == STATIC
    }
    rows = []
    for record in steps:
        cells = [""] * 6
        if "bound" in record:
            twin = static.get((record["static_title"], record["variant"]), {})
            has_ratio = "bound" in twin and twin is not record
            collectives = ", ".join(
                f"{count} {kind}" for kind, count in record["collectives"].items()
            )
            unread = f", {record['unread']} not read" if record["unread"] else ""
            cells = [
                _times(record["bound"] / twin["bound"] if has_ratio else None),
                f"{record['compute'] / 1e3:.2f}, {record['memory'] / 1e3:.2f}",
                f"{(record['temporary'] or 0) / 1e6:.0f} MB",
                collectives or "none",
                f"{record['aliased']} of {record['donated']}{unread}",
                f"{record['seconds']:.0f} s",
            ]
            inexact = "≥ " if record["unknown"] else ""
            cell = f"{inexact}{record['bound'] / 1e3:.2f}"
        else:
            cell = _cell(record)
        rows.append(
            [record["title"], record["form_title"], record["variant"], cell, *cells]
        )
    head = ["", "form", "chips", "bound, ms", "over static", "its parts, ms"]
    head += ["temporaries", "collectives", "donated state aliased", "compiled in"]
    rows.sort(key=lambda row: (row[0], int(row[2])))
    return (
        "## Training steps\n\nThe step of `python -m train`, bfloat16, AdamW, the "
        "batch cut over the chips; of one chip's share. Bounds are the compiler's "
        "estimates (not times), without what collectives cost; over static is the "
        "bound over that of the same network with static convolutions. Collectives "
        "are counted after the compiler has combined them, by the dtypes they carry. "
        "State that is not read, but only written, as temperatures are by their "
        "schedule, is no argument of the program, and has nothing to be aliased "
        f"with.\n\n{_table(head, rows)}"
    )


def _refusals(records: list[Record]) -> str:
    lines = [
        f"- {each['title']}, {each['variant']}, {each['form_title']}: {each['refused']}"
        for each in records
        if "refused" in each
    ]
    return "\n".join(["## What was refused", "", *lines]) if lines else ""


def _remarks(records: list[Record]) -> str:
    lines = [
        f"- {each['title']}, {each['variant']}, {each['form_title']}: "
        + "; ".join(each["unknown"])
        for each in records
        if each.get("unknown")
    ]
    if not lines:
        return ""
    return "\n".join(
        [
            "## What could not be counted",
            "",
            "Loops are counted once here, and operations without bundles not at all:",
            "",
            *lines,
        ]
    )
