"""The batches of a run: in an order of its own, at any step, shared by processes."""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from parity_tests.tools.checkout import ROOT
from train.data import presets
from train.data.batches import (
    Batch,
    batch_indices,
    check_batch_size,
    evaluation_batches,
    to_devices,
    training_batches,
)
from train.data.dataset import ArraySource
from train.data.folder import FolderSource
from train.errors import TrainError, TrainingFailed
from train.flags.config import Config

DEFAULT_NUMERICS = True

BROKEN = 5  # the picture that cannot be read


@pytest.fixture(scope="module")
def source() -> ArraySource:
    """26 images, all different, of three classes."""
    images = np.arange(26 * 4, dtype=np.uint8).reshape(26, 2, 2, 1)
    return ArraySource(images, np.arange(26, dtype=np.int32) % 3)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> FolderSource:
    """Twelve pictures, each of one grey, one of which is cut."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = tuple(folder / f"{number:02}.png" for number in range(12))
    for number, path in enumerate(paths):
        Image.new("RGB", (4, 4), (number, number, number)).save(path)
    paths[BROKEN].write_bytes(paths[BROKEN].read_bytes()[:40])
    return FolderSource(paths, np.arange(12, dtype=np.int32), (4, 4, 3))


def take(count: int, source, batch_size: int, seed: int = 0, **options) -> list[Batch]:
    batches = training_batches(source, batch_size, seed, **options)
    with contextlib.closing(batches):
        return [*itertools.islice(batches, count)]


def indices_of(batches: Iterator[Batch] | list[Batch]) -> np.ndarray:
    return np.concatenate([batch.indices for batch in batches])


# The order


def test_epoch_sees_each_image_at_most_once_and_drops_the_incomplete_rest(source):
    epoch = indices_of(take(2, source, 10))
    assert len(epoch) == len({*epoch}) == 20


def test_epochs_have_orders_of_their_own(source):
    first, second = (indices_of(take(2, source, 13, start=start)) for start in (0, 2))
    assert sorted(first) == sorted(second) == list(range(26))
    assert not np.array_equal(first, second)


def test_order_follows_from_the_seed(source):
    one, same, other = (indices_of(take(2, source, 13, seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_no_epoch_of_a_seed_is_one_of_the_next_seed():
    epochs = {
        batch_indices(26, 26, seed, epoch).tobytes()
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(epochs) == 16


def test_batch_is_what_its_indices_say(source):
    for batch in take(3, source, 10):
        np.testing.assert_array_equal(batch.images, source.images[batch.indices])
        np.testing.assert_array_equal(batch.labels, source.labels[batch.indices])


def test_images_stay_bytes(source):
    (batch,) = take(1, source, 10)
    assert [each.dtype for each in batch] == [np.uint8, np.int32, np.int32]


def test_start_gives_the_batch_of_its_step_first(source):
    whole = take(7, source, 10)
    for start in (1, 2, 5):
        resumed = take(2, source, 10, start=start)
        for batch, expected in zip(resumed, whole[start:], strict=False):
            np.testing.assert_array_equal(batch.indices, expected.indices)


def test_start_reads_nothing_of_earlier_steps(source):
    read: list[np.ndarray] = []

    @dataclasses.dataclass(frozen=True)
    class Recording(ArraySource):
        def gather(self, indices):
            read.append(indices)
            return super().gather(indices)

    take(1, Recording(source.images, source.labels), 10, start=9)
    np.testing.assert_array_equal(read[0], batch_indices(26, 10, 0, 9))


def test_indices_of_a_step_are_those_of_its_batch(source):
    for step, batch in enumerate(take(5, source, 10, seed=7)):
        expected = batch_indices(len(source), 10, 7, step)
        np.testing.assert_array_equal(batch.indices, expected)


# Several processes, and several readers


@pytest.mark.parametrize("count", [2, 5])
def test_processes_share_the_rows_of_a_batch(source, count):
    shares = [
        take(3, source, 10, process_index=index, process_count=count)
        for index in range(count)
    ]
    for step, batch in enumerate(take(3, source, 10)):
        together = indices_of([share[step] for share in shares])
        np.testing.assert_array_equal(together, batch.indices)


def test_workers_read_what_a_thread_reads(pictures):
    options = {"start": 1, "on_bad_image": "skip"}
    read = take(4, pictures, 4, workers=2, **options)
    for batch, expected in zip(
        read, take(4, pictures, 4, workers=0, **options), strict=True
    ):
        jax.tree.map(np.testing.assert_array_equal, batch, expected)
        # None is shared memory, which would outlive processes.
        assert [type(each) for each in batch] == [np.ndarray] * 3


def test_closing_ends_the_thread_that_reads_ahead(source):
    before = {*threading.enumerate()}
    take(1, source, 10)
    for thread in {*threading.enumerate()} - before:
        thread.join(timeout=60)
        assert not thread.is_alive()


def program(folder: Path, text: str, *arguments: str) -> dict[str, Any]:
    """How a program is started that uses this package, and starts itself anew."""
    path = folder / "program.py"
    path.write_text(text)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return dict(args=[sys.executable, str(path), *arguments], env=environment)


FAILING = """
import multiprocessing, os, signal, sys
from pathlib import Path
import numpy as np
from train.data.batches import training_batches
from train.data.folder import FolderSource
from train.errors import TrainingFailed
if __name__ == "__main__":
    paths = tuple(sorted(Path(sys.argv[1]).glob("*.png")))
    labels = np.zeros(len(paths), np.int32)
    source = FolderSource(paths, labels, (32, 48, 3), int(sys.argv[3]))
    is_killed = sys.argv[2] == "killed"
    skipped = "skip" if is_killed else "stop"
    batches = training_batches(source, 2, 0, workers=2, on_bad_image=skipped)
    kept = []
    try:
        for batch in batches:
            kept = kept[-3:] + [batch]
            if is_killed and len(kept) == 2:
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    except TrainingFailed as error:
        print("train: error:", error, file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "max_pixels", "words"),
    [
        ("bad", "15", "it has 16 pixels, more than --max-image-pixels (=15)"),
        ("killed", "16", "a process that reads images has ended"),
    ],
)
def test_run_that_workers_fail_says_so_and_nothing_else(
    how, max_pixels, words, pictures, tmp_path
):
    folder = str(pictures.paths[0].parent)
    run = subprocess.run(
        **program(tmp_path, FAILING, folder, how, max_pixels),
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = [line for line in run.stderr.splitlines() if "it is skipped" not in line]
    assert [words in line for line in said] == [True], run.stderr
    assert run.returncode == 0


def test_worker_that_is_killed_fails_the_run_in_one_line(source):
    with contextlib.closing(training_batches(source, 2, 0, workers=1)) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(TrainingFailed, match="a process that reads images has"):
            for _ in range(1000):
                next(batches)


STOPPED_WHILE_WORKERS_START = """
import os, signal, threading
import numpy as np
from train.data.batches import training_batches
from train.data.dataset import ArraySource
from train.machines.signals import StopSignals
if __name__ == "__main__":
    source = ArraySource(np.zeros((26, 2, 2, 1), np.uint8), np.zeros(26, np.int32))
    with StopSignals() as stop_signals:
        batches = training_batches(source, 8, seed=0, workers=2)
        # As a scheduler does, to all processes of the group, while they start.
        threading.Timer(0.3, os.killpg, [os.getpgrp(), signal.SIGTERM]).start()
        for _ in range(3):
            next(batches)
        batches.close()
"""


@pytest.mark.slow
def test_workers_survive_a_signal_to_all_while_they_start(tmp_path):
    run = subprocess.run(
        **program(tmp_path, STOPPED_WHILE_WORKERS_START),
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr


READ_AND_WAIT = """
import multiprocessing, time
import numpy as np
from train.data.batches import training_batches
from train.data.dataset import ArraySource
if __name__ == "__main__":
    source = ArraySource(np.zeros((26, 2, 2, 1), np.uint8), np.zeros(26, np.int32))
    batches = training_batches(source, 8, seed=0, workers=1)
    next(batches)
    print(*(each.pid for each in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_workers_do_not_outlive_a_run_that_is_killed(tmp_path):
    run = subprocess.Popen(**program(tmp_path, READ_AND_WAIT), stdout=subprocess.PIPE)
    with run:
        assert run.stdout is not None
        worker = int(run.stdout.readline())
        run.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while is_running(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Tells whether a process is there, and more than an entry that nobody reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# Evaluation


def test_evaluation_sees_each_image_once_in_order_in_batches_of_one_size(source):
    batches = [*evaluation_batches(source, 8)]
    assert {batch.images.shape for batch, _ in batches} == {(8, 2, 2, 1)}
    seen = [index for batch, mask in batches for index in batch.indices[mask == 1]]
    assert seen == list(range(26))


def test_filling_of_the_last_evaluation_batch_is_blank(source):
    *_, (batch, mask) = evaluation_batches(source, 8)
    assert mask.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert not batch.images[2:].any()
    assert batch.indices.tolist() == [24, 25, -1, -1, -1, -1, -1, -1]


def test_processes_share_the_rows_of_an_evaluation_batch(source):
    halves = [
        [*evaluation_batches(source, 8, process_index=index, process_count=2)]
        for index in range(2)
    ]
    whole = [*evaluation_batches(source, 8)]
    for one, other, expected in zip(*halves, whole, strict=True):
        together = jax.tree.map(lambda *parts: np.concatenate(parts), one, other)
        jax.tree.map(np.testing.assert_array_equal, together, expected)


# Images that cannot be read


def test_bad_image_stops_the_run_and_is_named(pictures):
    with pytest.raises(TrainingFailed, match=rf"{BROKEN:02}\.png.*--on-bad-image skip"):
        take(3, pictures, 4, workers=0)


def test_bad_image_that_is_skipped_is_replaced_by_the_next(pictures, capsys):
    indices = indices_of(take(3, pictures, 4, workers=0, on_bad_image="skip"))
    planned = np.concatenate([batch_indices(12, 4, 0, step) for step in range(3)])
    expected = np.where(planned == BROKEN, BROKEN + 1, planned)
    np.testing.assert_array_equal(indices, expected)


def test_replacement_brings_its_image_and_label(pictures):
    for batch in take(3, pictures, 4, workers=0, on_bad_image="skip"):
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.indices)
        np.testing.assert_array_equal(batch.labels, batch.indices)


def test_skipped_image_is_named_once(pictures, capsys):
    take(9, pictures, 4, workers=0, on_bad_image="skip")  # three epochs
    message = capsys.readouterr().err
    assert message.startswith(f"train: warning: {pictures.paths[BROKEN]} cannot be")
    assert message.count("\n") == 1


def test_images_none_of_which_can_be_read_stop_the_run(tmp_path):
    paths = tuple(tmp_path / f"{number}.png" for number in range(2))
    source = FolderSource(paths, np.zeros(2, np.int32), (4, 4, 3))
    with pytest.raises(TrainingFailed, match="none of the images can be read"):
        take(1, source, 2, workers=0, on_bad_image="skip")


def test_bad_image_stops_an_evaluation(pictures):
    with pytest.raises(TrainingFailed, match=rf"{BROKEN:02}\.png"):
        list(evaluation_batches(pictures, 4))


def test_bad_image_that_is_skipped_does_not_count_in_an_evaluation(pictures, capsys):
    batches = [*evaluation_batches(pictures, 5, on_bad_image="skip")]
    mask = np.concatenate([mask for _, mask in batches])
    assert [*np.flatnonzero(mask == 0)] == [BROKEN, 12, 13, 14]
    assert f"{BROKEN:02}.png" in capsys.readouterr().err


# On the way to the devices


def test_arrays_come_to_the_devices_as_they_are(source):
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",))
    by_image = NamedSharding(mesh, PartitionSpec("data"))
    (batch,) = take(1, source, 10)
    placed = to_devices(batch, by_image)
    assert {each.sharding for each in placed} == {by_image}
    jax.tree.map(np.testing.assert_array_equal, placed, batch)


@pytest.mark.parametrize(
    ("flags", "devices", "words"),
    [
        ({"batch_size": 1438}, 1, r"--batch-size \(=1438\) must be at most 1437"),
        ({"batch_size": 20}, 8, r"--batch-size \(=20\).* the 8 devices .*; 16 would"),
        ({"batch_size": 4}, 8, r"--batch-size \(=4\).*; 8 would be"),
        (
            {"batch_size": 24, "accumulate": 2},
            8,
            r"--batch-size \(=24\).*8 devices x --accumulate \(=2\); 16 would be",
        ),
    ],
)
def test_batch_that_cannot_be_drawn_or_shared_is_refused(flags, devices, words):
    with pytest.raises(TrainError, match=words):
        check_batch_size(Config(**flags), presets.load(Config()), devices)
