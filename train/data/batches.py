"""The batches of a run: which images a step sees, and how they come to the devices."""

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from multiprocessing import parent_process, resource_tracker
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding

from train.data.dataset import Dataset, Source
from train.data.pictures import put_up_with
from train.errors import TrainError, TrainingFailed
from train.flags.config import Config
from train.flags.data import OnBadImage
from train.flags.recipe import steps_per_epoch

# What ends a run from outside.
STOPPING = signal.SIGINT, signal.SIGTERM
# Batches that lie ready, on the host: enough to bridge a hiccup, few enough for memory.
READY = 4


class Batch(NamedTuple):
    """Images (b, H, W, C) uint8, labels (b,) int32, and their numbers (b,) int32."""

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


def check_batch_size(config: Config, dataset: Dataset, device_count: int) -> None:
    """Raises a TrainError unless batches can be drawn and split over the devices."""
    size, available = config.batch_size, len(dataset.train)
    if size > available:
        raise TrainError(
            f"--batch-size (={size}) must be at most {available}, the number of "
            f"training images of --preset {config.preset}"
        )
    parts = device_count * config.accumulate
    if size % parts:
        nearest = size - size % parts or parts
        shared = f"the {device_count} devices that share a batch"
        if config.accumulate > 1:
            shared = f"{device_count} devices x --accumulate (={config.accumulate})"
        raise TrainError(
            f"--batch-size (={size}) must be divisible by {shared}; {nearest} would be"
        )


