"""What goes wrong in a run, and that nothing is lost by it."""

import contextlib
import io
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from parity_tests.tools.small_runs import (
    DROPPED_WRITES,
    files_of_at_most,
    read_metrics,
    read_summary,
    run,
    start,
)
from train.storage.run_files import BEST_WEIGHTS, CHECKPOINTS, CONFIG, FILES, METRICS

# The program is run as a user runs it.
DEFAULT_NUMERICS = True

pytestmark = [pytest.mark.usefixtures("quick_runs"), DROPPED_WRITES]

# Of static convolutions, which compile sooner. Runs with routers are stopped and gone
# on with in test_twin.py, and killed in test_resume.py.
FLAGS = (
    *("--steps=32", "--checkpoint-every=4", "--eval-every=32", "--flip=0.5"),
    "--conv=static",
)
MEASURED = {"images_per_second"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, quick_runs) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "undisturbed", *FLAGS, experts=None)


@pytest.fixture(scope="module")
def stopped_once(undisturbed) -> tuple[Path, str]:
    """The directory of a run that SIGTERM stopped, and what it said."""
    out = undisturbed.with_name("stopped")
    # Should the run end before it is told, the signal must not end the tests.
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    told = threading.Thread(target=tell_to_stop, args=[out / METRICS], daemon=True)
    told.start()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = start(out, *FLAGS, experts=None)
    told.join()
    signal.signal(signal.SIGTERM, former)
    assert status == 75
    return out, said.getvalue()


@pytest.fixture
def stopped(stopped_once, tmp_path) -> Path:
    """A copy of its directory."""
    return shutil.copytree(stopped_once[0], tmp_path / "stopped")


def tell_to_stop(metrics: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= 9:
            return os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)


def values(out: Path) -> list[dict]:
    return [
        {name: value for name, value in row.items() if name not in MEASURED}
        for row in read_metrics(out)
    ]


def assert_goes_on_to_the_same_end(out: Path, undisturbed: Path) -> None:
    run(out, *FLAGS, experts=None)
    for name in ("params_sha256", "test_loss", "best_step"):
        assert read_summary(out)[name] == read_summary(undisturbed)[name]
    assert values(out) == values(undisturbed)


def checkpoints_of(out: Path) -> list[int]:
    names = (path.name for path in (out / CHECKPOINTS).iterdir())
    return sorted(int(name) for name in names if name.isdigit())


def test_stopped_run_says_so_and_goes_on_to_the_same_end(stopped, undisturbed, capsys):
    last = max(checkpoints_of(stopped))
    assert 9 <= last < 32
    assert values(stopped)[-1]["step"] == last
    capsys.readouterr()
    assert_goes_on_to_the_same_end(stopped, undisturbed)
    assert f"going on after step {last}," in capsys.readouterr().out


def test_stop_is_explained_in_one_line(stopped_once):
    _, message = stopped_once
    assert message.startswith("train: stopped after step ")
    assert message.count("\n") == 1


def test_damaged_checkpoint_gives_way_to_the_one_before(stopped, undisturbed, capsys):
    *_, before, last = checkpoints_of(stopped)
    files = (path for path in (stopped / CHECKPOINTS / f"{last}").rglob("*"))
    largest = max((p for p in files if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    capsys.readouterr()
    assert_goes_on_to_the_same_end(stopped, undisturbed)
    said = capsys.readouterr()
    assert f"{stopped / CHECKPOINTS / str(last)} " in said.err
    assert f"going on after step {before}," in said.out


def test_full_disk_ends_the_run_and_leaves_what_was_there(stopped, undisturbed, capsys):
    before = checkpoints_of(stopped)
    capsys.readouterr()
    with files_of_at_most(50_000):
        assert start(stopped, *FLAGS, experts=None) == 1
    message = capsys.readouterr().err
    assert message.startswith("train: error: ")
    assert message.count("\n") == 1
    assert checkpoints_of(stopped) == before
    assert_goes_on_to_the_same_end(stopped, undisturbed)


@pytest.mark.parametrize("missing", [["summary.json"], FILES])
def test_run_that_died_before_its_summary_is_finished(
    missing, tmp_path, undisturbed, capsys
):
    out = tmp_path / "finished"
    shutil.copytree(undisturbed, out)
    kept = {METRICS, BEST_WEIGHTS, CONFIG}
    for name in {*missing} - kept:
        (out / name).unlink(missing_ok=True)
    assert_goes_on_to_the_same_end(out, undisturbed)
    assert (out / "report.html").exists()
