"""Equal budgets, and honest intervals of what came out."""

import dataclasses
import json
import math
from typing import Any

import pytest
from scipy.stats import ttest_1samp, ttest_ind, ttest_rel

from parity_tests.tools.studies import (
    MEMBERS,
    finish,
    page_of,
    small,
    summary_of,
)
from train.commands.study import study
from train.commands.study.estimates import adjust, estimate
from train.commands.study.flags import StudyFlags
from train.commands.study.plan import (
    TOLERANCE,
    Entrant,
    entrants_of,
    match_costs,
    match_times,
    matching_width,
)
from train.errors import TrainingFailed

DEFAULT_NUMERICS = True


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
        is_short = config.total_steps <= 50
        speed = 1000 if config.conv != "static" else 1500 if is_short else 1200
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
