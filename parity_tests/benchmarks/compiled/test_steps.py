"""Training steps: the program that `python -m train` would jit, for any devices."""

import re

import jax
import pytest

from benchmarks.compiled.jobs import STEP_BATCH, Job
from benchmarks.compiled.steps import Step, lower_step

DEFAULT_NUMERICS = True


@pytest.fixture(scope="module")
def step() -> Step:
    job = Job("step", ["dynamic_net", "dynamic", 32, 10], "experts", "1")
    return lower_step(job, jax.devices()[:1])


def test_all_of_the_state_is_donated_and_nothing_else(step):
    state, images, labels = step.lowered.args_info[0]
    assert step.donated == len(jax.tree.leaves(state)) > 50
    assert all(each.donated for each in jax.tree.leaves(state))
    assert not images.donated and not labels.donated


def test_state_is_aliased_but_for_temperatures_which_are_written_and_not_read(step):
    state = step.lowered.args_info[0][0]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state)]
    written = sum("temperature" in path for path in paths)
    assert written == 3  # a router for each of its dynamic convolutions
    (main,) = re.findall(r"func\.func public @main\((.*?)\) ->", step.lowered.as_text())
    given = main.count("%arg")
    assert given == len(paths) - written + 2  # and images and labels
    assert main.count("tf.aliasing_output") == len(paths) - written


def test_images_and_labels_are_those_of_a_batch(step):
    _, images, labels = step.lowered.args_info[0]
    assert images.shape == (STEP_BATCH, 32, 32, 3) and labels.shape == (STEP_BATCH,)


def test_arguments_fit_the_step(step):
    drawn, expected = step.arguments(), step.lowered.args_info[0]
    shapes = [
        [(each.shape, each.dtype) for each in jax.tree.leaves(tree)]
        for tree in (drawn, expected)
    ]
    assert shapes[0] == shapes[1]
