"""What of a run was exported, on the page that was written when it ended."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynconv_jax.weights import write_file
from train.showing.report.markup import percent, section, table, text
from train.storage.run_files import REPORT

# What the section stands between, so that the next export replaces it.
START, END = "<!-- exported -->", "<!-- /exported -->"
BEFORE = "<footer>"


def show_export(path: Path, out: Path, figures: Mapping[str, Any]) -> None:
    """Writes an export into the report of its run, in the place of an earlier one.

    Args:
        path: The directory of the run.
        out: That of the export.
        figures: What export.json holds.

    Raises:
        OSError: If there is a report, and it cannot be read or written.
    """
    report = path / REPORT
    if not report.exists():
        return
    page = report.read_text("utf-8")
    head, start, rest = page.partition(START)
    if start:
        page = head + rest.partition(END)[2]
    body, footer, rest = page.rpartition(BEFORE)
    shown = START + exported(out, figures) + END
    write_file(report, (body + shown + footer + rest).encode("utf-8", "replace"))


def exported(out: Path, figures: Mapping[str, Any]) -> str:
    """Shows what was exported: files, their sizes, how far they are from the network.

    Args:
        out: The directory of the export.
        figures: What export.json holds.
    """
    rows = [
        (
            f"<code>{text(name)}</code>",
            f"{each['bytes'] / 1e6:.2f}",
            f"{each['relative_difference']:.0e}",
            percent(each["same_class"]),
        )
        for name, each in figures["files"].items()
    ]
    rows += [
        (
            f"<code>{text(name)}</code>",
            f"{each['bytes'] / 1e6:.2f}",
            f"accuracy {percent(each['test_accuracy_of_int8'], 2)}, "
            f"of model.onnx {percent(each['test_accuracy_of_onnx'], 2)}",
            "",
        )
        for name, each in figures["quantized"].items()
    ]
    accuracy = figures["accuracy"]
    note = (
        f"Written to {text(out)} by <code>python -m train export</code>, of the "
        f"weights {text(accuracy['weights'])}: accuracy of {text(accuracy['of'])} "
        f"{percent(accuracy['test_accuracy'], 2)} on {accuracy['images']:,} test "
        f"images. The differences are those of probabilities on {figures['pictures']} "
        "test pictures, as a share of the largest."
    )
    head = ("file", "MB", "apart from the network", "same class")
    return section("Exported", table(head, rows, "plain"), note=note)
