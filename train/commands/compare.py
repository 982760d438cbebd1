"""`python -m train compare`: several runs beside one another."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.markup import escape
from rich.table import Table

from dynconv_jax.weights import write_file
from train.errors import TrainError, TrainingFailed
from train.flags.checks import flag_of
from train.flags.config import parse_flags
from train.printable import printable
from train.showing.console import open_console, say, show_table
from train.storage.finished import Run, read_run
from train.storage.run_files import read_summary

PICTURE = "compare.png"


@dataclasses.dataclass(frozen=True)
class CompareFlags:
    """Shows runs beside one another: a table, and their curves as a picture.

    Attributes:
        runs: The directories of the runs; such as have not finished are shown as far as
            they are.
        out: Where to write the picture.
    """

    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")
    ] = ()
    out: Path = Path(PICTURE)

    def __post_init__(self):
        """Refuses a comparison of nothing.

        Raises:
            TrainError: If no run is given.
        """
        if not self.runs:
            raise TrainError("compare needs the directories of runs: give RUN RUN ...")


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Args:
        argv: The arguments, without the name of the program and of the command.

    Raises:
        TrainError: If an argument is refused, or the picture cannot be written.
        SystemExit: With 0, after `--help`.
    """
    flags = parse_flags(argv, CompareFlags, "python -m train compare")
    runs = dict(zip(_names(flags.runs), map(read_run, flags.runs), strict=True))
    console = open_console()
    show_table(console, _table(runs))
    from train.showing.figures import draw_comparison

    curves = {name: (run.training, run.tests) for name, run in runs.items()}
    try:
        write_file(flags.out, draw_comparison(curves))
    except OSError as error:
        raise TrainingFailed(
            f"--out (={flags.out}) could not be written: {error.strerror}; choose "
            "another file"
        ) from error
    say(console, f"curves in {printable(flags.out)}")


def _names(paths: Sequence[Path]) -> list[str]:
    """Returns the names of the directories, or their paths if these are not enough."""
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise TrainError(f"compare was given {twice[0]} twice; leave it out once")
    return names


def _table(runs: dict[str, Run]) -> Table:
    table = Table(show_edge=False)
    table.add_column()
    for name in runs:
        table.add_column(escape(printable(name)), justify="right")
    for flag in _differing(list(runs.values())):
        values = (run.config.to_json()[flag] for run in runs.values())
        texts = (escape(printable(_flag_text(value))) for value in values)
        table.add_row(flag_of(flag), *texts)
    table.add_section()
    figures = [_figures(run) for run in runs.values()]
    for name in dict.fromkeys(name for each in figures for name in each):
        table.add_row(name, *(each.get(name, "–") for each in figures))
    return table


def _differing(runs: Sequence[Run]) -> list[str]:
    """Returns the flags in which runs differ, but for those that follow from others."""
    flags = [run.config.to_json() for run in runs]
    changed = {name for run in runs for name in run.split_flags()[0]}
    return [
        name
        for name in flags[0]
        if name in changed and any(each[name] != flags[0][name] for each in flags)
    ]


def _flag_text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "–"
    return "–" if value is None else str(value)


def _figures(run: Run) -> dict[str, str]:
    """Returns what came out of a run, as far as it is."""
    summary = read_summary(run.path)
    if summary is None:
        latest = run.tests[-1] if run.tests else {}
        steps = max((row["step"] for row in run.training + run.tests), default=0)
        figures = {"steps": f"{steps:,} of {run.config.total_steps:,}"}
        for name in ("test_accuracy", "test_loss", "val_accuracy", "val_loss"):
            if name in latest:
                figures[_words(name)] = f"{latest[name]:.4f}"
        return figures
    figures = {
        _words(name): form.format(summary[name])
        for name, form in FIGURES.items()
        if summary.get(name) is not None
    }
    for name in ("parameters", "multiply_adds"):
        if name in summary and f"static_{name}" in summary:
            ratio = summary[name] / summary[f"static_{name}"]
            figures[f"{_words(name)} / static"] = f"{ratio:.2f}"
    return figures


def _words(name: str) -> str:
    return name.replace("multiply_adds", "multiply-adds").replace("_", " ")


FIGURES = {
    "steps": "{:,}",
    "test_accuracy": "{:.4f}",
    "test_loss": "{:.4f}",
    "val_accuracy": "{:.4f}",
    "val_loss": "{:.4f}",
    "best_test_accuracy": "{:.4f}",
    "best_val_accuracy": "{:.4f}",
    "best_step": "{:,}",
    "ema_test_accuracy": "{:.4f}",
    "ema_val_accuracy": "{:.4f}",
    "twin_test_accuracy": "{:.4f}",
    "images_per_second": "{:,.0f}",
    "compile_seconds": "{:,.1f}",
    "wall_seconds": "{:,.1f}",
    "parameters": "{:,}",
    "multiply_adds": "{:,}",
}
