"""A finished run that is made longer: it ends as if it had been told so at first."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from parity_tests.tools.small_runs import read_metrics, read_summary, run
from train.storage.run_files import CHECKPOINTS, SUMMARY, read_config

# The program is run as a user runs it.
DEFAULT_NUMERICS = True

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_runs")]

FLAGS = (
    *("--steps=4", "--checkpoint-every=2", "--eval-every=3", "--flip=0.5"),
    "--ema-decay=0.5",
)
LONGER = "--steps=9"
MEASURED = {"images_per_second"}


@pytest.fixture(scope="module")
def shorter(tmp_path_factory, quick_runs) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "shorter", *FLAGS)


@pytest.fixture(scope="module")
def longer(shorter) -> Path:
    """The shorter run, gone on with, without a pause."""
    out = shutil.copytree(shorter, shorter.with_name("longer"))
    return run(out, *FLAGS, LONGER)


def rows(out: Path) -> list[dict]:
    return [
        {name: value for name, value in row.items() if name not in MEASURED}
        for row in read_metrics(out)
    ]


def assert_equal_runs(one: Path, other: Path) -> None:
    for name in ("params_sha256", "test_loss", "ema_test_loss", "best_step", "steps"):
        assert read_summary(one)[name] == read_summary(other)[name]
    assert rows(one) == rows(other)


def checkpoints(out: Path) -> list[int]:
    return sorted(int(each.name) for each in (out / CHECKPOINTS).iterdir())


def test_longer_run_goes_on_from_the_end_of_the_shorter(shorter, longer):
    before, after = rows(shorter), rows(longer)
    assert after[: len(before)] == before
    assert [row["step"] for row in after if "loss" in row] == [*range(1, 10)]
    assert read_summary(longer)["steps"] == 9
    assert read_config(longer)["restarts"] == [4]


def test_learning_rate_starts_anew_where_the_shorter_run_ended(shorter, longer):
    rates = [row["learning_rate"] for row in rows(longer) if "loss" in row]
    assert rates[4] == rates[0] == float(np.float32(2e-3))
    assert rates[4] > rates[5] > rates[8]
    temperatures = [row["temperature"] for row in rows(longer) if "loss" in row]
    assert temperatures[4:] == temperatures[3:4] * 5


def test_run_told_its_restart_at_first_is_the_longer_one(longer, tmp_path):
    at_once = run(tmp_path / "at-once", *FLAGS, LONGER, "--restarts=4")
    assert_equal_runs(at_once, longer)


@pytest.mark.parametrize("last", [4, 2])
def test_longer_run_that_died_goes_on_to_the_same_end(last, longer, tmp_path):
    out = shutil.copytree(longer, tmp_path / "died")
    (out / SUMMARY).unlink()
    shutil.copytree(longer.with_name("shorter") / CHECKPOINTS, tmp_path / "earlier")
    for path in (out / CHECKPOINTS).iterdir():
        shutil.rmtree(path)
    for step, source in {
        **{step: tmp_path / "earlier" / f"{step}" for step in (2, 4)},
        **{step: longer / CHECKPOINTS / f"{step}" for step in checkpoints(longer)},
    }.items():
        if step <= last:
            shutil.copytree(source, out / CHECKPOINTS / f"{step}")
    run(out, *FLAGS, LONGER)
    assert_equal_runs(out, longer)


def test_longer_run_may_be_made_longer_again(longer, tmp_path):
    out = shutil.copytree(longer, tmp_path / "run")
    run(out, *FLAGS, "--steps=11")
    assert read_config(out)["restarts"] == [4, 9]
    assert [row["step"] for row in rows(out) if "loss" in row] == [*range(1, 12)]


def test_longer_run_is_finished_for_the_same_command(longer, capsys):
    before = rows(longer)
    run(longer, *FLAGS, LONGER)
    assert f"the run in {longer} is finished" in capsys.readouterr().out
    assert rows(longer) == before
