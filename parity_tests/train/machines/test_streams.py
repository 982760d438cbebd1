"""Standard output that is closed, full or of another alphabet."""

import os
import subprocess
import sys

import pytest

from parity_tests.tools.checkout import ROOT

# A command that says something, does its work, and ends with a status.
PROGRAM = """
import pathlib, sys
from train.machines.streams import Streams
is_run, status, done = sys.argv[1:]
streams = Streams(goes_on=bool(int(is_run)))
for _ in range(3):
    print("said", "x" * 70_000, flush=True)
print("left in the buffer")
pathlib.Path(done).write_text("all of it")
sys.exit(streams.close(int(status)))
"""


def closed_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def run(argv: list[str], output: int, **options) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(
            [sys.executable, *argv],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
    finally:
        os.close(output)


@pytest.mark.parametrize(
    ("output", "is_run", "status", "ends_with", "words"),
    [
        (closed_pipe, 1, 0, 0, "warning: nobody reads"),
        (closed_pipe, 1, 75, 75, "warning: nobody reads"),
        (closed_pipe, 0, 0, 141, ""),
        (closed_pipe, 0, 2, 2, ""),
        (full_disk, 1, 0, 1, "No space left on device"),
        (full_disk, 1, 75, 75, "No space left on device"),
        (full_disk, 0, 0, 1, "No space left on device"),
    ],
)
def test_work_is_done_whoever_reads(output, is_run, status, ends_with, words, tmp_path):
    argv = ["-c", PROGRAM, str(is_run), str(status), str(tmp_path / "done")]
    done = run(argv, output())
    assert (tmp_path / "done").read_text() == "all of it"
    assert done.returncode == ends_with
    assert words in done.stderr
    assert done.stderr.count("\n") == bool(words)


@pytest.mark.parametrize("closed", ["1>&-", "1>&- 2>&-", "0<&- 1>&-", "2>&-"])
def test_closed_streams_lend_their_numbers_to_no_file(closed, tmp_path):
    command = f'"$0" "$@" {closed}'
    argv = [sys.executable, "-c", PROGRAM, "0", "0", str(tmp_path / "done")]
    done = subprocess.run(["sh", "-c", command, *argv], cwd=ROOT, capture_output=True)
    assert done.returncode == 0
    assert (tmp_path / "done").read_text() == "all of it"


def test_standard_error_that_is_full_changes_nothing(tmp_path):
    argv = ["-c", PROGRAM, "1", "0", str(tmp_path / "done")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, *argv], cwd=ROOT, stdout=full, stderr=full
        )
    assert done.returncode == 1
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", r"none -, \u732b \xfc, 3x2"),
        ("latin-1", r"none -, \u732b ü, 3×2"),
        ("utf-8", "none –, 猫 ü, 3×2"),
    ],
)
def test_what_an_encoding_has_not_is_written_plainly(encoding, expected):
    program = (
        "from train.machines.streams import Streams; streams = Streams(False); "
        r"print('none \u2013, \u732b \xfc, 3\xd72'); streams.close(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.stderr == b""
    assert done.stdout.decode(encoding) == f"{expected}\n"


# The program itself


@pytest.mark.parametrize(("output", "status"), [(closed_pipe, 141), (full_disk, 1)])
def test_help_that_nobody_reads_is_no_traceback(output, status):
    done = run(["-m", "train", "--help"], output())
    assert done.returncode == status
    assert done.stderr.count("\n") == (status == 1)


# The commands are stood in for: they say something, and do their work.
STOOD_IN_FOR = """
import pathlib, sys, types
from train.__main__ import run
done, *argv = sys.argv[1:]

def work(*_):
    print("said", flush=True)
    pathlib.Path(done).write_text("all of it")

sys.modules["train.loop"] = types.SimpleNamespace(train=work)
for name in ("compare", "evaluate", "predict", "study"):
    sys.modules[f"train.commands.{name}"] = types.SimpleNamespace(main=work)
sys.exit(run(argv))
"""


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["--steps=3"], 0),
        (["study"], 0),
        (["compare", "run"], 141),
        (["evaluate", "run"], 141),
        (["predict", "run", "image"], 141),
    ],
)
def test_only_runs_outlive_their_reader(argv, status, tmp_path):
    done = run(["-c", STOOD_IN_FOR, str(tmp_path / "done"), *argv], closed_pipe())
    assert (tmp_path / "done").exists()
    assert done.returncode == status
    assert done.stderr.count("\n") == (status == 0)