def batch_indices(num_images: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Returns the numbers of the images of a step, whichever came before it.

    Each epoch has a permutation of its own, of which the rest that does not fill a
    batch is left out.

    Args:
        num_images: How many images there are.
        batch_size: The size of every batch, over all processes; at most `num_images`.
        seed: What the permutations follow from.
        step: The step, from 0.

    Returns:
        (batch_size,) int32.

    Example:
        >>> epoch = [batch_indices(6, 3, seed=0, step=step) for step in (0, 1)]
        >>> np.sort(np.concatenate(epoch)).tolist()
        [0, 1, 2, 3, 4, 5]
    """
    epoch, position = divmod(step, steps_per_epoch(num_images, batch_size))
    start = position * batch_size
    return _permutation(num_images, seed, epoch)[start : start + batch_size]


@functools.lru_cache(maxsize=2)  # A step ahead may be in the next epoch.
def _permutation(num_images: int, seed: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng((seed, epoch)).permutation(num_images)
    return order.astype(np.int32)


def training_batches(
    source: Source,
    batch_size: int,
    seed: int,
    *,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int | None = None,
    on_bad_image: OnBadImage = "stop",
) -> Generator[Batch]:
    """Yields the batches of the steps from `start` on, without end.

    They are read ahead, in a thread or in processes; close the generator to end these.
    The batch of a step depends on `seed` and the step alone.

    Args:
        source: The training images.
        batch_size: The size of a batch over all processes; at most `len(source)`.
        seed: What the orders of the epochs follow from.
        start: The first step, from 0; nothing of those before it is read.
        process_index: Which process this is.
        process_count: How many processes share each batch: its rows are cut into as
            many parts of one size.
        workers: How many processes read images; with 0 it is a thread of this one.
            Without it, 0 for images in memory, else the number of processors.
        on_bad_image: Whether an image that cannot be read stops the run or is replaced
            by the next one that can.

    Yields:
        The rows of this process.

    Raises:
        TrainingFailed: If an image cannot be read, and `on_bad_image` is "stop".
    """
    import grain

    if workers is None:
        workers = 0 if source.is_in_memory else os.cpu_count() or 1
    rows = _rows_of_process(batch_size, process_index, process_count)

    def read_step(step: int) -> tuple[Batch, tuple[str, ...]]:
        indices = batch_indices(len(source), batch_size, seed, step)[rows]
        return _read(source, indices, replace=on_bad_image == "skip")

    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=READY)
    batches = grain.MapDataset.range(start, sys.maxsize).map(read_step)
    batches = batches.to_iter_dataset(ahead)
    if workers:
        # Arrays come through a pipe. In shared memory they would outlive a process that
        # fails or is killed, and fill the 64 MB that a container has of it. Decoding 64
        # photographs takes 240 ms, and the pipe some 15 ms more than the memory.
        piped = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        batches = grain.experimental.WithOptionsIterDataset(batches, piped)
        _mark_flags_as_parsed()
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=1)
        batches = batches.mp_prefetch(options, _start_worker)
    seen: set[str] = set()
    with contextlib.closing(iter(batches)) as elements:
        # The first one starts the workers, where there are any.
        with _signals_blocked() if workers else contextlib.nullcontext():
            element = _next(elements)
        while True:
            batch, complaints = element
            _report(complaints, on_bad_image, seen)
            yield batch
            element = _next(elements)


def evaluation_batches(
    source: Source,
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    on_bad_image: OnBadImage = "stop",
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yields all images once, in order, in batches of one size.

    One size means one compilation; the last batch is filled up with blank images, whose
    number is -1.

    Args:
        source: The test images.
        batch_size: The size of a batch over all processes.
        process_index: Which process this is.
        process_count: How many processes share each batch.
        on_bad_image: Whether an image that cannot be read stops the run or is left
            blank, not to be counted.

    Yields:
        The rows of this process, and a float32 mask (b,) that is 1 for images that
        count and 0 for blank ones.

    Raises:
        TrainingFailed: If an image cannot be read, and `on_bad_image` is "stop".
    """
    import grain

    rows = _rows_of_process(batch_size, process_index, process_count)

    def read_batch(number: int) -> tuple[Batch, np.ndarray, tuple[str, ...]]:
        indices = np.arange(number * batch_size, (number + 1) * batch_size)[rows]
        real = indices[indices < len(source)].astype(np.int32)
        images, unreadable = source.gather(real)
        missing = len(indices) - len(real)
        mask = np.pad(np.ones(len(real), np.float32), (0, missing))
        mask[list(unreadable)] = 0
        batch = Batch(
            np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))),
            np.pad(source.labels[real], (0, missing)),
            np.pad(real, (0, missing), constant_values=-1),
        )
        return batch, mask, tuple(unreadable.values())

    threads = 1 if source.is_in_memory else os.cpu_count() or 1
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=READY)
    numbers = grain.MapDataset.range(-(-len(source) // batch_size))
    batches = numbers.map(read_batch).to_iter_dataset(ahead)
    with contextlib.closing(iter(batches)) as elements:
        for batch, mask, complaints in elements:
            _report(complaints, on_bad_image, set())
            yield batch, mask


def to_devices(arrays: Any, sharding: Sharding) -> Any:
    """Returns the rows that each process has as arrays over the devices of all.

    Args:
        arrays: A tree of NumPy arrays, each with the rows of this process, (b, ...).
        sharding: How the whole arrays lie on the devices.
    """
    place = functools.partial(jax.make_array_from_process_local_data, sharding)
    return jax.tree.map(place, arrays)


def _rows_of_process(batch_size: int, index: int, count: int) -> slice:
    share = batch_size // count
    return slice(index * share, (index + 1) * share)


def _read(
    source: Source, indices: np.ndarray, replace: bool
) -> tuple[Batch, tuple[str, ...]]:
    """Reads a batch, and says what could not be read.

    An image is replaced by the next one that can be read, wherever that is: what stands
    in for it depends on nothing but the images.
    """
    images, unreadable = source.gather(indices)
    if unreadable and replace:
        indices = indices.copy()
        for row in unreadable:
            indices[row], images[row] = _next_readable(source, indices[row])
    batch = Batch(images, source.labels[indices], indices)
    return batch, tuple(unreadable.values())


def _next_readable(source: Source, index: int) -> tuple[int, np.ndarray]:
    for distance in range(1, len(source)):
        candidate = np.array([(index + distance) % len(source)])
        images, unreadable = source.gather(candidate)
        if not unreadable:
            return candidate[0], images[0]
    raise TrainingFailed("none of the images can be read")


def _report(
    complaints: tuple[str, ...], on_bad_image: OnBadImage, seen: set[str]
) -> None:
    """Stops the run at what could not be read, or says it, once for each image."""
    for complaint in complaints:
        if complaint not in seen:
            seen.add(complaint)
            put_up_with(complaint, on_bad_image, TrainingFailed)


def _next(elements: Iterator[Any]) -> Any:
    """Returns the next element; a worker that was killed fails the run in one line."""
    try:
        return next(elements)
    except RuntimeError as error:
        if "worker" not in str(error).lower():
            raise
        raise TrainingFailed(
            f"a process that reads images has ended: {' '.join(str(error).split())}; "
            "give the same command again, perhaps with fewer --workers"
        ) from error


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Keeps from processes started in it what ends the run, until they ignore it.

    A scheduler signals all processes, and these take seconds to start.
    """
    resource_tracker.ensure_running()  # which, when it starts, unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _mark_flags_as_parsed() -> None:
    """Tells absl that its flags, which grain's processes read, have been seen to."""
    from absl import flags

    flags.FLAGS.mark_as_parsed()


def _start_worker(index: int, count: int) -> None:
    """Prepares a process that reads images: it ends when the run does, in silence."""
    for number in STOPPING:  # The run sees to them.
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    parent: Any = parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
