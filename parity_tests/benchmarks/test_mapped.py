"""The page on mapped convolutions is what was measured, judged by its goals."""

import json
from typing import Any, cast

import pytest

from benchmarks import mapped
from benchmarks.compiled.page import page
from benchmarks.stacks import STACKS
from parity_tests.tools.checkout import ROOT

FOLDER = ROOT / "docs" / "benchmarks"


def test_what_is_committed_is_what_was_measured():
    record = json.loads((FOLDER / "mapped.json").read_text())
    assert mapped.page(record) == (FOLDER / "mapped.md").read_text()
    assert set(record["found"]["stacks"]) == {str(each) for each in mapped.STACKS}


@pytest.mark.parametrize("chip", ["v5e", "h100"])
def test_what_is_committed_of_a_chip_is_what_its_compiler_said(chip):
    results = json.loads((FOLDER / "mapped" / f"{chip}.json").read_text())
    assert page(results) == (FOLDER / "mapped" / f"{chip}.md").read_text()
    titles = {each["title"] for each in results["records"].values()}
    assert titles == {str(each) for each in STACKS}


def measured(gradient, forward):
    """Times of which the goals' are so many times that of `conv`."""
    stack = {
        "forward": {mapped.OURS: 2.0, mapped.BY_MAP: 2.0 * forward},
        "gradient": {
            mapped.OURS: 3.0,
            mapped.BY_VMAP: 3.0 * gradient,
            mapped.BY_MAP: 3.0 * gradient,
        },
        "gigabytes": {mapped.OURS: 0.1},
    }
    found = {
        "stacks": {str(mapped.GOAL): stack},
        "examples": {
            "gradients": {mapped.OURS: 1, mapped.BY_VMAP: 9, mapped.IN_TORCH: 1.1}
        },
        "ensemble": {"step": {mapped.OURS: 1.0, "one by one": 1.5}},
    }
    return dict(date="today", rounds=3, machine={}, found=found)


@pytest.mark.parametrize(
    ("gradient", "forward", "missed"),
    [(45, 1.1, 1), (30, 1.1, 2), (45, 0.9, 2), (10, 0.5, 4)],
)
def test_goals_are_marked_by_what_was_measured(gradient, forward, missed):
    text = mapped.page(measured(gradient, forward))
    assert text.count("| missed |") == missed
    assert text.count("| met |") == 6 - missed


@pytest.mark.parametrize("way", [mapped.OURS, mapped.BY_VMAP, mapped.BY_MAP])
def test_every_way_computes_the_same(way):
    stack = mapped.Stack(2, 3, 7, 4, 8, strides=2)
    calls = cast(Any, mapped.stack_calls(stack, way))
    in_torch = cast(Any, mapped.stack_calls(stack, mapped.IN_TORCH))
    inputs, kernel, outputs = stack.shapes()
    assert calls["forward"]().shape == outputs
    found, (of_inputs, of_kernel) = calls["gradient"]()
    assert (found.shape, of_inputs.shape, of_kernel.shape) == (outputs, inputs, kernel)
    shapes = [tuple(each.shape) for each in in_torch["gradient"]()]
    assert shapes == [(2, 3, 4, 7, 7), (2, 8, 4, 3, 3)]
