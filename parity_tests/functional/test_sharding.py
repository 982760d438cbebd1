"""Programs over a sharded batch: devices add up gradients and exchange nothing else."""

import json
import os
import subprocess
import sys

import pytest

from parity_tests.tools import compiled_programs
from parity_tests.tools.checkout import ROOT

ENVIRONMENT = compiled_programs.ENVIRONMENT
SHAPES = compiled_programs.SHAPES
SHARDINGS = ("automatic", "explicit")
DIRECTIONS = ("forward", "gradient")
PROGRAMS = [(shape, "auto") for shape in SHAPES]
PROGRAMS += [
    (shape, form)
    for form, shapes in compiled_programs.ONLY_FOR.items()
    for shape in shapes
    if form != "vmap"
]


@pytest.fixture(scope="module")
def exchanged() -> dict[str, dict[str, int]]:
    """What the devices exchange in each program, by kind; see compiled_programs.py."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {ENVIRONMENT['XLA_FLAGS']}"
    run = subprocess.run(
        [sys.executable, "-m", "parity_tests.tools.compiled_programs"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, "XLA_FLAGS": flags},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def moves(kinds: dict[str, int]) -> dict[str, int]:
    assert isinstance(kinds, dict), kinds  # else it did not compile
    return {kind: kinds[kind] for kind in compiled_programs.MOVES if kind in kinds}


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("shape", "form"), PROGRAMS)
def test_batch_stays_where_it_is(shape, form, direction, sharding, exchanged):
    assert moves(exchanged[f"{sharding}, {shape}, {form}, {direction}"]) == {}


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_exchanges_nothing(shape, sharding, exchanged):
    assert exchanged[f"{sharding}, {shape}, auto, forward"] == {}


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("shape", ["dense", "depthwise"])
def test_devices_loop_over_their_own_samples_in_shard_map(shape, sharding, exchanged):
    kinds = exchanged[f"{sharding}, local, {shape}"]
    assert moves(kinds) == {}
    assert kinds["while"] >= 1


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("member", compiled_programs.FAMILY)
def test_no_member_of_the_family_moves_the_batch(member, sharding, exchanged):
    assert moves(exchanged[f"{sharding}, family, {member}"]) == {}


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("layer", compiled_programs.NARROW)
def test_gradients_of_narrow_layers_are_added_up_in_float32(layer, sharding, exchanged):
    kinds = exchanged[f"{sharding}, narrow, {layer}"]
    assert isinstance(kinds, dict), kinds
    assert kinds["all-reduce"] >= 1
    assert "narrow" not in kinds


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("inputs", ["images", "features"])
def test_batch_norm_exchanges_once_in_either_direction(inputs, sharding, exchanged):
    assert exchanged[f"{sharding}, norm, {inputs}, forward"] == {"all-reduce": 1}
    assert exchanged[f"{sharding}, norm, {inputs}, gradient"] == {"all-reduce": 2}


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_training_step_exchanges_only_sums(sharding, exchanged):
    kinds = exchanged[f"{sharding}, training step, auto"]
    assert moves(kinds) == {}
    assert kinds["all-reduce"] >= 1


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_mapped_convolution_gathers_the_batch(direction, sharding, exchanged):
    assert moves(exchanged[f"{sharding}, dense, vmap, {direction}"])


def test_training_step_of_mapped_convolutions_gathers_the_batch(exchanged):
    assert moves(exchanged["automatic, training step, vmap"])
