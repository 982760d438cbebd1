"""The fit of the rates: it finds the rates that made the times, and writes them."""

import dataclasses
import json
import statistics

import pytest

from benchmarks.compiled.jobs import DENSE
from benchmarks.compiled.jobs import DEPTHWISE as DEPTHWISE_LAYERS
from benchmarks.fit import (
    Config,
    fit,
    main,
    problem_of,
    read_bounds,
    regrets,
    sweep,
    to_toml,
)
from benchmarks.shapes import DEPTHWISE, LAYERS, OTHERS
from dynconv_jax.functional.chips import KINDS, Chip, chips
from dynconv_jax.functional.choice import plans
from dynconv_jax.functional.cost import estimate
from parity_tests.tools.checkout import ROOT

SHAPES = (*LAYERS, *DEPTHWISE, *OTHERS)


def times_by(chip: Chip):
    """Returns the times of all plans as if the rates of a chip were the truth."""
    problems = {shape: problem_of(shape, chip) for shape in SHAPES}
    return {
        shape: {
            str(plan): estimate(problem, plan).milliseconds for plan in plans(problem)
        }
        for shape, problem in problems.items()
    }


def blank(chip: Chip) -> Chip:
    rates = dict.fromkeys(KINDS, 1e-3)
    return dataclasses.replace(chip, rates=rates, form_rates={})


@pytest.mark.parametrize("name", ["zen4", "v5e", "h100"])
def test_the_rates_behind_the_times_are_found(name):
    chip = chips()[name]
    times = times_by(chip)
    fitted, error = fit(times, blank(chip))
    assert error < 1e-6
    assert max(regrets(fitted, times)) == pytest.approx(1.0)
    assert max(regrets(blank(chip), times)) > 1.0


@pytest.mark.parametrize("name", chips())
def test_a_file_of_rates_comes_back(name):
    chip = chips()[name]
    assert Chip.from_toml(name, to_toml(chip)) == chip


def test_bounds_of_a_compiler_are_read(tmp_path):
    shape = LAYERS[0]
    record = {"kind": "layer", "title": str(shape), "variant": "forward + backward"}
    records = [
        record | {"form_title": "patches", "bound": 250.0, "unknown": []},
        record | {"form_title": "static", "bound": 100.0, "unknown": []},
        record | {"form_title": "rows", "bound": 200.0, "unknown": ["a loop"]},
        record | {"form_title": "experts", "refused": "too large"},
        record | {"form_title": "vmap", "bound": 1.0, "unknown": []},
    ]
    results = {
        "chip": "v5e",
        "date": "2000-01-01",
        "versions": {"libtpu": "1.2"},
        "records": {str(index): each for index, each in enumerate(records)},
    }
    path = tmp_path / "v5e.json"
    path.write_text(json.dumps(results))
    chip, times, source = read_bounds(path)
    assert chip.name == "v5e"
    assert times == {shape: {"patches": 0.25}}
    assert "libtpu 1.2" in source and "not measured" in source


def test_a_sweep_that_is_out_of_time_goes_on_from_what_it_has_kept(tmp_path):
    chip = chips()["zen4"]
    kept = {str(shape): times for shape, times in times_by(chip).items()}
    path = tmp_path / "times.json"
    config = Config(times=path, seconds=0.0)
    left = dict(list(kept.items())[3:])
    path.write_text(json.dumps(left))
    with pytest.raises(SystemExit, match="^3 shapes are left"):
        sweep(SHAPES, chip, config)
    assert json.loads(path.read_text()) == left
    path.write_text(json.dumps(kept))
    assert sweep(SHAPES, chip, config) == times_by(chip)


def test_a_sweep_in_parts_must_keep_its_times():
    with pytest.raises(SystemExit, match="--times"):
        main(Config(seconds=60.0))


# What compilers made of the layers is committed; the rates are fitted to it.
COMPILED = ROOT / "docs" / "benchmarks" / "compiled"


# On a v6e the compiler moves rows of one layer through memory that it keeps in the core
# on a v5e, which the model does not foresee.
@pytest.mark.parametrize(("name", "worst"), [("v5e", 1.3), ("v6e", 1.4), ("h100", 1.3)])
def test_the_rates_choose_what_the_compiler_says_is_near_the_best(name, worst):
    chip, times, _ = read_bounds(COMPILED / f"{name}.json")
    layers = {shape: times[shape] for shape in (*DENSE, *DEPTHWISE_LAYERS)}
    found = regrets(chip, layers)
    assert statistics.geometric_mean(found) <= 1.1
    assert max(found) <= worst
