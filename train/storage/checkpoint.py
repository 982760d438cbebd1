"""Checkpoints: what a run goes on from after it was stopped, or died."""

import contextlib
import dataclasses
import errno
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from train.errors import TrainingFailed, warn
from train.machines.hush import hush_orbax
from train.storage.checkpoint_content import (
    ITEM,
    Restored,
    complete_steps,
    find_flaw,
    in_one_line,
    read,
    to_arrays,
)
from train.storage.seal import Sealed, seal

# What the system says of it; orbax raises it as an error of some other kind.
DISK_IS_FULL = tuple(
    os.strerror(number) for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
)
# A checkpoint that could not be used is kept, under a name that none has.
ASIDE = ".unusable"

# For how many seconds threads of orbax may still write after it has given a save up.
_LAST_WRITES = 2.0

# What the name of one ends in that is being written.
UNFINISHED = ".orbax-checkpoint-tmp"


class Checkpoints:
    """The checkpoints of a run; a context manager.

    They are saved by orbax: in the background, and each complete or absent, whenever
    the process dies. In a run of several processes, each makes the same calls.

    Example:
        >>> import tempfile
        >>> state = {"weights": jax.numpy.arange(3.0), "key": jax.random.key(0)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Checkpoints(Path(folder), keep=2, fingerprint="a run") as some:
        ...         some.save(20, state, {"best": 0.5})
        ...         some.wait()
        ...         restored = some.restore(state)
        >>> restored.step, restored.record, restored.state["weights"].tolist()
        (20, {'best': 0.5}, [0.0, 1.0, 2.0])
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        fingerprint: str,
        run: str | None = None,
        check: Callable[[], None] = lambda: None,
        earlier: Collection[str] = (),
    ):
        """Opens the folder; what a killed process left there unfinished is removed.

        Args:
            folder: Where the checkpoints are, a folder each; created if missing.
            keep: How many of the latest to keep, beside the best.
            fingerprint: Of the flags of the run; checkpoints of another are not used.
            run: The name of the run; checkpoints of another are not used either.
            check: Raises a `TrainingFailed` if nothing must be written any more, such
                as when the directory of the run is gone.
            earlier: The fingerprints that the run had when it was shorter; checkpoints
                with one of these are used too.
        """
        hush_orbax()
        self._folder = folder.absolute()
        self._fingerprint = fingerprint
        self._usable = {fingerprint, *earlier}
        self._run = run
        self._kept = _LatestAndBest(keep)
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        self._check = check
        self._handler = _SealingHandler(check)
        registry.add(ITEM, ocp.args.PyTreeSave, self._handler)
        registry.add(ITEM, ocp.args.PyTreeRestore, self._handler)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            cleanup_tmp_directories=True,
            lightweight_initialize=True,
            step_name_format=_StepNames(),
        )
        with self._saving():
            self._manager = ocp.CheckpointManager(
                self._folder, options=options, handler_registry=registry
            )

    def __enter__(self) -> Self:
        """Returns the checkpoints."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, reason: BaseException | None, *_
    ) -> None:
        """Waits for the save under way.

        Raises:
            TrainingFailed: If it failed, unless the run ends for another reason.
        """
        try:
            with self._saving():
                self._manager.close()
        except TrainingFailed as error:
            if kind is None:
                raise
            if str(error) != str(reason):
                warn(str(error))
        finally:
            self._remove_unwanted()

    @property
    def latest_step(self) -> int | None:
        """The step of the latest checkpoint that is complete, or None."""
        return max(complete_steps(self._folder), default=None)

    def save(
        self,
        step: int,
        state: Any,
        record: Mapping[str, Any],
        *,
        is_best: bool = False,
    ) -> None:
        """Copies the state, and saves it in the background.

        It waits for the save before, if that is still under way. The checkpoints that
        are no longer to be kept are removed after this one is complete.

        Args:
            step: The step that the state is after; one that is saved is not again.
            state: A tree of arrays, typed keys among them; it may be donated after.
            record: What to keep beside it, as JSON.
            is_best: Whether this is the best so far, to be kept until a better one.

        Raises:
            TrainingFailed: If this save or the one before failed, such as when the disk
                is full. The checkpoints before are untouched.
        """
        with self._saving():
            self._check()
            self._manager.wait_until_finished()
            if is_best:
                self._kept.best_step = step
            if step in self._manager.all_steps():
                return
            content = {
                "fingerprint": self._fingerprint,
                "best_step": self._kept.best_step,
                "record": dict(record),
            }
            arrays = ocp.args.PyTreeSave(to_arrays(state), custom_metadata=content)
            composite = ocp.args.Composite(**{ITEM: arrays})
            self._handler.content = Sealed(step, self._run)  # none is under way now
            self._manager.save(step, args=composite, force=True)

    def wait(self) -> None:
        """Waits until all is saved.

        Raises:
            TrainingFailed: If the save failed.
        """
        with self._saving():
            self._manager.wait_until_finished()

    def restore(self, like: Any) -> Restored | None:
        """Restores the latest checkpoint that can be used.

        Those that cannot, because they are damaged or of another run or model, are
        warned of, and renamed, so that their steps can be saved again.

        Args:
            like: A tree of arrays, or of `jax.ShapeDtypeStruct` with shardings.

        Returns:
            Its content, bit for bit as it was saved, or None if there is none.

        Raises:
            TrainingFailed: If one that looks whole cannot be read.
        """
        self.wait()
        step = None
        if jax.process_index() == 0:
            step = self._find_usable(like)
        if jax.process_count() > 1:
            sent = np.int64(-1 if step is None else step)
            received = int(multihost_utils.broadcast_one_to_all(sent))
            step = None if received < 0 else received
        try:
            self._manager.reload()  # some may have been renamed
        except Exception as error:  # of any kind, over files of earlier checkpoints
            raise TrainingFailed(
                f"the checkpoints in {self._folder} cannot be read: "
                f"{in_one_line(error)}; remove the damaged ones, and the latest stays"
            ) from error
        if step is None:
            return None
        restored = read(self._folder / str(step), like)
        self._kept.best_step = restored.best_step
        return restored

    def _find_usable(self, like: Any) -> int | None:
        """Returns the latest step that can be used; what is later is put aside."""
        steps = sorted(complete_steps(self._folder), reverse=True)
        for index, step in enumerate(steps):
            path = self._folder / str(step)
            flaw = find_flaw(path, like, self._usable, self._run)
            if flaw is None:
                return step
            earlier = steps[index + 1 :]
            instead = (
                f"trying that of step {earlier[0]}"
                if earlier
                else "none is left, so the run starts at step 0"
            )
            aside = path.with_name(path.name + ASIDE)
            warn(f"checkpoint {path} {flaw}; it is now {aside.name}, and {instead}")
            shutil.rmtree(aside, ignore_errors=True)
            with self._saving():
                path.rename(aside)
        return None

    def _remove_unwanted(self) -> None:
        """Removes what a save brought back of a directory that was removed under it.

        That is a checkpoint, finished or not, and the directories around it, unless
        there is anything else in them.
        """
        with contextlib.suppress(OSError):
            try:
                self._check()
            except TrainingFailed:
                step, out = self._handler.content.step, self._folder.parent
                deadline = time.monotonic() + _LAST_WRITES
                while out.exists() and time.monotonic() < deadline:
                    found = {each.name for each in self._folder.glob("*")}
                    beside = {*out.iterdir()} - {self._folder}
                    if beside or not found <= {f"{step}", f"{step}{UNFINISHED}"}:
                        return
                    shutil.rmtree(out, ignore_errors=True)
                    time.sleep(0.05)

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Turns what orbax raises, which is of any kind, into one line."""
        try:
            yield
        except Exception as error:
            with contextlib.suppress(OSError):
                self._check()
            latest = self.latest_step
            good = "there is none yet" if latest is None else self._folder / str(latest)
            reason = in_one_line(error)
            is_full = any(words in reason for words in DISK_IS_FULL)
            remedy = "make room for it" if is_full else "see to that"
            raise TrainingFailed(
                f"a checkpoint could not be saved in {self._folder}: {reason}; "
                f"{remedy} and give the same command again (the last good checkpoint: "
                f"{good})"
            ) from error


@dataclasses.dataclass
class _LatestAndBest:
    """Says which checkpoints to keep, in the form that orbax asks."""

    latest: int
    best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context) -> list[bool]:
        first = len(checkpoints) - self.latest
        return [
            index >= first or each.step == self.best_step
            for index, each in enumerate(checkpoints)
        ]


class _SealingHandler(ocp.PyTreeCheckpointHandler):
    """Seals a checkpoint as the last thing before orbax gives it its name."""

    content = Sealed(0)  # what is being saved

    def __init__(self, check: Callable[[], None]):
        super().__init__()
        self._check = check

    def finalize(self, directory) -> None:
        self._check()
        super().finalize(directory)
        seal(directory, self.content)


class _StepNames(ocp.path.step.NameFormat[ocp.path.step.Metadata]):
    """Tells orbax which folders are checkpoints: it would take 007 for 7."""

    def build_name(self, step: int) -> str:
        return str(step)

    def find_all(self, base_path) -> Iterator[ocp.path.step.Metadata]:
        for step in complete_steps(Path(base_path)):
            yield self.find_step(base_path, step)

    def find_step(self, base_path, step: int) -> ocp.path.step.Metadata:
        path = epath.Path(base_path) / self.build_name(step)
        if not path.exists():
            raise ValueError(f"there is no checkpoint {path}")
        return ocp.path.step.Metadata(step=step, path=path)
