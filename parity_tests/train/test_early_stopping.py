"""A run that gets no better ends, and is then as finished as any."""

import shutil
from pathlib import Path

import pytest

from parity_tests.tools.small_runs import contents, read_metrics, read_summary, run
from train.errors import TrainError
from train.flags.config import Config
from train.storage.run_files import CHECKPOINTS, SUMMARY

# The program is run as a user runs it.
DEFAULT_NUMERICS = True

pytestmark = pytest.mark.usefixtures("quick_runs")

FLAGS = (
    *("--steps=60", "--early-stopping=2", "--eval-every=3", "--val-split=0.2"),
    *("--conv=static", "--checkpoint-every=4"),
    *("--learning-rate=1e-6", "--warmup-steps=0"),
)


def finish(out: Path, *flags: str) -> Path:
    return run(out, *FLAGS, *flags, experts=None)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, quick_runs) -> Path:
    return finish(tmp_path_factory.mktemp("runs") / "stopped")


def accuracies(out: Path) -> dict[int, float]:
    rows = [row for row in read_metrics(out) if "val_accuracy" in row]
    return {row["step"]: row["val_accuracy"] for row in rows}


def test_run_ends_at_the_second_evaluation_without_a_better_accuracy(stopped):
    found, summary = accuracies(stopped), read_summary(stopped)
    best = max(found, key=lambda step: (found[step], -step))
    assert summary["stopped_early"] and summary["steps"] < 60
    assert summary["steps"] == best + 6 == max(found)
    assert (summary["best_step"], summary["best_val_accuracy"]) == (best, found[best])
    assert {"test_accuracy", "params_sha256"} <= summary.keys()


def test_run_that_stopped_early_is_finished_and_is_not_made_longer(stopped, capsys):
    before = contents(stopped)
    for flags in ([], ["--steps=70"]):
        capsys.readouterr()
        finish(stopped, *flags)
        assert "is finished, with test accuracy" in capsys.readouterr().out
    assert contents(stopped) == before


@pytest.mark.parametrize("kept", ["all", "earlier"])
def test_run_that_died_stops_early_at_the_same_step(kept, stopped, tmp_path):
    out = shutil.copytree(stopped, tmp_path / "died")
    (out / SUMMARY).unlink()
    if kept == "earlier":
        shutil.rmtree(out / CHECKPOINTS / f"{read_summary(stopped)['steps']}")
    finish(out)
    for name in ("steps", "params_sha256", "best_step", "stopped_early"):
        assert read_summary(out)[name] == read_summary(stopped)[name]
    assert accuracies(out) == accuracies(stopped)


def test_evaluations_since_the_best_are_counted():
    config = Config(steps=20, eval_every=4, early_stopping=2, restarts=(6,))
    given_up = [step for step in range(21) if config.gives_up_at(step, best_step=4)]
    # Of 6, where it may have ended, and 8.
    assert given_up == [*range(8, 21)]
    assert not Config(steps=20, eval_every=1).gives_up_at(20, best_step=1)


def test_patience_is_at_least_one_evaluation():
    with pytest.raises(TrainError, match=r"--early-stopping .* at least 1"):
        Config(early_stopping=0)
