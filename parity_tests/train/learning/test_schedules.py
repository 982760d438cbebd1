"""Schedules: where they start, turn and end."""

import dataclasses

import numpy as np
import pytest

from parity_tests.tolerances import assert_close
from train.flags.config import Config
from train.learning.schedules import (
    assignment_schedule,
    learning_rate_schedule,
    temperature_schedule,
)

BASE = Config(steps=20, warmup_steps=4, learning_rate=0.5)


def rates(**changes) -> np.ndarray:
    schedule = learning_rate_schedule(dataclasses.replace(BASE, **changes))
    return np.array([*map(schedule, range(21))])


def check(actual, expected):
    assert_close({"": np.array(actual)}, {"": np.array(expected)}, dtype="float64")


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "step"])
def test_learning_rate_rises_along_a_line_and_moves_from_the_first_step(schedule):
    check(rates(schedule=schedule)[:5], [0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_learning_rate_of_each_part_is_that_of_a_run_of_its_length(schedule):
    restarted = rates(schedule=schedule, restarts=(8, 15))
    first = rates(schedule=schedule, steps=8)
    # A tenth of 7 or 5 steps is none, so that these parts do not warm up.
    second, third = (
        rates(schedule=schedule, steps=steps, warmup_steps=0) for steps in (7, 5)
    )
    check(restarted[:8], first[:8])
    check(restarted[8:15], second[:7])
    check(restarted[15:], third[:6])


def test_part_after_a_restart_warms_up_over_a_tenth_of_it_at_most():
    config = dataclasses.replace(BASE, steps=100, warmup_steps=8, restarts=(50,))
    schedule = learning_rate_schedule(config)
    check(
        [schedule(50 + step) for step in range(6)], [0.5 * n / 6 for n in range(1, 7)]
    )


@pytest.mark.parametrize("schedule", ["step", "constant"])
def test_learning_rate_without_an_end_goes_on_through_restarts(schedule):
    np.testing.assert_array_equal(
        rates(schedule=schedule, restarts=(8, 15), decay_every=6),
        rates(schedule=schedule, decay_every=6),
    )


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_learning_rate_falls_to_the_final_one(schedule):
    falling = rates(schedule=schedule, final_learning_rate=0.1)[4:]
    assert np.all(np.diff(falling) < 0)
    check(falling[-1], 0.1)
    check(falling[8], 0.3)  # half-way between in both


def test_cosine_is_flat_at_its_ends_and_a_line_is_not():
    cosine, line = (
        np.diff(rates(schedule=each, final_learning_rate=0.1)[4:])
        for each in ("cosine", "linear")
    )
    assert abs(cosine[0]) < abs(line[0]) / 5
    check(line, np.full(16, -0.025))


def test_constant_learning_rate_stays_at_its_peak():
    assert set(rates(schedule="constant")[4:]) == {0.5}


def test_steps_count_from_the_start_of_the_run():
    stairs = rates(schedule="step", decay_every=6, decay_factor=0.5)
    check(stairs[4:], [0.5] * 2 + [0.25] * 6 + [0.125] * 6 + [0.0625] * 3)


def test_without_warmup_the_first_step_is_at_the_peak():
    assert rates(warmup_steps=0)[0] == 0.5


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("linear", [8.0, 6.5, 5.0, 3.5, 2.0, 2.0]),
        ("exponential", [8.0, 8 / 2**0.5, 4.0, 4 / 2**0.5, 2.0, 2.0]),
    ],
)
def test_temperature_ends_where_it_is_told_and_stays(kind, expected):
    config = Config(
        temperature_start=8.0,
        temperature_end=2.0,
        temperature_steps=4,
        temperature_schedule=kind,
    )
    check([*map(temperature_schedule(config), range(6))], expected)


@pytest.mark.parametrize("kind", ["linear", "exponential"])
def test_temperature_may_stay_or_rise(kind):
    for end in (2.0, 8.0):
        config = Config(
            temperature_start=2.0,
            temperature_end=end,
            temperature_steps=4,
            temperature_schedule=kind,
        )
        temperatures = [*map(temperature_schedule(config), (0, 4, 9))]
        check(temperatures, [2.0, end, end])


def test_assignment_gives_way_along_a_line():
    schedule = assignment_schedule(Config(steps=20))
    check([*map(schedule, range(6))], [1.0, 0.75, 0.5, 0.25, 0.0, 0.0])
