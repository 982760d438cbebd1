"""The page that tells of a run: one file, which opens without a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from dynconv_jax.weights import write_file
from train.data.dataset import Dataset
from train.learning.evaluation import Evaluation
from train.machines.description import describe, describe_code
from train.showing.report import sections
from train.showing.report.markup import text
from train.storage.finished import read_run
from train.storage.run_files import REPORT, TWIN, has_twin

STYLE = Path(__file__).with_name("style.css")


def _machine() -> dict[str, str]:
    """Returns what the run was on: machine, versions, devices, and which code."""
    return {
        **describe(),
        "devices": str(jax.device_count()),
        "processes": str(jax.process_count()),
        "commit": describe_code() or "not a checkout",
    }


def write_report(
    path: Path, dataset: Dataset, evaluation: Evaluation, summary: Mapping[str, Any]
) -> None:
    """Writes report.html into the directory of a run.

    Args:
        path: The directory; its configuration and metrics are read.
        dataset: What the run was trained and evaluated on.
        evaluation: How it did at its end.
        summary: What summary.json will hold: that is written after the report.

    Raises:
        OSError: If the page cannot be written.
    """
    run = read_run(path)
    twin = read_run(path / TWIN) if has_twin(summary) else None
    flags = run.config
    title = f"{flags.model} on {flags.preset}"
    convolutions = f", {flags.conv} convolutions" if flags.conv else ""
    body = "".join(
        (
            sections.headline(summary, evaluation),
            sections.curves(run, twin),
            sections.routing(run, evaluation, dataset),
            sections.mistakes(evaluation, dataset),
            sections.cost(summary, evaluation),
            sections.configuration(run),
            sections.environment(_machine()),
        )
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)} – {text(run.name)}</title>"
        f"<style>{STYLE.read_text('utf-8')}</style></head><body><main>"
        f"<header><h1>{text(title)}</h1>"
        f"<p>{text(run.name)}{text(convolutions)}, seed {flags.seed}; "
        f"{dataset.in_words()}</p>"
        f"</header>{body}<footer>params_sha256 "
        f"<code>{text(summary['params_sha256'])}</code></footer></main></body></html>\n"
    )
    write_file(path / REPORT, page.encode("utf-8", "replace"))
