"""The page on exported programs is what was measured, judged by its goals."""

import json

import pytest

from benchmarks.exported import COMPARED, NETWORKS, page, ratios
from parity_tests.tools.checkout import ROOT

FOLDER = ROOT / "docs" / "benchmarks"


def measured(**factors):
    """Times of programs that take so many times the time of what they are of."""
    times = {"JAX, jitted": 2.0, "the twin": 4.0}
    for name, beside in COMPARED.items():
        kind = name.removeprefix("model.")
        times[name] = times[beside] * factors.get(kind, 1.0)
    return {
        "bytes": dict.fromkeys(COMPARED, 2_500_000),
        "milliseconds": {
            "32": {name: {"median": each} for name, each in times.items()}
        },
    }


def page_of(networks):
    machine = {"PyTorch threads": 2}
    return page(dict(date="today", rounds=3, machine=machine, networks=networks))


def test_what_is_committed_is_what_was_measured():
    record = json.loads((FOLDER / "exported.json").read_text())
    assert page(record) == (FOLDER / "exported.md").read_text()


def test_a_program_is_compared_with_what_it_was_written_of():
    found = ratios(measured(stablehlo=1.5, onnx=0.5, pt2=3.0))["32"]
    assert found == {"model.stablehlo": 1.5, "model.onnx": 0.5, "model.pt2": 3.0}


@pytest.mark.parametrize(
    ("factors", "missed"),
    [
        (dict(stablehlo=1.04, onnx=1.4, pt2=9.0), []),
        (dict(stablehlo=1.06), ["`model.stablehlo`"]),
        (dict(onnx=1.6), ["`model.onnx`"]),
    ],
)
def test_goals_that_are_missed_are_named(factors, missed):
    name = next(name for name, each in NETWORKS.items() if each.has_goal)
    lines = page_of({name: measured(**factors)}).splitlines()
    goals = [line for line in lines if line.startswith("- ")]
    assert len(goals) == 2
    for line in goals:
        assert ("**missed by 1 of 1**" in line and f"{name}, B 32 (" in line) == any(
            each in line for each in missed
        )
        assert ("**met**" in line) == (not any(each in line for each in missed))


def test_a_network_without_a_goal_for_onnx_misses_none():
    name = next(name for name, each in NETWORKS.items() if not each.has_goal)
    assert "missed" not in page_of({name: measured(onnx=3.0)})
