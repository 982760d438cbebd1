"""python -m parity_tests.tools.kill_and_resume: what a run comes to that was killed.

A run is left to itself. Then others are killed with signal 9, each at a random moment,
and the same command is given again. What they end in is held against the first: the
parameters bit for bit, the metrics line by line. Every other kill is aimed at a save,
and comes while a checkpoint is being written. The page has a row for each.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

from benchmarks.machine import describe
from dynconv_jax.weights import write_file
from train.storage.checkpoint_content import complete_steps
from train.storage.run_files import CHECKPOINTS, CONFIG, METRICS, SUMMARY

UNFINISHED = ".orbax-checkpoint-tmp"  # what a checkpoint that is being written ends in
MEASURED = {"images_per_second"}  # which no two runs have in common


# Whether it has come, and how many seconds after that to wait.
Moment = tuple[Callable[[], bool], float]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run, how often to kill it, and where the page goes."""

    kills: int = 20
    """How many runs to kill, each once."""

    steps: int = 120
    """The steps of a run."""

    checkpoint_every: int = 20
    """Every how many of them to save a checkpoint."""

    flags: tuple[str, ...] = (
        *("--preset=digits", "--seed=3", "--label-smoothing=0", "--load-balance=0"),
        *("--temperature-start=4", "--temperature-end=0.1"),
    )
    """Its other flags."""

    seed: int = 0
    """Where the random moments come from."""

    out: Path = Path("docs/training/resume.md")
    """The page."""

    @property
    def command(self) -> list[str]:
        """What a run is told, but for its directory."""
        own = (f"--steps={self.steps}", f"--checkpoint-every={self.checkpoint_every}")
        return ["-m", "train", *self.flags, *own]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a finished run comes to: its parameters, its metrics, and how long it took.

    Attributes:
        params_sha256: The fingerprint of the parameters.
        rows: The lines of the metrics, without what depends on the clock.
        seconds_a_row: How long it trained for a line of them.
    """

    params_sha256: str
    rows: list[dict[str, Any]]
    seconds_a_row: float

    @classmethod
    def of(cls, out: Path) -> "Outcome":
        """Reads it from the directory of the run."""
        summary = json.loads((out / SUMMARY).read_bytes())
        rows = [
            {name: value for name, value in row.items() if name not in MEASURED}
            for row in map(json.loads, (out / METRICS).read_text().splitlines())
        ]
        seconds = summary["wall_seconds"] - summary["compile_seconds"]
        return cls(summary["params_sha256"], rows, seconds / len(rows))


@dataclasses.dataclass(frozen=True)
class Kill:
    """A run that was killed, started again, and finished.

    Attributes:
        rows: How many lines its metrics had when it was killed.
        saving: The step of the checkpoint that was being written, or None.
        resumed: The step that it went on from.
        same_parameters: Whether they are bit for bit those of the undisturbed run.
        same_metrics: Whether each line is there once, in order, with the same values.
    """

    rows: int
    saving: int | None
    resumed: int
    same_parameters: bool
    same_metrics: bool


def main(config: Config) -> int:
    """Runs, kills, runs again, and writes the page.

    Returns:
        How many runs came to something else than the undisturbed one.
    """
    chance = random.Random(config.seed)
    kills = []
    with tempfile.TemporaryDirectory() as folder:
        # All runs compile the same programs, which is most of their time.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/compiled"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        finish(config, Path(folder, "undisturbed"))
        undisturbed = Outcome.of(Path(folder, "undisturbed"))
        print(f"undisturbed: {undisturbed.params_sha256}", flush=True)
        for number in range(1, config.kills + 1):
            out = Path(folder, str(number))
            if number % 2:
                moment = while_saving(out, config, chance)
            else:
                moment = between_rows(out, undisturbed, chance)
            kill(config, out, moment)
            kills.append(resume(config, out, undisturbed))
            print(f"{number}/{config.kills}: {kills[-1]}", flush=True)
            shutil.rmtree(out)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_file(config.out, render(config, undisturbed, kills).encode())
    return sum(not (each.same_parameters and each.same_metrics) for each in kills)


def start(config: Config, out: Path) -> subprocess.Popen:
    """Starts a run."""
    command = [sys.executable, *config.command, f"--out={out}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def finish(config: Config, out: Path) -> None:
    """Starts a run, new or not, and waits until it is finished."""
    if start(config, out).wait() != 0:
        raise SystemExit(f"the run in {out} could not be finished")


def kill(config: Config, out: Path, moment: Moment) -> None:
    """Starts a run and kills it; one that was finished before is started anew."""
    has_come, delay = moment
    for attempt in range(5):
        process = start(config, out)
        try:
            while not has_come() and process.poll() is None:
                time.sleep(0.001)
            time.sleep(delay / 2**attempt)
        finally:
            process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL and not (out / SUMMARY).exists():
            return
        shutil.rmtree(out)
    raise SystemExit(f"the run in {out} is always finished before it is killed")


def resume(config: Config, out: Path, undisturbed: Outcome) -> Kill:
    """Starts a run that was killed again, and compares what it comes to."""
    rows, saving = count_rows(out), unfinished_step(out)
    resumed = max(complete_steps(out / CHECKPOINTS), default=0)
    finish(config, out)
    outcome = Outcome.of(out)
    return Kill(
        rows,
        saving,
        resumed,
        same_parameters=outcome.params_sha256 == undisturbed.params_sha256,
        same_metrics=outcome.rows == undisturbed.rows,
    )


def while_saving(out: Path, config: Config, chance: random.Random) -> Moment:
    """Returns a moment while a random checkpoint is being written."""
    count = config.steps // config.checkpoint_every
    step = config.checkpoint_every * chance.randint(1, count)
    folder = out / CHECKPOINTS / f"{step}{UNFINISHED}"
    return folder.exists, chance.uniform(0, 0.2)


def between_rows(out: Path, undisturbed: Outcome, chance: random.Random) -> Moment:
    """Returns a moment after a random number of rows, the last one excepted."""
    rows = chance.randrange(len(undisturbed.rows) - 1)
    delay = chance.uniform(0, undisturbed.seconds_a_row)
    return lambda: (out / CONFIG).exists() and count_rows(out) >= rows, delay


def count_rows(out: Path) -> int:
    """Returns how many lines the metrics have."""
    path = out / METRICS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def unfinished_step(out: Path) -> int | None:
    """Returns the step of the checkpoint that is there by half, or None."""
    for path in (out / CHECKPOINTS).glob(f"*{UNFINISHED}"):
        return int(path.name.removesuffix(UNFINISHED))
    return None


def render(config: Config, undisturbed: Outcome, kills: list[Kill]) -> str:
    """Returns the page."""
    same = sum(each.same_parameters and each.same_metrics for each in kills)
    machine = ", ".join(f"{name} {value}" for name, value in describe().items())
    lines = [
        "# Killed, and started again",
        "",
        f"{same} of {len(kills)} runs that were killed with signal 9 and started again "
        "ended in exactly the",
        "parameters of the run that was left to itself, bit for bit, and in the same "
        "metrics, each line",
        "once. `python -m parity_tests.tools.kill_and_resume` writes this page anew.",
        "",
        "    " + " ".join(["python", *config.command, "--out=DIR"]),
        "",
        f"Undisturbed, its `params_sha256` is `{undisturbed.params_sha256}`.",
        f"Machine: {machine}.",
        "",
        "| | rows when killed | checkpoint being written | went on from step "
        "| same parameters | same metrics |",
        "|---:|---:|---:|---:|---|---|",
    ]
    words = {True: "yes", False: "**no**"}
    for number, each in enumerate(kills, start=1):
        saving = "" if each.saving is None else f"of step {each.saving}"
        lines.append(
            f"| {number} | {each.rows} of {len(undisturbed.rows)} | {saving} "
            f"| {each.resumed} | {words[each.same_parameters]} "
            f"| {words[each.same_metrics]} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
