"""The flags of the recipe: the length of a run, and what is left out."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from parity_tests.tools.runs import SUMMARY, make_dataset
from train.data.batches import batch_indices
from train.errors import TrainError
from train.flags.config import Config, parse
from train.flags.recipe import OF_PRESETS, USUAL
from train.storage.finished import read_run
from train.storage.run_directory import RunDirectory, find_finished
from train.storage.run_files import read_config

DEFAULT_NUMERICS = True

# Of 12 images a batch of 5 is drawn twice an epoch, and 2 images are left out.
TOLD: dict[str, Any] = dict(epochs=30, batch_size=5)


def test_epochs_are_as_many_steps_as_batches_are_drawn_in_them():
    config = Config(**TOLD).for_images(12)
    assert config.total_steps == 60
    drawn = [batch_indices(12, 5, 0, step) for step in range(config.total_steps)]
    for epoch in range(30):
        images = np.concatenate(drawn[2 * epoch : 2 * epoch + 2])
        assert len({*images.tolist()}) == 10


def test_run_without_a_length_has_400_steps_however_many_images_there_are():
    assert Config().for_images(12).total_steps == Config(steps=400).total_steps == 400


def test_what_follows_from_the_steps_follows_from_the_epochs():
    by_epochs = Config(**TOLD).for_images(12).to_json()
    by_steps = Config(steps=60, batch_size=5).to_json()
    differing = {name for name in by_steps if by_steps[name] != by_epochs[name]}
    assert differing == {"epochs"}
    assert (by_epochs["steps"], by_epochs["warmup_steps"]) == (60, 6)


def test_steps_and_epochs_together_are_refused():
    with pytest.raises(TrainError) as refusal:
        parse(["--steps=60", "--epochs=30"])
    message = "--epochs (=30) must be left out with --steps (=60)"
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize("epochs", [0, -1])
def test_epochs_are_at_least_1(epochs):
    with pytest.raises(TrainError, match=r"--epochs .* be at least 1"):
        Config(epochs=epochs)


def test_warm_up_is_held_against_the_steps_of_the_epochs():
    config = Config(**TOLD, warmup_steps=60)
    assert config.for_images(17).warmup == 60
    with pytest.raises(TrainError, match=r"--warmup-steps .* less than --steps .=60"):
        config.for_images(12)


def test_what_follows_from_the_steps_follows_from_the_first_part():
    longer = Config(steps=90, restarts=(60,)).to_json()
    first = Config(steps=60).to_json()
    differing = {name for name in first if first[name] != longer[name]}
    assert differing == {"steps", "restarts"}


@pytest.mark.parametrize("restarts", [(0,), (60,), (30, 30), (40, 20), (61,)])
def test_restarts_are_steps_of_the_run_in_order(restarts):
    with pytest.raises(TrainError, match=r"--restarts .* rise from 1 .* --steps .=60"):
        Config(steps=60, restarts=restarts)


def test_warm_up_is_held_against_the_first_restart():
    with pytest.raises(TrainError, match=r"less than the first of --restarts .=20"):
        Config(steps=60, warmup_steps=20, restarts=(20, 50))


def test_run_of_epochs_is_that_of_their_steps(tmp_path):
    dataset, summary = make_dataset(images=12), SUMMARY | {"steps": 60}
    told = Config(**TOLD, out=tmp_path)
    with RunDirectory(told.for_images(12), dataset=dataset) as run:
        assert read_config(tmp_path)["steps"] == 60
        assert read_config(tmp_path)["epochs"] == 30
        run.finish(summary)
    assert find_finished(told) == summary
    assert find_finished(Config(steps=60, batch_size=5, out=tmp_path)) == summary
    others: list[dict[str, int]] = [{"epochs": 20}, {"batch_size": 4}, {"seed": 1}]
    for other in others:
        with pytest.raises(TrainError, match="holds a run with other flags"):
            find_finished(dataclasses.replace(told, **other))


def test_steps_of_epochs_are_no_flag_that_was_changed(tmp_path):
    told = Config(**TOLD, out=tmp_path).for_images(12)
    with RunDirectory(told):
        changed, _ = read_run(tmp_path).split_flags()
    assert changed == TOLD


# What the preset says


@pytest.mark.parametrize("name", USUAL)
def test_flag_is_that_of_the_preset_unless_it_is_given(name):
    own = OF_PRESETS["digits"][name]
    assert own != USUAL[name]
    assert Config().recipe(name) == Config().to_json()[name] == own
    assert Config(preset="fashion").recipe(name) == USUAL[name]
    given: dict[str, Any] = {name: 0.7}
    assert Config(**given).recipe(name) == 0.7


def test_flag_that_is_given_as_nothing_is_not_that_of_the_preset():
    assert Config(load_balance=0.0).recipe("load_balance") == 0
