"""What came out, as results.json has it; the page is made of nothing else."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from train.commands.study.estimates import adjust, estimate
from train.commands.study.flags import StudyFlags
from train.commands.study.plan import Comparison, Entrant, entrants_of
from train.machines.description import describe

# Of each entrant what its runs left in summary.json, by seed.
Summaries = Mapping[Entrant, Sequence[Mapping[str, Any]]]


def seconds_of(
    entrant: Entrant, batch_size: int, summaries: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Returns how long the training of each seed took, without what is around it."""
    images = entrant.steps * batch_size
    return [images / summary["images_per_second"] for summary in summaries]


def results_of(
    flags: StudyFlags, comparisons: Sequence[Comparison], summaries: Summaries
) -> dict[str, Any]:
    """Returns accuracies in percent, their differences, and whether budgets are equal.

    Args:
        flags: What was compared, and how.
        comparisons: Who was compared with whom.
        summaries: What came out for each entrant.
    """
    entrants = list(dict.fromkeys([flags.base, *entrants_of(comparisons)]))
    rows = {each: _row(each, flags, summaries[each]) for each in entrants}
    return {
        "seeds": flags.seeds,
        "steps": flags.steps,
        "batch_size": flags.batch_size,
        "learning_rate": flags.learning_rate,
        "width_mult": flags.width_mult,
        "jobs": flags.side_by_side,
        "machine": describe(),
        "entrants": list(rows.values()),
        "comparisons": _compared(comparisons, rows),
    }


def _row(
    entrant: Entrant, flags: StudyFlags, summaries: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    accuracies = [100 * summary["test_accuracy"] for summary in summaries]
    seconds = seconds_of(entrant, flags.batch_size, summaries)
    found = estimate(accuracies)
    return {
        "name": entrant.name,
        "conv": entrant.conv,
        "width_mult": entrant.width_mult,
        "steps": entrant.steps,
        "parameters": entrant.count("parameters"),
        "multiply_adds": entrant.count("multiply_adds"),
        "seconds": seconds,
        "milliseconds_per_step": 1e3 * statistics.median(seconds) / entrant.steps,
        "accuracies": accuracies,
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "params_sha256": [summary["params_sha256"] for summary in summaries],
    }


def _compared(
    comparisons: Sequence[Comparison], rows: Mapping[Entrant, dict[str, Any]]
) -> list[dict[str, Any]]:
    records = []
    for each in comparisons:
        member, static = rows[each.member], rows[each.static]
        differences = [
            ours - theirs
            for ours, theirs in zip(
                member["accuracies"], static["accuracies"], strict=True
            )
        ]
        found = estimate(differences)
        if each.budget == "time":
            budgets = [statistics.median(row["seconds"]) for row in (member, static)]
        else:
            budgets = [row[each.budget] for row in (member, static)]
        records.append(
            {
                "budget": each.budget,
                "conv": each.member.conv,
                "member": member["name"],
                "static": static["name"],
                "static_over_member": budgets[1] / budgets[0],
                "differences": differences,
                "mean": found.mean,
                "low": found.low,
                "high": found.high,
                "p_value": found.p_value,
                "is_decided": found.is_decided,
            }
        )
    adjusted = adjust([record["p_value"] for record in records])
    for record, p_value in zip(records, adjusted, strict=True):
        record["adjusted_p_value"] = p_value
    return records
