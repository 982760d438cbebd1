"""The directory of a run: locked, of one run only, and whole whatever happens."""

import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from dynconv_jax.weights import load_weights
from parity_tests.tools.checkout import ROOT
from parity_tests.tools.runs import make_dataset
from parity_tests.tools.small_runs import contents, files_of_at_most
from train.data.dataset import Domain
from train.errors import TrainError, TrainingFailed
from train.flags.config import Config
from train.storage.run_directory import RunDirectory, find_finished
from train.storage.run_files import (
    BEST_WEIGHTS,
    CHECKPOINTS,
    CONFIG,
    DOMAIN,
    LOCK,
    METRICS,
    SUMMARY,
    TENSORBOARD,
    read_config,
    read_domain,
)

DEFAULT_NUMERICS = True  # of a run


def start(out: Path, **flags) -> None:
    """Starts a run, and stops it."""
    with RunDirectory(Config(out=out, **flags)):
        pass


# Whose it is


HOLDS_THE_LOCK = """
import sys, pathlib
from train.storage.lock import Lock
lock = Lock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another_process_holding(lock: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS_THE_LOCK, lock],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def test_directory_in_use_is_refused_and_its_holder_named(tmp_path):
    start(tmp_path)
    before = contents(tmp_path)
    with another_process_holding(tmp_path / LOCK) as holder:
        with pytest.raises(TrainError, match=rf"in use.* process {holder.pid};"):
            start(tmp_path, overwrite=True)
    (tmp_path / LOCK).unlink()
    assert contents(tmp_path) == before


def test_lock_of_a_killed_process_does_not_hold(tmp_path):
    with another_process_holding(tmp_path / LOCK) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert (tmp_path / LOCK).exists()
        start(tmp_path)


def test_lock_is_given_back_at_the_end(tmp_path):
    with RunDirectory(Config(out=tmp_path)):
        with pytest.raises(TrainError, match="in use"):
            start(tmp_path)
    start(tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_lock_that_another_process_took_meanwhile_is_left_to_it(tmp_path):
    out = tmp_path / "out"
    with RunDirectory(Config(out=out)):
        shutil.rmtree(out)
        out.mkdir()
        holder = contextlib.ExitStack()
        holder.enter_context(another_process_holding(out / LOCK))
    with holder:
        assert (out / LOCK).exists()
        with pytest.raises(TrainError, match="in use"):
            start(out)


def remove(out: Path) -> None:
    shutil.rmtree(out)


def move(out: Path) -> None:
    out.rename(out.with_name("elsewhere"))


def empty(out: Path) -> None:
    for path in out.glob("*"):  # as a shell has it, without hidden files
        path.unlink()


def replace_by_a_run(out: Path) -> None:
    shutil.rmtree(out)
    start(out, seed=1)


def replace_by_a_file(out: Path) -> None:
    shutil.rmtree(out)
    out.write_text("mine")


def unlock(out: Path) -> None:
    (out / LOCK).unlink()


@pytest.mark.parametrize(
    "take", [remove, move, empty, replace_by_a_run, replace_by_a_file, unlock]
)
@pytest.mark.parametrize(
    "write",
    [
        lambda run: run.log({"step": 2}),
        lambda run: run.write("file", b""),
        lambda run: run.finish({}),
        lambda run: run.rewind(0),
        lambda run: run.check_is_there(),
    ],
)
def test_directory_that_is_gone_stops_the_run_and_stays_gone(take, write, tmp_path):
    out = tmp_path / "out"
    with RunDirectory(Config(out=out)) as run:
        run.log({"step": 1})
        take(out)
        before = contents(tmp_path)
        words = f"--out .*{out}.* was removed or replaced while the run was going on"
        with pytest.raises(TrainingFailed, match=words):
            write(run)
        assert contents(tmp_path) == before
        assert out.exists() == (take not in (remove, move))


def test_refused_directory_is_not_left_locked(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):
        with pytest.raises(TrainError, match="not empty"):
            start(tmp_path)
    assert set(contents(tmp_path)) == {"notes.txt"}


def test_without_out_each_run_has_a_fresh_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunDirectory(Config()) as one, RunDirectory(Config()) as other:
        assert one.path != other.path
    assert len(list((tmp_path / "runs").glob("digits-*"))) == 2


def test_directory_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match="not a directory that can be written"):
        start(tmp_path / "file" / "out")


# Going on


def test_same_flags_go_on(tmp_path):
    start(tmp_path)
    (tmp_path / METRICS).write_text('{"step": 1}\n')
    start(tmp_path)
    assert (tmp_path / METRICS).read_text() == '{"step": 1}\n'


def test_other_flags_are_refused_with_the_difference(tmp_path):
    start(tmp_path, steps=120, conv_options=("bias=True",))
    before = contents(tmp_path)
    with pytest.raises(TrainError) as refusal:
        start(tmp_path, steps=200, seed=1, conv_options=("bias=True",))
    message = str(refusal.value)
    for words in ("--steps 120 -> 200", "--seed 0 -> 1", "--overwrite", str(tmp_path)):
        assert words in message
    assert "--conv-options" not in message
    assert "\n" not in message
    assert contents(tmp_path) == before


def test_flags_that_do_not_change_the_result_may_differ(tmp_path):
    start(tmp_path)
    start(tmp_path, workers=2, checkpoint_every=7, keep_checkpoints=1, fsdp=True)
    start(tmp_path, max_image_pixels=7, checkpoint_every=7)
    assert read_config(tmp_path)["checkpoint_every"] == 7


def test_files_of_the_images_may_lie_elsewhere(tmp_path):
    for name in ("old", "new"):
        files = {"data": Path(name), "class_map": Path(name, "classes.txt")}
        start(tmp_path, preset="folder", **files)
    assert read_config(tmp_path)["class_map"] == "new/classes.txt"


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("mean", (0.5,)),
        ("std", (0.5,)),
        ("image_size", (8, 6)),
        ("crop_pct", 0.9),
        ("interpolation", "nearest"),
    ],
)
def test_what_the_network_is_shown_may_not_change(flag, value, tmp_path):
    folder = {"preset": "folder", "data": Path("photos")}
    start(tmp_path, **folder)
    with pytest.raises(TrainError, match=f"--{flag.replace('_', '-')} .* -> "):
        start(tmp_path, **folder, **{flag: value})


def test_fingerprint_is_that_of_the_flags_that_matter(tmp_path):
    def fingerprint(name: str, **flags) -> str:
        with RunDirectory(Config(out=tmp_path / name, **flags)) as run:
            return run.fingerprint

    one = fingerprint("one")
    assert fingerprint("same", workers=2, keep_checkpoints=9) == one
    assert fingerprint("other", learning_rate=0.1) != one


def test_run_keeps_its_name_and_no_other_has_it(tmp_path):
    names = []
    for out, overwrite in (("a", False), ("b", False), ("a", False), ("a", True)):
        with RunDirectory(Config(out=tmp_path / out, overwrite=overwrite)) as run:
            names.append(run.run_id)
    assert names[2] == names[0]
    assert None not in names
    assert len({names[0], names[1], names[3]}) == 3


def test_run_of_an_earlier_version_stays_without_a_name(tmp_path):
    start(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(read_config(tmp_path)))
    for _ in range(2):
        with RunDirectory(Config(out=tmp_path, workers=3)) as run:
            assert run.run_id is None


@pytest.mark.parametrize("name", [3, [], {"a": 1}])
def test_name_of_a_run_that_cannot_be_read_is_refused(name, tmp_path):
    start(tmp_path)
    flags = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(flags | {"run_id": name}))
    with pytest.raises(TrainError, match=r"config\.json cannot be read \(run_id"):
        start(tmp_path)


def test_run_of_another_version_is_refused(tmp_path):
    start(tmp_path)
    flags = read_config(tmp_path)
    del flags["momentum"]
    (tmp_path / CONFIG).write_text(json.dumps(flags | {"dampening": 0.5}))
    with pytest.raises(TrainError, match=r"--momentum \? -> 0.9; --dampening 0.5 -> ?"):
        start(tmp_path)


def test_config_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / CONFIG).write_text('{"steps": 4')
    with pytest.raises(TrainError, match="config.json cannot be read"):
        start(tmp_path)


def test_run_goes_on_with_the_same_images_only(tmp_path):
    dataset = make_dataset()
    for _ in range(2):
        with RunDirectory(Config(out=tmp_path), dataset=dataset):
            pass
    before = contents(tmp_path)
    assert read_domain(tmp_path) == Domain.of(dataset.identity())
    fewer = dataclasses.replace(dataset, train=make_dataset(images=8).train)
    renamed = dataclasses.replace(dataset, class_names=("a", "b", "c", "d"))
    for other, words in (
        (fewer, f"train_images 8, and those that the run in {tmp_path} began with 12"),
        (renamed, "the images have class_names .'a'"),
    ):
        with pytest.raises(TrainError, match=words):
            RunDirectory(Config(out=tmp_path, workers=3), dataset=other)
        assert contents(tmp_path) == before


def test_domain_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / DOMAIN).write_text('{"classes": 3}')
    with pytest.raises(TrainError, match=r"domain\.json cannot be read"):
        read_domain(tmp_path)


def test_unfinished_run_has_no_summary(tmp_path):
    start(tmp_path)
    assert find_finished(Config(out=tmp_path)) is None


def test_finished_run_is_known_and_left_alone(tmp_path):
    with RunDirectory(Config(out=tmp_path), dataset=make_dataset()) as run:
        run.finish({"test_accuracy": 0.5})
    before = contents(tmp_path)
    flags = Config(out=tmp_path, workers=3)
    assert find_finished(flags) == {"test_accuracy": 0.5}
    start(tmp_path, workers=3)
    assert contents(tmp_path) == before


def test_run_without_its_twin_is_not_finished_where_one_is_asked_for(tmp_path):
    flags = Config(out=tmp_path, twin=True)
    start(tmp_path)
    (tmp_path / DOMAIN).write_text("{}")
    for summary, is_finished in (
        ({"test_accuracy": 0.5}, False),
        ({"test_accuracy": 0.5, "twin_test_accuracy": 0.25}, True),
    ):
        (tmp_path / SUMMARY).write_text(json.dumps(summary))
        assert find_finished(flags) == (summary if is_finished else None)
    assert find_finished(dataclasses.replace(flags, twin=False)) == summary


def test_overwrite_starts_anew_and_leaves_other_files(tmp_path):
    start(tmp_path)
    for name in (METRICS, SUMMARY, "notes.txt"):
        (tmp_path / name).write_text("{}")
    for folder in (CHECKPOINTS, TENSORBOARD, "mine"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("")
    start(tmp_path, seed=1, overwrite=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {CONFIG, "notes.txt", "mine"}
    assert read_config(tmp_path)["seed"] == 1


def test_halves_that_a_killed_process_left_are_removed(tmp_path):
    (tmp_path / f".{CONFIG}.a1b2c3d4").write_text("{")
    (tmp_path / f".{SUMMARY}.x_0y1z2w").write_text("{")
    start(tmp_path)
    assert set(contents(tmp_path)) == {CONFIG}


# What is written


def test_rewinding_drops_later_steps_and_half_a_line(tmp_path):
    with RunDirectory(Config(out=tmp_path)) as run:
        for step in (20, 40, 60):
            run.log({"step": step, "loss": 1 / step})
            run.log({"step": step, "test_loss": 1.0})
        whole = (tmp_path / METRICS).read_bytes()
        with open(tmp_path / METRICS, "ab") as file:
            file.write(b'{"step": 20, "lo')
        run.rewind(60)
        assert (tmp_path / METRICS).read_bytes() == whole
        run.rewind(40)
        assert (tmp_path / METRICS).read_bytes() == b"".join(whole.splitlines(True)[:4])
        run.rewind(0)
        assert (tmp_path / METRICS).read_bytes() == b""


def test_rewinding_a_run_without_metrics_does_nothing(tmp_path):
    with RunDirectory(Config(out=tmp_path)) as run:
        run.rewind(0)
    assert not (tmp_path / METRICS).exists()


def test_weights_load_back(tmp_path):
    one, other = (nnx.Linear(2, 3, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    with RunDirectory(Config(out=tmp_path)) as run:
        run.write_weights(BEST_WEIGHTS, one)
    load_weights(other, tmp_path / BEST_WEIGHTS)
    np.testing.assert_array_equal(other.kernel[...], one.kernel[...])


def test_only_the_writer_writes(tmp_path):
    with (
        RunDirectory(Config(out=tmp_path)),
        RunDirectory(Config(out=tmp_path), False) as run,
    ):
        before = contents(tmp_path)
        run.log({"step": 1})
        run.rewind(0)
        run.write("file", b"")
        run.finish({})
        assert contents(tmp_path) == before


def test_processes_without_a_common_directory_are_refused():
    with pytest.raises(TrainError, match="--out .* must be given to all processes"):
        RunDirectory(Config(), is_writer=False)


def test_full_disk_is_one_line_and_the_files_stay(tmp_path):
    with RunDirectory(Config(out=tmp_path)) as run:
        run.log({"step": 1})
        run.write_json("file.json", {})
        before = contents(tmp_path)
        with files_of_at_most(20):
            with pytest.raises(TrainingFailed, match="File too large") as failure:
                run.write("file.json", bytes(100))
            with pytest.raises(TrainingFailed, match="File too large"):
                run.log({"step": 2, "loss": 1.0})
        assert "\n" not in str(failure.value)
        run.rewind(1)
        assert contents(tmp_path) == before


def test_full_disk_names_the_last_checkpoint_that_is_there(tmp_path):
    with RunDirectory(Config(out=tmp_path)) as run:
        for saved in ("9", "40", "00000080", "60.orbax-checkpoint-tmp"):
            (tmp_path / CHECKPOINTS / saved).mkdir(parents=True)
        with files_of_at_most(20), pytest.raises(TrainingFailed) as failure:
            run.write("file.json", bytes(100))
    named = f"the last good checkpoint: {tmp_path / CHECKPOINTS / '40'})"
    assert str(failure.value).endswith(named)
