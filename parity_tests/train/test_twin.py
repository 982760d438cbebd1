"""A run that trains its static twin too: two whole runs, and one report of both."""

import shutil
import time
from pathlib import Path

import pytest

from parity_tests.tools.small_runs import contents, read_summary, run, start
from train import loop
from train.machines.signals import StopSignals
from train.storage.run_files import CHECKPOINTS, REPORT, TWIN, read_config

# The program is run as a user runs it.
DEFAULT_NUMERICS = True

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_runs")]

FLAGS = ("--eval-every=2", "--flip=0.5")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, quick_runs) -> Path:
    """The directory of a run without a twin."""
    return run(tmp_path_factory.mktemp("runs") / "alone", *FLAGS)


@pytest.fixture(scope="module")
def both(tmp_path_factory, quick_runs) -> Path:
    """The directory of the same run with one."""
    return run(tmp_path_factory.mktemp("runs") / "both", "--twin", *FLAGS)


def ends(out: Path) -> list[str]:
    return [read_summary(path)["params_sha256"] for path in (out, out / TWIN)]


def test_twin_is_the_run_that_trains_static_convolutions(both, tmp_path):
    static = run(tmp_path / "static", "--conv=static", *FLAGS, experts=None)
    mine, its = read_summary(both / TWIN), read_summary(static)
    for name in ("params_sha256", "test_loss", "best_step", "parameters"):
        assert mine[name] == its[name]


def test_twin_changes_nothing_about_the_run_itself(both, alone):
    mine, its = read_summary(both), read_summary(alone)
    for name in ("params_sha256", "test_loss", "best_step"):
        assert mine[name] == its[name]


def test_summary_has_the_figures_of_the_twin(both):
    summary, twin = read_summary(both), read_summary(both / TWIN)
    for name in ("test_accuracy", "test_loss", "images_per_second"):
        assert summary[f"twin_{name}"] == twin[name]
    for name in ("parameters", "multiply_adds"):
        assert summary[f"static_{name}"] == twin[name]


def test_time_of_the_twin_is_its_own(alone, both, tmp_path, monkeypatch):
    out, hours = shutil.copytree(alone, tmp_path / "run"), [0.0]
    clock = time.perf_counter

    def train_twin(*given):
        hours[0] += 3600
        return {"twin_test_accuracy": 0.5, "twin_images_per_second": 1.0}

    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock() + hours[0])
    monkeypatch.setattr(loop, "train_twin", train_twin)
    shutil.copytree(both / TWIN, out / TWIN)
    run(out, "--twin", *FLAGS)
    assert hours == [3600] and read_summary(out)["wall_seconds"] < 3600


def in_words(out: Path) -> str:
    summary = read_summary(out)
    own, twin = summary["test_accuracy"], summary["twin_test_accuracy"]
    return f"test accuracy {own:.4f} (its static twin: {twin:.4f})"


def test_finished_run_tells_of_its_twin_and_is_untouched(both, capsys):
    before = contents(both)
    run(both, "--twin", *FLAGS)
    said = capsys.readouterr().out
    assert f"is finished, with {in_words(both)}; --overwrite" in said
    assert contents(both) == before


def test_finished_run_is_given_a_twin_that_is_asked_for_later(alone, both, tmp_path):
    out = shutil.copytree(alone, tmp_path / "run")
    run(out, "--twin", *FLAGS)
    assert ends(out) == ends(both)
    assert "twin_test_accuracy" in read_summary(out)
    assert read_config(out)["twin"] is True
    assert "static twin" in (out / REPORT).read_text()


@pytest.mark.parametrize(
    ("steps", "last"),
    [
        pytest.param(2, ["2", None], id="in the twin"),
        pytest.param(3, ["3", "1"], id="at its end"),
    ],
)
def test_stopped_run_goes_on_to_the_same_end(
    steps, last, both, tmp_path, monkeypatch, capsys
):
    out, asked = tmp_path / "run", iter(range(1, 9))
    monkeypatch.setattr(
        StopSignals, "stop_after_step", lambda self: next(asked) >= steps
    )
    assert start(out, "--twin", *FLAGS) == 75
    assert f"the same command with --out {out}, and without" in capsys.readouterr().err
    folders = [path / CHECKPOINTS for path in (out / TWIN, out)]
    saved = [[each.name for each in folder.glob("*")] for folder in folders]
    assert [max(names, default=None) for names in saved] == last
    monkeypatch.undo()
    run(out, "--twin", *FLAGS)
    assert ends(out) == ends(both)


def test_failure_of_the_twin_is_told_as_such(tmp_path, capsys):
    flags = ("--learning-rate=1e30", "--warmup-steps=0", "--checkpoint-every=1")
    assert start(tmp_path, "--twin", *FLAGS, *flags) == 1
    message = capsys.readouterr().err
    assert message.startswith("train: error: the static twin: the loss is nan at step")
    assert message.count("\n") == 1


def test_static_model_has_no_twin(tmp_path, capsys):
    out = tmp_path / "run"
    assert start(out, "--twin", "--conv=static", *FLAGS, experts=None) == 2
    message = capsys.readouterr().err
    assert message == (
        "train: error: --twin (=True) must be left out with --model dynamic_net --conv "
        "static, whose convolutions are static already; choose others by --conv\n"
    )
    assert not out.exists()


def test_overwriting_a_run_overwrites_its_twin(both, tmp_path, capsys):
    out = shutil.copytree(both, tmp_path / "run")
    run(out, "--twin", "--overwrite", "--seed=1", *FLAGS)
    assert read_config(out / TWIN)["seed"] == 1
    assert not set(ends(out)) & set(ends(both))
    assert f"{in_words(out)} after" in capsys.readouterr().out
