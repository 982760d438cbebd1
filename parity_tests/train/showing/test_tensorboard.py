"""TensorBoard's files: what is logged is in them, and what is written again is not."""

import struct
import subprocess
import sys
from typing import Any

from tensorboardX.proto import event_pb2

from parity_tests.tools.checkout import ROOT
from train.flags.config import Config
from train.showing.tensorboard import TensorBoard, scalars_of, without
from train.storage.run_directory import RunDirectory

# Its classes are made when it is imported, where a type checker does not see them.
messages: Any = event_pb2


def read_events(folder) -> list:
    """Returns the events of all files of a folder, by their format: TFRecord."""
    events = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            events.append(messages.Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    return events


def write(out, rows, *, step: int = 0, is_writer: bool = True) -> None:
    config = Config(out=out)
    with RunDirectory(config, is_writer) as run, TensorBoard(run, step) as board:
        for row in rows:
            board.log(row)


def test_numbers_of_a_row_are_scalars_of_its_step(tmp_path):
    row = {"step": 7, "test_loss": 0.5, "entropy": {"s1": 0.25}, "usage": {"s1": [1.0]}}
    write(tmp_path / "run", [row])
    _, event = read_events(tmp_path / "run" / "tensorboard")
    assert event.step == 7
    assert {value.tag: value.simple_value for value in event.summary.value} == {
        "test/test_loss": 0.5,
        "entropy/s1": 0.25,
        "usage/s1/0": 1.0,
    }


def test_numbers_of_validation_have_a_section_of_their_own():
    row = {"step": 7, "val_loss": 0.5, "ema_val_loss": 0.25, "valve": 1.0}
    assert dict(scalars_of(row)) == {
        "val/val_loss": 0.5,
        "val/ema_val_loss": 0.25,
        "train/valve": 1.0,
    }


def test_rows_are_in_the_file_at_once(tmp_path):
    with RunDirectory(Config(out=tmp_path)) as run, TensorBoard(run) as board:
        board.log({"step": 1, "loss": 2.0})
        assert [each.step for each in read_events(tmp_path / "tensorboard")] == [0, 1]


def test_run_that_goes_on_has_later_steps_left_out(tmp_path):
    write(tmp_path, [{"step": 5, "loss": 1.0}], step=4)
    _, start, row = read_events(tmp_path / "tensorboard")
    assert start.step == 5
    assert start.session_log.status == messages.SessionLog.START
    assert row.step == 5


def test_run_that_died_before_its_first_checkpoint_has_all_left_out(tmp_path):
    with RunDirectory(Config(out=tmp_path)):
        (tmp_path / "tensorboard").mkdir()
        (tmp_path / "tensorboard" / "events.before").touch()
    write(tmp_path, [{"step": 1, "loss": 1.0}])
    _, start, row = read_events(tmp_path / "tensorboard")
    assert start.step == row.step == 1
    assert start.session_log.status == messages.SessionLog.START


def test_other_processes_write_nothing(tmp_path):
    write(tmp_path, [{"step": 1, "loss": 1.0}], step=3, is_writer=False)
    assert list(tmp_path.iterdir()) == []


PROGRAM = """
import sys
from pathlib import Path
from train.flags.config import Config
from train.showing.tensorboard import TensorBoard
from train.storage.run_directory import RunDirectory

with RunDirectory(Config(out=Path(sys.argv[1]))) as run, TensorBoard(run) as board:
    board.log({"step": 1, "loss": 2.0})
assert "torch" not in sys.modules  # nor what has its import fail
"""


def test_events_are_written_without_an_import_of_pytorch(tmp_path):
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (file,) = (out / "tensorboard").iterdir()
    assert file.stat().st_size > 0


def test_a_package_that_has_been_imported_stays():
    with without("struct"):
        import struct as again
    assert again is struct
