"""Times the programs on the chip, and holds the compiler's bounds against the times."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.compiled.chips import Chip
from benchmarks.compiled.figures import rank_correlation
from benchmarks.compiled.jobs import Job
from benchmarks.compiled.run import describe, key, run_job

TIMER = "benchmarks.compiled.timed"


def measure_all(
    jobs: list[Job], chip: Chip, limit_of: Callable[[Job], float], folder: Path
) -> Path:
    """Times programs one after the other, and writes and prints a comparison.

    Args:
        jobs: What to time.
        chip: What they are timed on.
        limit_of: Seconds after which a program is given up.
        folder: Where the bounds are, if there are any, and `<chip>-times.json` goes.

    Returns:
        The path of the comparison.
    """
    path = folder / f"{chip.name}.json"
    bounds = json.loads(path.read_text())["records"] if path.exists() else {}
    folder.mkdir(parents=True, exist_ok=True)
    times: dict[str, dict[str, Any]] = {}
    for job in jobs:
        name = key(job)
        times[name] = run_job(job, chip, limit_of(job), TIMER) | describe(job)
        times[name]["bound"] = bounds.get(name, {}).get("bound")
        print(f"{name}: {_time(times[name])}", flush=True)
        written = folder / f"{chip.name}-times.json"
        written.write_text(json.dumps(times, indent=1, ensure_ascii=False) + "\n")
    page = folder / f"{chip.name}-times.md"
    page.write_text(comparison(times, chip))
    print(f"\n{page.read_text()}\nwritten to {page}")
    return page


def comparison(times: Mapping[str, Mapping[str, Any]], chip: Chip) -> str:
    """Returns the times beside the bounds, and how well these rank them."""
    rows = [
        f"| {name.replace(' | ', ', ')} | {_bound(each['bound'])} | {_time(each)} "
        f"| {each.get('by', '')} |"
        for name, each in times.items()
    ]
    lines = [
        f"# Times on {chip.name}, beside the compiler's bounds",
        "",
        "| | bound, µs | time, µs | by |",
        "|---|---:|---:|---|",
        *rows,
        "",
        f"Spearman's rank correlation of bound and time: {_rank(times.values())}.",
        "",
        "Within each shape and pass:",
        "",
    ]
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for each in times.values():
        groups.setdefault((each["title"], each["variant"]), []).append(each)
    lines += [
        f"- {title}, {variant}: {_rank(group)}"
        for (title, variant), group in groups.items()
    ]
    return "\n".join(lines) + "\n"


def _rank(records: Any) -> str:
    both = [
        (each["bound"], each["time"])
        for each in records
        if each["bound"] is not None and "time" in each
    ]
    found = rank_correlation([one for one, _ in both], [other for _, other in both])
    return f"{len(both)} programs, " + ("–" if found is None else f"{found:.2f}")


def _bound(bound: float | None) -> str:
    return "–" if bound is None else f"{bound:.1f}"


def _time(record: Mapping[str, Any]) -> str:
    if "time" in record:
        return f"{record['time']:.1f}"
    if "late" in record:
        return f"none within {record['late']:.0f} s"
    return record["refused"]
