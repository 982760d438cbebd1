"""The directory of a finished run takes more steps, and nothing else that is new."""

import json
from pathlib import Path

import pytest

from parity_tests.tools.runs import make_dataset
from parity_tests.tools.small_runs import contents
from train.errors import TrainError
from train.flags.config import Config
from train.storage.run_directory import RunDirectory, find_finished, with_restarts
from train.storage.run_files import CONFIG, SUMMARY, read_config

DEFAULT_NUMERICS = True  # of a run


def finish(out: Path, *, steps: int, **flags) -> str:
    """Writes a finished run; returns its fingerprint."""
    config = Config(out=out, steps=steps, **flags)
    with RunDirectory(config, dataset=make_dataset()) as run:
        run.finish({"test_accuracy": 0.5, "steps": steps})
        return run.fingerprint


def test_finished_run_may_be_made_longer_and_is_then_not_finished(tmp_path):
    before = finish(tmp_path, steps=40, warmup_steps=3)
    config = Config(out=tmp_path, steps=70, warmup_steps=3)
    assert find_finished(config) is None
    longer = with_restarts(config)
    with RunDirectory(longer) as run:
        assert run.earlier_fingerprints == [before]
        assert run.fingerprint != before
    assert not (tmp_path / SUMMARY).exists()
    flags = read_config(tmp_path)
    assert (flags["steps"], flags["restarts"], flags["decay_every"]) == (70, [40], 13)
    assert with_restarts(config) == longer  # however often the command is given


def test_summary_that_a_run_left_when_it_died_is_not_that_of_the_longer_one(tmp_path):
    finish(tmp_path, steps=40)
    summary = (tmp_path / SUMMARY).read_bytes()
    longer = with_restarts(Config(out=tmp_path, steps=70))
    with RunDirectory(longer):
        pass
    (tmp_path / SUMMARY).write_bytes(summary)
    assert with_restarts(Config(out=tmp_path, steps=70)) == longer
    assert find_finished(Config(out=tmp_path, steps=70)) is None


def test_epochs_of_a_finished_run_may_be_raised(tmp_path):
    finish(tmp_path, epochs=3, steps=9, batch_size=4)  # of 12 images
    told = Config(out=tmp_path, epochs=5, batch_size=4)
    assert find_finished(told) is None
    assert with_restarts(told.for_images(12)).restarts == (9,)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"steps": 30}, "--steps 40 -> 30"),
        ({"steps": 70, "seed": 1}, "--seed 0 -> 1"),
        ({"steps": 70, "warmup_steps": 7}, "--warmup-steps 4 -> 7"),
        ({"steps": 70, "restarts": (30,)}, r"--restarts \[\] -> \[30\]"),
    ],
)
def test_nothing_but_the_length_of_a_finished_run_may_change(flags, words, tmp_path):
    finish(tmp_path, steps=40)
    before = contents(tmp_path)
    config = with_restarts(Config(out=tmp_path, **flags))
    for ask in (find_finished, RunDirectory):
        with pytest.raises(TrainError, match=words):
            ask(config)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("restarts", [(), (40,)])
def test_run_that_is_not_finished_is_not_made_longer(restarts, tmp_path):
    with RunDirectory(Config(out=tmp_path, steps=40)):
        pass
    config = with_restarts(Config(out=tmp_path, steps=70, restarts=restarts))
    with pytest.raises(TrainError, match="--steps 40 -> 70.*when it is finished"):
        RunDirectory(config)


def test_length_that_cannot_be_read_is_refused(tmp_path):
    finish(tmp_path, steps=40)
    flags = json.loads((tmp_path / CONFIG).read_text()) | {"restarts": ["a"]}
    (tmp_path / CONFIG).write_text(json.dumps(flags))
    with pytest.raises(TrainError, match=r"restarts\[0\] \(='a'\)"):
        with_restarts(Config(out=tmp_path, steps=40))
