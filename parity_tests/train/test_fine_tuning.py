"""A run that starts from another one: with a new head, and most of it frozen."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from parity_tests.tools.small_runs import (
    contents,
    read_summary,
    run,
    save_static,
    start,
)
from train.__main__ import main
from train.storage.run_files import CHECKPOINTS, EMA_WEIGHTS, SUMMARY, WEIGHTS

# The program is run as a user runs it.
DEFAULT_NUMERICS = True

pytestmark = pytest.mark.usefixtures("quick_runs")

FLAGS = (
    *("--new-head", "--freeze", "backbone", "--ema-decay=0.9"),
    *("--accumulate=2", "--layer-decay=0.7", "--head-learning-rate=0.01"),
    *("--steps=4", "--checkpoint-every=2", "--eval-every=4"),
)
TRAINED = {"fc.weight", "fc.bias"} | {
    f"stage{stage}.dyn.{name}"
    for stage in (1, 2, 3)
    for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "temperature")
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A directory with the weights of a static network of seven classes."""
    path = tmp_path_factory.mktemp("runs") / "source"
    path.mkdir()
    save_static(path / WEIGHTS)
    return path


@pytest.fixture(scope="module")
def tuned(source, tmp_path_factory, quick_runs) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tuned"
    return run(out, f"--init-from={source}", *FLAGS)


@pytest.mark.parametrize("name", [WEIGHTS, EMA_WEIGHTS])
def test_backbone_is_that_of_the_other_run_bit_for_bit(name, tuned, source):
    given = safetensors.numpy.load_file(source / WEIGHTS)
    found = safetensors.numpy.load_file(tuned / name)
    assert found.keys() - TRAINED == given.keys() - TRAINED
    for key in found.keys() - TRAINED:
        value = given[key]
        if found[key].ndim == 5:  # experts, each of them the static kernel
            value = np.broadcast_to(value, found[key].shape)
        np.testing.assert_array_equal(found[key], value)


def test_run_goes_on_from_its_checkpoint_to_the_same_end(tuned, source, tmp_path):
    again = shutil.copytree(tuned, tmp_path / "again")
    (again / SUMMARY).unlink()
    shutil.rmtree(again / CHECKPOINTS / "4")
    run(again, f"--init-from={source}", *FLAGS)
    for name in ("params_sha256", "test_loss", "ema_test_loss"):
        assert read_summary(again)[name] == read_summary(tuned)[name]


def test_what_is_new_and_what_is_frozen_is_said(source, tmp_path, capsys):
    run(tmp_path, f"--init-from={source}", *FLAGS)
    said = capsys.readouterr().out
    assert "the head (fc.weight, fc.bias) is drawn anew, by --new-head" in said
    assert "and 4 batch norms are frozen, by --freeze backbone" in said


def test_finished_run_is_evaluated_without_the_other(tuned, tmp_path, capsys):
    moved = shutil.copytree(tuned, tmp_path / "moved")
    capsys.readouterr()
    assert main(["evaluate", "--json", str(moved)]) == 0
    accuracy = json.loads(capsys.readouterr().out)["test_accuracy"]
    assert accuracy == pytest.approx(read_summary(tuned)["test_accuracy"])


def test_nothing_is_written_by_a_run_that_is_refused(source, tmp_path, capsys):
    for refused, words in [
        ((), "--new-head draws it anew"),
        (("--new-head", "--freeze", "layer4"), "--freeze (=layer4) must name"),
    ]:
        assert start(tmp_path / "out", f"--init-from={source}", *refused) == 2
        message = capsys.readouterr().err
        assert message.startswith("train: error: ") and words in message
        assert message.count("\n") == 1
        assert not (tmp_path / "out").exists()
    assert contents(source).keys() == {WEIGHTS}
