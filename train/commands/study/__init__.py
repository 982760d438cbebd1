"""`python -m train study`: static against dynamic at equal budgets, over seeds."""

import datetime
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from train.commands.study.flags import StudyFlags
from train.commands.study.plan import (
    COUNTS,
    Comparison,
    Entrant,
    entrants_of,
    match_costs,
    match_times,
)
from train.commands.study.processes import Start, start, train_all
from train.commands.study.results import results_of, seconds_of
from train.errors import TrainError, TrainingFailed, TrainingStopped
from train.flags.config import Config, parse_flags
from train.printable import printable

PROGRAM = "python -m train study"
# How often nets may be trained anew to meet a time.
MATCHES = 3


def main(argv: Sequence[str]) -> None:
    """Runs the command.

    Args:
        argv: The arguments, without the name of the program and of the command.

    Raises:
        TrainError: If an argument is refused, or, as `TrainingFailed`, a run fails.
        SystemExit: With 0, after `--help`.
    """
    flags = parse_flags(argv, StudyFlags, PROGRAM)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        study(flags, " ".join([PROGRAM, *argv]))
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(*_) -> NoReturn:
    raise TrainingStopped("the study was told to stop; the same command goes on")


def study(flags: StudyFlags, command: str = PROGRAM, start: Start = start) -> None:
    """Trains all that is to be compared, and writes the page.

    Args:
        flags: What is compared, and how.
        command: How the study was asked for, for the page.
        start: Starts a run.

    Raises:
        TrainError: If a directory cannot be written, or, as `TrainingFailed`, a run
            fails.
    """
    from train.commands.study.page import write_page

    folder = flags.page or flags.out
    for each in (flags.out, folder):
        try:
            each.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainError(f"{each} cannot be created: {error.strerror}") from error

    comparisons = match_costs(flags.members, flags.base)
    first = list(dict.fromkeys([*entrants_of(comparisons), flags.base]))
    print(f"of equal parameters and multiply-adds: {_listed(comparisons)}")
    summaries = _train(flags, first, start)

    # How long a step takes is known only now, and beside other runs it may take longer.
    for attempt in range(MATCHES + 1):
        seconds = {
            entrant: seconds_of(entrant, flags.batch_size, found)
            for entrant, found in summaries.items()
        }
        timed = match_times(
            flags.members, flags.base, seconds, may_train=attempt < MATCHES
        )
        longer = list(dict.fromkeys(each.static for each in timed))
        summaries |= _train(
            flags, [each for each in longer if each not in summaries], start
        )
    print(f"of equal time: {_listed(timed)}")

    results = results_of(flags, [*comparisons, *timed], summaries)
    about = {"command": command, "date": str(datetime.date.today())}
    print(f"the page: {printable(write_page(about | results, folder))}")


def _listed(comparisons: Sequence[Comparison]) -> str:
    pairs = (f"{each.member.name} and {each.static.name}" for each in comparisons)
    return "; ".join(pairs)


def _train(
    flags: StudyFlags, entrants: Sequence[Entrant], start: Start
) -> dict[Entrant, list[dict[str, Any]]]:
    """Returns the summaries of each entrant, by seed."""
    # Seed after seed: what slows the machine for a while slows all alike.
    owners = {
        flags.config_of(entrant, seed): entrant
        for seed in range(flags.seeds)
        for entrant in entrants
    }
    done: dict[Config, dict[str, Any]] = {}
    began = time.perf_counter()
    for config, summary in train_all(list(owners), flags.side_by_side, start):
        _verify(config, owners[config], summary)
        done[config] = summary
        minutes = (time.perf_counter() - began) / 60
        print(
            f"{len(done)} of {len(owners)} runs after {minutes:.1f} min: "
            f"{printable(config.out)}, test accuracy {summary['test_accuracy']:.4f}",
            flush=True,
        )
    return {
        entrant: [done[flags.config_of(entrant, seed)] for seed in range(flags.seeds)]
        for entrant in entrants
    }


def _verify(config: Config, entrant: Entrant, summary: Mapping[str, Any]) -> None:
    """Checks that what was trained costs what was planned."""
    for what in COUNTS:
        planned = entrant.count(what)
        if summary[what] != planned:
            raise TrainingFailed(
                f"{config.out} has {summary[what]:,} {what.replace('_', '-')}, but "
                f"{planned:,} were planned; if another version of the program made it, "
                "remove it"
            )
