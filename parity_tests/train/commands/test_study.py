"""The study: equal budgets, honest intervals, runs that go on, a page of what came out.

Runs are stood in for by processes that leave the files of a finished run.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_1samp, ttest_ind, ttest_rel

from train.commands.study import main, study
from train.commands.study.estimates import adjust, estimate
from train.commands.study.flags import StudyFlags, processors
from train.commands.study.page import paragraphs
from train.commands.study.plan import (
    COUNTS,
    TOLERANCE,
    Entrant,
    entrants_of,
    match_costs,
    match_times,
    matching_width,
)
from train.commands.study.processes import command_line, finished, start, train_all
from train.errors import TrainError, TrainingFailed, TrainingStopped
from train.flags.config import Config, parse

DEFAULT_NUMERICS = True

MEMBERS = ["condconv", "decomposed", "dynamic", "kernel_warehouse", "odconv"]

FINISH = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
out.mkdir()
for name, content in zip(("config.json", "summary.json"), sys.argv[2:]):
    (out / name).write_text(content)
"""


def summary_of(config: Config, accuracy: float = 0.9, rate: float = 1000.0) -> dict:
    width = float(config.model_options[0].partition("=")[2])
    return {
        "test_accuracy": accuracy,
        "images_per_second": rate,
        "params_sha256": "0" * 64,
        **{name: count(config.conv or "", width) for name, count in COUNTS.items()},
    }


def python(program: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-S", "-c", program, *arguments])


def finish(config: Config, summary: dict) -> subprocess.Popen:
    """Starts a process that does nothing but leave the files of a finished run."""
    contents = map(json.dumps, (config.to_json(), summary))
    return python(FINISH, str(config.out), *contents)


class Trainer:
    """Stands in for the training, and counts; dynamic nets are better, and slower."""

    def __init__(self):
        self.started: list[str] = []

    def __call__(self, config: Config) -> subprocess.Popen:
        assert config.out is not None
        self.started.append(config.out.name)
        is_static = config.conv == "static"
        accuracy = (0.88 if is_static else 0.9) + 0.01 * config.seed
        if config.conv == "dynamic":
            accuracy += 0.002 * (config.seed - 0.5)  # all but the same difference
        return finish(config, summary_of(config, accuracy, 1500 if is_static else 1000))


def small(tmp_path, **options) -> StudyFlags:
    given: dict[str, Any] = dict(convs=("dynamic", "odconv"), seeds=2, steps=50)
    folders = dict(out=tmp_path / "runs", page=tmp_path / "page")
    return StudyFlags(**given | folders | options)


def page_of(flags: StudyFlags) -> Path:
    assert flags.page is not None
    return flags.page


@pytest.fixture(scope="module")
def finished_study(tmp_path_factory):
    """The flags of a study that is done, who was started, and the results."""
    flags = small(tmp_path_factory.mktemp("study"))
    trainer = Trainer()
    study(flags, start=trainer)
    results = json.loads((page_of(flags) / "results.json").read_text())
    return flags, trainer, results


# Equal budgets.


@pytest.mark.parametrize("budget", ["parameters", "multiply_adds"])
def test_static_nets_have_the_budget_of_every_member(budget):
    flags = StudyFlags()
    comparisons = [
        each for each in match_costs(flags.members, flags.base) if each.budget == budget
    ]
    assert [each.member.conv for each in comparisons] == MEMBERS
    for each in comparisons:
        costs = [who.count(budget) for who in (each.member, each.static)]
        assert each.static.conv == "static"
        assert each.static.steps == each.member.steps
        # Of whole channels: one more in the stem makes 4 % more multiply-adds.
        assert abs(costs[1] / costs[0] - 1) <= TOLERANCE


def test_the_nearest_width_is_found():
    def parameters(width: float) -> int:
        return math.floor(1000 * width)

    assert matching_width(parameters(0.25), parameters) == 0.25
    assert parameters(matching_width(5400, parameters)) in (5399, 5400, 5401)
    assert matching_width(1, parameters) == pytest.approx(1 / 1024, abs=2 / 1024)


def test_members_of_nearly_equal_budgets_share_a_static_net():
    members = [Entrant(conv, 0.25, 100) for conv in ("condconv", "dynamic")]
    comparisons = match_costs(members, Entrant("static", 0.25, 100))
    assert len({each.static for each in comparisons}) == 2  # one for each budget
    assert len(entrants_of(comparisons)) == 4


def test_the_static_net_takes_as_many_steps_as_the_time_allows():
    base = Entrant("static", 0.25, 1000)
    members = [Entrant(conv, 0.25, 1000) for conv in MEMBERS[:3]]
    seconds = {
        base: [10.0, 11.0, 99.0],  # the median is 11
        **dict(zip(members, ([22.0] * 3, [15.0] * 3, [7.0, 11.1, 50.0]), strict=True)),
    }
    comparisons = match_times(members, base, seconds)
    assert [each.static.steps for each in comparisons] == [2000, 1360, 1000]
    # What turns out to take as long as a member is taken, however many steps it has.
    seconds |= {dataclasses.replace(base, steps=1200): [14.5] * 3}
    comparisons = match_times(members, base, seconds)
    assert [each.static.steps for each in comparisons] == [1840, 1200, 1000]
    comparisons = match_times(members, base, seconds, may_train=False)
    assert [each.static.steps for each in comparisons] == [1200, 1200, 1000]
    assert all(each.static.width_mult == 0.25 for each in comparisons)


def test_times_that_come_out_unequal_are_matched_again(tmp_path):
    def slower_when_longer(config):
        speed = (
            1000 if config.conv != "static" else 1500 if config.steps <= 50 else 1200
        )
        return finish(config, summary_of(config, 0.9, speed))

    flags = small(tmp_path)
    study(flags, start=slower_when_longer)
    results = json.loads((page_of(flags) / "results.json").read_text())
    timed = [each for each in results["comparisons"] if each["budget"] == "time"]
    # 76 steps, as at the pace of the shorter run, take a quarter longer: 60 do not.
    assert [each["static"] for each in timed] == ["static-0.25-60"] * 2
    assert [each["static_over_member"] for each in timed] == [1.0, 1.0]


def test_equal_times_are_verified_by_what_the_runs_took(finished_study):
    _, _, results = finished_study
    ratios = {
        each["budget"]: each["static_over_member"]
        for each in results["comparisons"]
        if each["conv"] == "dynamic"
    }
    # 50 steps at 1000 images a second last as long as 75 at 1500; 76 are a multiple.
    assert ratios["time"] == pytest.approx(76 / 75)
    assert abs(ratios["parameters"] - 1) <= TOLERANCE


def test_a_run_of_another_cost_is_refused(tmp_path):
    def wrong(config):
        return finish(config, summary_of(config) | {"parameters": 7})

    with pytest.raises(TrainingFailed, match=r"has 7 parameters, but .* planned"):
        study(small(tmp_path), start=wrong)


# Statistics.


@pytest.mark.parametrize("values", [[1.0, 2.5, 2.0], [-0.4, 0.1, 0.2, -0.9, 0.3]])
def test_intervals_and_p_values_are_those_of_students_t(values):
    found = estimate(values)
    test: Any = ttest_1samp(values, 0.0)
    interval = test.confidence_interval(0.95)
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(test.pvalue)
    assert found.is_decided == (test.pvalue < 0.05)


def test_the_interval_of_three_values_is_that_of_the_tables():
    found = estimate([1.0, 2.0, 3.0])  # t = 4.303 for two degrees of freedom
    assert found.high - found.mean == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)


