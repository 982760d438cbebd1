"""How calls are timed: between those of others, and in a row of their own."""

import pytest

from benchmarks.measure import Settings, measure, subjects
from benchmarks.report import IN_A_ROW, IN_TURN, ratio
from benchmarks.timing import Timing, call_in_a_row, in_turn_and_in_a_row, interleave
from benchmarks.worker import Config, Worker

TORCH = ("grouped", "loop", "auto", "static")


def recorder(calls, name, cold, warm):
    """A caller whose first call after one of another takes `cold`, others `warm`."""

    def call(count):
        first = cold if not calls or calls[-1] != name else warm
        calls.extend([name] * count)
        return [first, *[warm] * (count - 1)]

    return call


def test_calls_are_taken_in_turn_and_then_in_a_row():
    calls = []
    callers = {
        "a": recorder(calls, "a", 4e-3, 1e-3),
        "b": recorder(calls, "b", 6e-3, 2e-3),
    }
    timings = in_turn_and_in_a_row(callers, 3)
    assert timings["a"] == Timing(4.0, 4.0, 4.0, steady=1.0)
    assert timings["b"] == Timing(6.0, 6.0, 6.0, steady=2.0)
    assert calls == ["a", "b"] * 4 + ["a"] * 4 + ["b"] * 4


def test_a_row_of_slow_calls_is_short():
    calls = []
    in_turn_and_in_a_row({"slow": recorder(calls, "slow", 2.0, 2.0)}, 7)
    assert len(calls) == 1 + 7 + 3


def test_functions_of_one_process_are_taken_in_turn():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    timings = interleave(functions, 2)
    assert calls == ["a", "b"] * 3 and timings["a"].steady is None
    assert len(call_in_a_row(functions["a"], 3)) == 3 and calls[-3:] == ["a"] * 3


def test_ratios_are_of_both_kinds():
    def timing(median, steady):
        return dict(median=median, low=median, high=median, steady=steady)

    timings = {
        "jax auto": timing(2.0, 2.0),
        "torch grouped": timing(4.0, 1.0),
        "torch loop": timing(3.0, 1.5),
    }
    assert ratio(timings, IN_TURN) == 1.5 and ratio(timings, IN_A_ROW) == 0.5


@pytest.mark.slow
def test_each_framework_computes_in_a_process_of_its_own():
    settings = Settings(rounds=1, quick=True, dtype="float32")
    (part, shape), *_ = subjects(quick=True)  # of one tap, which takes the least
    with (
        Worker(Config(0, "jax", quick=True), {}) as of_jax,
        Worker(Config(0, "torch", quick=True), {}) as of_torch,
    ):
        workers = {"jax": of_jax, "torch": of_torch}
        assert {name.split()[0] for name in of_torch.names} == {"torch"}
        assert not any(name.startswith("torch") for name in of_jax.names)
        record = measure(part, shape, workers, settings)
        kinds = of_jax.breakdown("jax auto", "gradient")
    assert record["memory"]["jax auto"] > 0 and sum(kinds.values()) > 0
    names = {"jax auto", "jax static", *(f"torch {form}" for form in TORCH)}
    for timings in (record["forward"], record["gradient"]):
        assert timings.keys() == names
        assert all(
            each["median"] > 0 and each["steady"] > 0 for each in timings.values()
        )
    assert ratio(record["gradient"]) > 0


@pytest.mark.slow
def test_a_process_that_cannot_start_says_so():
    with pytest.raises(RuntimeError, match="benchmark ended, with 1"):
        Worker(Config(0, "jax", dtype="float33", quick=True), {})
