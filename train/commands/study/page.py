"""The page of a study: what was asked, how, and what came out, whichever way."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynconv_jax.weights import write_file
from train.commands.study.figure import draw
from train.commands.study.plan import SHARE_OF_STEPS, TOLERANCE, UNEQUAL
from train.errors import TrainingFailed

PAGE = "index.md"
PICTURE = "accuracy.png"
RESULTS = "results.json"

Record = Mapping[str, Any]

BUDGETS = {
    "parameters": "parameters",
    "multiply_adds": "multiply-adds",
    "time": "training time",
}
SIGNIFICANT = 0.05
TRAIN_IMAGES = 60_000


def write_page(results: Record, folder: Path) -> Path:
    """Writes index.md, accuracy.png and results.json.

    Args:
        results: What came out, see `train.commands.study.results`, with `command`
            and `date`.
        folder: An existing directory.

    Returns:
        The page.

    Raises:
        TrainingFailed: If a file cannot be written.
    """
    page = folder / PAGE
    try:
        write_file(
            folder / RESULTS, (json.dumps(results, indent=1) + "\n").encode("utf-8")
        )
        write_file(folder / PICTURE, draw(results))
        write_file(page, ("\n\n".join(paragraphs(results)) + "\n").encode("utf-8"))
    except OSError as error:
        raise TrainingFailed(
            f"{folder} cannot be written: {error.strerror}; free it and give the same "
            "command again, the runs are kept"
        ) from error
    return page


def paragraphs(results: Record) -> Iterator[str]:
    """Yields the page, paragraph by paragraph, as Markdown."""
    seeds, steps, batch_size = (
        results[name] for name in ("seeds", "steps", "batch_size")
    )
    epochs = steps * batch_size / TRAIN_IMAGES
    yield "# Is it the convolution, or what it costs?"
    yield (
        "A dynamic convolution has more parameters than the static one in its place, "
        "takes more multiply-adds, and more time. So a static network may be given as "
        "much before the two are compared: here each member of the family meets a "
        "static network of the same parameters, one of the same multiply-adds, and one "
        "of the same training time."
    )
    yield f"![Differences and accuracies]({PICTURE})"
    yield "## What came out"
    yield from (_verdict(budget, results) for budget in BUDGETS)
    yield _count(results["comparisons"])
    yield (
        "Differences of test accuracy to the static network, in percentage points, "
        f"with their 95 % intervals over {seeds} seeds. **Bold**: the interval leaves "
        f"0 out. †: still so (p < {SIGNIFICANT}) after Holm's correction for all "
        f"comparisons of the table. ‡: the budgets are more than {UNEQUAL:.0%} apart, "
        "as the third table has it."
    )
    yield _differences(results)
    yield "All networks, with the 95 % interval of the mean accuracy:"
    yield _entrants(results)
    yield "## Whether the budgets are equal"
    yield (
        "What the static network has, of what the member has. Parameters and "
        "multiply-adds (of one image, forward, kernels made per sample included) are "
        "counted; times are those that the runs took, their medians over the seeds."
    )
    yield _budgets(results)
    yield "## How it was done"
    yield (
        f"`{results['command']}`, on {results['date']}. Each run is an ordinary one of "
        "DynamicNet on Fashion-MNIST, with AdamW, a cosine from "
        f"{results['learning_rate']:g} and the preset's augmentation. Members are at "
        f"{results['width_mult']:g} of its width and trained for {steps} steps of "
        f"{batch_size} images ({epochs:.1f} epochs); they have the options that the "
        "library gives them, and the temperature falls from 30 to 1 in a tenth of the "
        "steps. The recipe is the same for all and was tuned for none. The accuracy is "
        "that of the last step on the 10,000 test images; nothing was chosen by it."
    )
    yield "\n".join(
        [
            "- Same parameters, same multiply-adds: the static network is as much "
            "wider as that takes (to whole channels; members that one serves to "
            f"{TOLERANCE:.0%} share it) and trained for as many steps.",
            "- Same time: the static network of the member's width is trained for as "
            "many steps as it takes in the member's time, in multiples of "
            f"{SHARE_OF_STEPS:.0%} of the steps, its schedules stretched to them: of "
            "those trained the nearest in time, and more were trained, by the pace of "
            f"the nearest, where that was more than {UNEQUAL:.0%} off. "
            f"Times are of training alone, with {results['jobs']} run(s) at a time, "
            "compilation and evaluation left out.",
            "- A seed gives a member and its static counterparts of as many steps the "
            "same batches, so differences are taken seed by seed, and their intervals "
            "are Student's t of these differences.",
        ]
    )
    yield "## What it does not say"
    yield (
        "The intervals are about other seeds, not about other data, networks or "
        "recipes. This is one network and one length of training: a longer one may "
        "end elsewhere, and members that learn slowly at first are judged early. The "
        "times are those of this machine; on another one, the same time is another "
        "number of steps. "
        f"With {seeds} seeds a difference within the intervals cannot be told from "
        "none: that is not a proof of equality. Those with more time ask again: "
        "`python -m train study --steps 20000 --seeds 10 --width-mult 1`."
    )
    described = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    yield f"Machine: {described}. Every run: [{RESULTS}]({RESULTS})."


def _verdict(budget: str, results: Record) -> str:
    """Says in words who was ahead, who behind, and of whom that cannot be said.

    It takes more to be named than an interval without 0: of many, some have none.
    """
    ahead, behind, open_ = [], [], []
    for each in results["comparisons"]:
        if each["budget"] == budget:
            words = f"{each['conv']} ({each['mean']:+.2f})"
            if not _is_certain(each):
                open_.append(words)
            else:
                (ahead if each["mean"] > 0 else behind).append(words)
    said = [
        f"{', '.join(names)} {verb}"
        for names, verb in (
            (ahead, "ahead of static"),
            (behind, "behind static"),
            (open_, "undecided"),
        )
        if names
    ]
    return f"**At the same {BUDGETS[budget]}:** {'; '.join(said)}."


def _count(comparisons: Sequence[Record]) -> str:
    decided = sum(each["is_decided"] for each in comparisons)
    return (
        f"Of {len(comparisons)} comparisons {decided} are decided, each taken alone, "
        f"where about {0.05 * len(comparisons):.1f} would be by chance if no two "
        f"differed at all; {sum(map(_is_certain, comparisons))} remain after Holm's "
        "correction, and only they are called ahead or behind above."
    )


def _is_certain(comparison: Record) -> bool:
    return comparison["adjusted_p_value"] < SIGNIFICANT


def _differences(results: Record) -> str:
    def cell(each: Record) -> str:
        mean = f"{each['mean']:+.2f}"
        mean = f"**{mean}**" if each["is_decided"] else mean
        mark = "†" * _is_certain(each)
        mark += "‡" * (abs(each["static_over_member"] - 1) > UNEQUAL)
        return f"{mean}{mark} [{each['low']:+.2f}, {each['high']:+.2f}]"

    return _by_member(results, [f"same {name}" for name in BUDGETS.values()], cell)


def _budgets(results: Record) -> str:
    def cell(each: Record) -> str:
        return f"{each['static_over_member']:.3f}"

    return _by_member(results, list(BUDGETS.values()), cell)


def _by_member(results: Record, heads: Sequence[str], cell: Any) -> str:
    """Returns a table with a row for each member and a column for each budget."""
    cells: dict[str, dict[str, str]] = {}
    for each in results["comparisons"]:
        cells.setdefault(each["conv"], {})[each["budget"]] = cell(each)
    rows = [[conv, *(row[budget] for budget in BUDGETS)] for conv, row in cells.items()]
    return _table(["", *heads], rows)


def _entrants(results: Record) -> str:
    rows = [
        [
            each["conv"],
            f"{each['width_mult']:.4g}",
            f"{each['steps']:,}",
            f"{each['parameters']:,}",
            f"{each['multiply_adds'] / 1e6:.3f} M",
            f"{each['milliseconds_per_step']:.1f} ms",
            f"{each['mean']:.2f} % [{each['low']:.2f}, {each['high']:.2f}]",
        ]
        for each in results["entrants"]
    ]
    heads = ["", "width", "steps", "parameters", "multiply-adds", "a step", "accuracy"]
    return _table(heads, rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