@pytest.mark.parametrize(("value", "p_value"), [(0.0, 1.0), (0.5, 0.0)])
def test_values_that_are_all_the_same_have_an_interval_of_no_width(value, p_value):
    found = estimate([value] * 3)
    assert (found.low, found.high, found.p_value) == (value, value, p_value)


def test_holms_correction_is_that_of_a_worked_example():
    # Sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1; none below the one before.
    assert adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust([0.6, 0.9]) == [1.0, 1.0]
    assert adjust([]) == []


def test_differences_are_paired_by_seed(finished_study):
    _, _, results = finished_study
    each = next(each for each in results["comparisons"] if each["conv"] == "dynamic")
    assert each["differences"] == pytest.approx([1.9, 2.1])
    accuracies = [89.9, 91.1], [88.0, 89.0]
    paired: Any = ttest_rel(*accuracies)
    assert each["p_value"] == pytest.approx(paired.pvalue)
    # Unpaired, nothing would be decided: the seeds differ as much as the nets.
    unpaired: Any = ttest_ind(*accuracies)
    assert paired.pvalue < 0.05 < unpaired.pvalue


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


# The page.


def test_the_page_says_who_was_ahead_and_by_how_much(finished_study):
    flags, _, _ = finished_study
    page = (page_of(flags) / "index.md").read_text()
    # The interval of dynamic leaves 0 out, but not after Holm's correction.
    words = "odconv (+2.00) ahead of static; dynamic (+2.00) undecided."
    assert f"**At the same parameters:** {words}" in page
    assert "| dynamic | **+2.00** [+0.73, +3.27] |" in page
    assert "| odconv | **+2.00**† [+2.00, +2.00] |" in page
    assert "Of 6 comparisons 6 are decided" in page
    assert (
        (page_of(flags) / "accuracy.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    )


@pytest.mark.parametrize(
    ("mean", "adjusted_p_value", "words"),
    [
        (-2.0, 0.01, "dynamic (-2.00) behind static"),
        (-1.0, 0.06, "dynamic (-1.00) undecided"),
        (0.2, 0.04, "dynamic (+0.20) ahead of static"),
    ],
)
def test_the_page_reports_what_comes_out_whichever_way(
    finished_study, mean, adjusted_p_value, words
):
    _, _, results = finished_study
    found = dict(mean=mean, adjusted_p_value=adjusted_p_value)
    compared = [
        each | found for each in results["comparisons"] if each["conv"] == "dynamic"
    ]
    page = "\n".join(paragraphs(results | {"comparisons": compared}))
    assert page.count(words) == 3


def test_the_page_marks_budgets_that_came_out_unequal(finished_study):
    _, _, results = finished_study
    compared = [
        each | {"static_over_member": 1.06 if each["budget"] == "time" else 1.04}
        for each in results["comparisons"]
    ]
    page = "\n".join(paragraphs(results | {"comparisons": compared}))
    rows = [line.split("|") for line in page.splitlines() if "[+" in line]
    assert [["‡" in cell for cell in row[2:5]] for row in rows] == [
        [False, False, True]
    ] * 2


# Refusals.


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--seeds=1", r"--seeds \(=1\) must be at least 2"),
        ("--convs=dynamik", r"--convs .*dynamik.* must name some of condconv, decomp"),
        ("--convs=static", r"--convs .*static.* must name some of"),
        ("--jobs=0", r"--jobs \(=0\) must be from 1 to \d+, the number of processors"),
        ("--steps=1", r"--steps \(=1\) must be at least 2"),
        ("--width-mult=nan", r"--width-mult \(=nan\) must be positive"),
        ("--seeds=many", r"--seeds \(=many\) must be a whole number"),
        ("--seed=3", "did you mean --seeds"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(argument, message):
    with pytest.raises(TrainError, match=message) as caught:
        main([argument])
    assert "\n" not in str(caught.value)


def test_help_explains_the_flags(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "--width-mult" in capsys.readouterr().out
