"""The runs of a study: ordinary runs, some side by side, each in its own process."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from train.errors import TrainingFailed, TrainingStopped
from train.flags.checks import words_of
from train.flags.config import Config
from train.storage.run_directory import decisive_flags
from train.storage.run_files import CONFIG, read_config, read_summary

Start = Callable[[Config], subprocess.Popen]

POLL_SECONDS = 0.1
# What a study needs to know of a run.
NEEDED = ("images_per_second", "params_sha256", "parameters", "multiply_adds")


def command_line(config: Config) -> list[str]:
    """Returns the flags that `train.flags.config.parse` makes the configuration of.

    Example:
        >>> command_line(Config(steps=7, model_options=("width_mult=0.5",)))
        ['--model-options', 'width_mult=0.5', '--steps', '7']
    """
    flags = []
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if value != field.default:
            flags += words_of(field.name, value)
    return flags


def start(config: Config) -> subprocess.Popen:
    """Starts a run; what it says is appended to a file beside its directory."""
    assert config.out is not None
    environment = dict(os.environ)
    cache = config.out.parent.absolute() / "compiled"
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    with open(log_of(config), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "train", *command_line(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def log_of(config: Config) -> Path:
    """Returns where what a run says is kept."""
    assert config.out is not None
    return config.out.with_name(f"{config.out.name}.log")


def finished(config: Config) -> dict[str, Any] | None:
    """Returns the summary of a run that was finished with these very flags, or None."""
    assert config.out is not None
    if not (config.out / CONFIG).exists():
        return None
    flags, wanted = read_config(config.out), decisive_flags(config)
    if {name: flags.get(name) for name in wanted} != wanted:
        return None
    return read_summary(config.out, *NEEDED)


def train_all(
    configs: Sequence[Config], jobs: int, start: Start = start
) -> Iterator[tuple[Config, dict[str, Any]]]:
    """Trains what is not trained yet.

    Args:
        configs: The runs.
        jobs: How many of them go on at a time, each on its share of the processors.
        start: Starts a run as a process that leaves a summary in its directory.

    Yields:
        A run that is finished, and its summary; those that were already come first.

    Raises:
        TrainingFailed: If a run fails; the others are stopped and can go on.
        TrainingStopped: If a run was told to stop.
    """
    waiting = []
    for config in configs:
        summary = finished(config)
        if summary is None:
            waiting.append(config)
        else:
            yield config, summary
    running: dict[int, tuple[Config, subprocess.Popen]] = {}
    try:
        while waiting or running:
            for job in range(jobs):
                if waiting and job not in running:
                    config = waiting.pop(0)
                    with _share_of_processors(job, jobs):
                        running[job] = config, start(config)
            time.sleep(POLL_SECONDS)
            for job, (config, process) in list(running.items()):
                if process.poll() is not None:
                    del running[job]
                    yield config, _summary_of(config, process.returncode)
    finally:
        for _, process in running.values():
            process.terminate()  # it saves, so that it can go on
        for _, process in running.values():
            process.wait()


def _summary_of(config: Config, exit_status: int) -> dict[str, Any]:
    summary = None if exit_status else finished(config)
    if summary is not None:
        return summary
    log = log_of(config)
    if exit_status == TrainingStopped.exit_status:
        raise TrainingStopped(f"{config.out} was told to stop; see {log}")
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    raise TrainingFailed(
        f"{config.out} ended with status {exit_status} and without its results: "
        f"{last.strip()} (all of it: {log})"
    )


@contextlib.contextmanager
def _share_of_processors(job: int, jobs: int) -> Iterator[None]:
    """Has processes that are started in it use their share, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    everything = os.sched_getaffinity(0)  # of this thread, and inherited
    processors = sorted(everything)
    first, last = (len(processors) * each // jobs for each in (job, job + 1))
    os.sched_setaffinity(0, processors[first:last])
    try:
        yield
    finally:
        os.sched_setaffinity(0, everything)
