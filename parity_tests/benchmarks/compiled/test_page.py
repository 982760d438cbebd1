"""The page about a chip: its tables, and what follows from them."""

import doctest

import pytest

from benchmarks.compiled import clock, figures
from benchmarks.compiled.figures import (
    best,
    geometric_mean,
    over_static,
    rank_correlation,
    regret,
)
from benchmarks.compiled.jobs import DENSE, PASSES
from benchmarks.compiled.page import page, write_page

SHAPE = str(DENSE[0])


def record(form: str, bound: float, **others) -> dict:
    """A record as a worker and its parent make it."""
    return {
        **dict(kind="layer", title=SHAPE, variant=PASSES[1], form_title=form),
        **dict(compute=bound, memory=bound / 2, bound=bound, bytes=1000, seconds=3.0),
        **dict(temporary=5_000_000, collectives={}, donated=0, aliased=0, unknown=[]),
        **others,
    }


def refused(form: str, **why) -> dict:
    return {
        **dict(kind="layer", title=SHAPE, variant=PASSES[1], form_title=form),
        **why,
    }


FORMS = {
    "static": record("static", 100.0),
    "rows": record("rows", 150.0),
    "patches": record("patches", 400.0, unknown=["while.3"]),
    "vmap": refused("vmap", late=120.0),
    "experts": refused("experts", refused="XlaRuntimeError: too large"),
    "auto": record("auto", 300.0),
}
STEP = record(
    "auto",
    5000.0,
    kind="step",
    title="resnet18, dynamic, B 128, 224×224",
    variant="4",
    static_title="resnet18, static, B 128, 224×224",
    collectives={"all-reduce f32": 12},
    donated=97,
    aliased=94,
    unread=3,
)
TWIN = {
    **STEP,
    **dict(title=STEP["static_title"], form_title="static", bound=4000.0, unread=0),
    "unknown": ["while.7"],
}


def results(*records: dict, chip: str = "v5e") -> dict:
    return {
        **dict(chip=chip, date="2026-01-02", versions={"jax": "0.10.2"}),
        "choices": {SHAPE: "patches"},
        "records": {str(index): each for index, each in enumerate(records)},
    }


def test_ratios_to_the_static_convolution_and_to_the_best_form():
    assert over_static(FORMS, "auto") == 3.0
    assert best(FORMS) == ("rows", 150.0)
    assert regret(FORMS) == 2.0
    assert regret(FORMS, "patches") == 400 / 150
    assert regret(FORMS, "vmap") is None and over_static(FORMS, "vmap") is None


def test_auto_counts_among_the_best_but_the_static_convolution_does_not():
    forms = {**FORMS, "auto": record("auto", 120.0)}
    assert best(forms) == ("auto", 120.0) and regret(forms) == 1.0
    assert best({"static": FORMS["static"], "vmap": FORMS["vmap"]}) is None


def test_a_bound_that_lacks_something_is_never_the_best():
    forms = {**FORMS, "patches": record("patches", 50.0, unknown=["no bundles of x"])}
    assert best(forms) == ("rows", 150.0)


def test_the_reference_is_never_the_best():
    forms = {**FORMS, "vmap": record("vmap", 10.0)}
    assert best(forms) == ("rows", 150.0) and regret(forms) == 2.0


def test_what_is_offered_by_name_only_is_never_the_best():
    forms = {**FORMS, "pallas (gpu)": record("pallas (gpu)", 10.0)}
    assert best(forms) == ("rows", 150.0)
    forms = {**FORMS, "pallas (tpu)": record("pallas (tpu)", 10.0)}
    assert best(forms) == ("pallas (tpu)", 10.0)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 1, 2], [5, 5, 9], 1.0),
        ([1, 2, 3], [7, 7, 7], None),
        ([], [], None),
    ],
)
def test_rank_correlation(left, right, expected):
    assert rank_correlation(left, right) == pytest.approx(expected)


def test_the_geometric_mean_of_nothing_is_none():
    assert geometric_mean([]) is None
    assert geometric_mean([1, 4, 16]) == pytest.approx(4)


@pytest.fixture(scope="module")
def text() -> str:
    return page(results(*FORMS.values(), STEP, TWIN))


@pytest.mark.parametrize(
    "line",
    [
        "| | static | experts | patches | rows | vmap | auto |",
        f"| {SHAPE} | 100 | refused | ≥ 400 | 150 | > 120 s | 300 |",
        f"| {SHAPE} | rows, 1.50× | patches | 3.00× | 2.00× |",
        "| **geometric mean** (of) | | | 3.00× (1) | 2.00× (1) |",
        f"- {SHAPE}, {PASSES[1]}, experts: XlaRuntimeError: too large",
        f"- {SHAPE}, {PASSES[1]}, patches: while.3",
        "| resnet18, dynamic, B 128, 224×224 | auto | 4 | 5.00 | 1.25× | 5.00, 2.50 "
        "| 5 MB | 12 all-reduce f32 | 94 of 97, 3 not read | 3 s |",
        "| resnet18, static, B 128, 224×224 | static | 4 | ≥ 4.00 | | 5.00, 2.50 "
        "| 5 MB | 12 all-reduce f32 | 94 of 97 | 3 s |",
    ],
)
def test_the_page_tells(text, line):
    assert line in " ".join(text.replace("  ", " ").split(" "))


def test_the_page_says_that_no_figure_is_a_time_and_what_made_them(text):
    assert "**No figure here is a time.**" in text
    assert "jax 0.10.2" in text and "2026-01-02" in text and "1.5 GHz" in text


def test_what_was_not_compiled_has_no_section(tmp_path):
    path = write_page(results(FORMS["static"], chip="h100"), tmp_path)
    text = path.read_text()
    assert path.name == "h100.md" and "3352 GB/s" in text
    assert "Training steps" not in text and "refused" not in text.split("## ")[0]
    assert "## What was refused" not in text and "Layers, forward\n" not in text


@pytest.mark.parametrize("module", [clock, figures], ids=lambda each: each.__name__)
def test_examples_run(module):
    failed, attempted = doctest.testmod(module)
    assert attempted and not failed
