"""Runs of a study: each once, several at a time, and gone on with."""

import dataclasses
import json
import os

import pytest

from parity_tests.tools.studies import (
    Trainer,
    finish,
    page_of,
    python,
    small,
    summary_of,
)
from train.commands.study import study
from train.commands.study.flags import processors
from train.commands.study.processes import command_line, finished, start, train_all
from train.errors import TrainingFailed, TrainingStopped
from train.flags.config import Config, parse

DEFAULT_NUMERICS = True


# Runs.


@pytest.mark.parametrize("seed", [0, 3])
def test_the_command_line_of_a_run_is_read_back_as_its_flags(tmp_path, seed):
    flags = small(tmp_path, learning_rate=1e-3, data=tmp_path)
    for entrant in (*flags.members, flags.base):
        config = flags.config_of(entrant, seed)
        assert parse(command_line(config)) == config


def test_switches_are_written_as_flags():
    config = Config(overwrite=True, conv_options=("a=1", "b=2"))
    words = ["--conv-options", "a=1", "b=2", "--overwrite"]
    assert command_line(config) == words
    assert parse(words) == config


def test_every_entrant_is_trained_once_with_every_seed(finished_study):
    _, trainer, results = finished_study
    assert len(set(trainer.started)) == len(trainer.started)
    assert len(trainer.started) == 2 * len(results["entrants"])


def test_a_finished_study_trains_nothing_again(finished_study):
    flags, _, results = finished_study
    again = Trainer()
    study(flags, start=again)
    assert again.started == []
    assert json.loads((page_of(flags) / "results.json").read_text()) == results


def test_a_study_that_was_stopped_goes_on(tmp_path):
    flags = small(tmp_path, jobs=1)
    first = Trainer()

    def dies_after_three(config):
        if len(first.started) == 3:
            return python("raise SystemExit('out of luck')")
        return first(config)

    with pytest.raises(TrainingFailed, match="ended with status 1"):
        study(flags, start=dies_after_three)
    second = Trainer()
    study(flags, start=second)
    assert len(first.started) == 3
    assert not set(first.started) & set(second.started)
    assert (tmp_path / "page" / "index.md").exists()


def test_a_run_with_other_flags_is_not_taken_for_finished(tmp_path):
    flags = small(tmp_path)
    flags.out.mkdir()
    config = flags.config_of(flags.base, 0)
    finish(config, summary_of(config)).wait()
    assert finished(config) == summary_of(config)
    assert finished(dataclasses.replace(config, batch_size=32)) is None
    assert finished(dataclasses.replace(config, out=tmp_path / "other")) is None


def test_when_a_run_fails_the_others_are_told_to_stop(tmp_path):
    flags = small(tmp_path)
    configs = [flags.config_of(flags.base, seed) for seed in range(2)]
    processes = [python("import time; time.sleep(60)"), python("raise SystemExit(7)")]
    waiting = iter(processes)
    with pytest.raises(TrainingFailed, match="ended with status 7"):
        list(train_all(configs, 2, lambda config: next(waiting)))
    assert all(process.poll() is not None for process in processes)


def test_a_run_that_was_told_to_stop_stops_the_study_with_its_status(tmp_path):
    config = small(tmp_path).config_of(small(tmp_path).base, 0)
    with pytest.raises(TrainingStopped):
        list(train_all([config], 1, lambda config: python("raise SystemExit(75)")))


@pytest.mark.parametrize("jobs", [1, 2])
def test_runs_share_the_processors_and_give_them_back(tmp_path, jobs):
    if not hasattr(os, "sched_setaffinity") or processors() < jobs:
        jobs = 1
    before = processors()
    shares: list[int] = []

    def note(config):
        shares.append(processors())
        return finish(config, summary_of(config))

    flags = small(tmp_path)
    flags.out.mkdir()
    list(
        train_all(
            [flags.config_of(flags.base, seed) for seed in range(jobs)], jobs, note
        )
    )
    assert sum(shares) == before == processors()


def test_a_run_that_is_refused_is_reported_with_what_it_said(tmp_path):
    flags = small(tmp_path, data=tmp_path / "nowhere")
    flags.out.mkdir()
    config = flags.config_of(flags.base, 0)
    with pytest.raises(TrainingFailed, match=r"status 2 .*nowhere"):
        list(train_all([config], 1, start))
