"""Checkpoints: bit for bit, whole or absent, and never the end of a run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from parity_tests.tools.checkout import ROOT
from parity_tests.tools.small_runs import DROPPED_WRITES, files_of_at_most
from train.errors import TrainingFailed
from train.storage.checkpoint import Checkpoints
from train.storage.checkpoint_content import ITEM, Restored, complete_steps

DEFAULT_NUMERICS = True  # of a run

pytestmark = DROPPED_WRITES

RUN = "fingerprint of the flags"


def open_checkpoints(folder: Path, keep: int = 3, fingerprint: str = RUN):
    return Checkpoints(folder, keep, fingerprint)


def state_after(step: int) -> dict:
    """A state of several dtypes, of which every step has its own."""
    noise = np.random.default_rng(step).normal(size=(40, 50))
    return {
        "weights": jnp.asarray(noise, jnp.float32),
        "half": jnp.asarray(noise[0], jnp.bfloat16),
        "count": jnp.asarray(step, jnp.int32),
        "key": jax.random.fold_in(jax.random.key(0), step),
    }


def save(folder: Path, *steps: int) -> None:
    with open_checkpoints(folder) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_after(step), {"step": step})


def assert_same_bits(one, other) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def restore_if_any(folder: Path, fingerprint: str = RUN) -> Restored | None:
    with open_checkpoints(folder, fingerprint=fingerprint) as checkpoints:
        return checkpoints.restore(state_after(0))


def restore(folder: Path) -> Restored:
    restored = restore_if_any(folder)
    assert restored is not None
    return restored


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory) -> Path:
    """A folder with checkpoints of the steps 20 and 40; not to be changed."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save(folder, 20, 40)
    return folder


@pytest.fixture
def two(two_saved, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(two_saved, tmp_path / "checkpoints")


def data_files(folder: Path, step: int) -> list[Path]:
    """The files that the arrays of a checkpoint are in, the largest first."""
    files = (each for each in (folder / str(step)).rglob("*") if each.is_file())
    return sorted(files, key=lambda each: each.stat().st_size, reverse=True)


# What comes back


def test_state_comes_back_bit_for_bit(two_saved):
    restored = restore(two_saved)
    assert_same_bits(restored.state, state_after(40))


def test_step_and_record_come_back(two_saved):
    restored = restore(two_saved)
    assert (restored.step, restored.record) == (40, {"step": 40})


def test_model_and_optimizer_come_back_in_their_modules(tmp_path):
    def make():
        model = nnx.Sequential(
            nnx.Linear(3, 4, rngs=nnx.Rngs(0)),
            nnx.BatchNorm(4, rngs=nnx.Rngs(0)),
            nnx.Dropout(0.5, rngs=nnx.Rngs(1)),
        )
        optimizer = nnx.Optimizer(model, optax.adamw(0.1), wrt=nnx.Param)
        return nnx.split((model, optimizer))

    graphdef, state = make()
    state = jax.tree.map(lambda leaf: leaf + 1 if leaf.dtype == float else leaf, state)
    like = jax.eval_shape(lambda: make()[1])
    like = jax.tree.map(
        lambda a, b: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=b.sharding),
        like,
        state,
    )
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        restored = checkpoints.restore(like)
    assert restored is not None
    nnx.merge(graphdef, restored.state)
    assert_same_bits(restored.state, state)


def test_state_can_be_donated_while_it_is_saved(tmp_path):
    @jax.jit
    def next_state(state):
        return jax.tree.map(lambda leaf: leaf + 1, state)

    donating = jax.jit(next_state, donate_argnums=0)
    state = {"large": jnp.zeros((1000, 1000)), "small": jnp.zeros(3)}
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(20):
            state = donating(state)
        restored = checkpoints.restore(state)
    assert restored is not None
    assert not any(map(np.any, jax.tree.leaves(restored.state)))


def test_new_folder_has_nothing_to_restore(tmp_path, capsys):
    assert restore_if_any(tmp_path / "new") is None
    assert capsys.readouterr().err == ""


# Which are kept


def test_latest_and_best_are_kept(tmp_path):
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, state_after(step), {}, is_best=step in (1, 2))
    assert sorted(complete_steps(tmp_path)) == [2, 4, 5]


def test_best_is_still_kept_after_a_restart(tmp_path):
    with open_checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state_after(1), {}, is_best=True)
        checkpoints.save(2, state_after(2), {})
    with open_checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.restore(state_after(0))
        checkpoints.save(3, state_after(3), {})
    assert sorted(complete_steps(tmp_path)) == [1, 3]


def test_step_that_is_saved_is_not_saved_again(two):
    before = (two / "40").stat().st_mtime_ns
    save(two, 40)
    assert (two / "40").stat().st_mtime_ns == before


# What cannot be used


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, change_a_bit, Path.unlink])
def test_damaged_checkpoint_gives_way_to_the_one_before(damage, two, capsys):
    damage(data_files(two, 40)[0])
    restored = restore(two)
    assert restored.step == 20
    assert_same_bits(restored.state, state_after(20))
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"checkpoint {two / '40'} is damaged" in message
    assert "step 20" in message


def test_no_file_of_a_checkpoint_can_be_cut_unnoticed(two):
    for path in data_files(two, 40):
        if path.name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
            continue  # nothing that is restored is in these
        content = path.read_bytes()
        cut(path)
        restored = restore(two)
        assert restored.step == 20, path
        (two / "40.unusable").rename(two / "40")
        path.write_bytes(content)
    restored = restore(two)
    assert restored.step == 40


def test_step_of_a_damaged_checkpoint_can_be_saved_again(two):
    cut(data_files(two, 40)[0])
    with open_checkpoints(two) as checkpoints:
        checkpoints.restore(state_after(0))
        checkpoints.save(40, state_after(40), {})
    assert_same_bits(restore(two).state, state_after(40))


def test_checkpoint_of_other_flags_is_not_used(two, capsys):
    assert restore_if_any(two, fingerprint="others") is None
    message = capsys.readouterr().err
    assert message.count("of a run with other flags") == 2
    assert "starts at step 0" in message


def test_checkpoint_of_another_model_is_not_used(two, capsys):
    wider = state_after(0) | {"weights": jnp.zeros((40, 60))}
    with open_checkpoints(two) as checkpoints:
        assert checkpoints.restore(wider) is None
    message = capsys.readouterr().err
    assert "weights is float32[40, 50] in it, and float32[40, 60] here" in message


def test_folder_that_is_no_checkpoint_is_not_used(two, capsys):
    (two / "60").mkdir()
    (two / "60" / "notes.txt").write_text("mine")
    restored = restore(two)
    assert restored.step == 40
    assert str(two / "60") in capsys.readouterr().err


def test_checkpoint_that_was_being_removed_does_no_harm(two, capsys):
    shutil.rmtree(two / "20" / ITEM / "d")
    restored = restore(two)
    assert restored.step == 40
    assert capsys.readouterr().err == ""


# Whose they are, and of which step


@pytest.mark.parametrize("step", [60, 400])
@pytest.mark.parametrize("take", [shutil.copytree, shutil.move])
def test_checkpoint_under_the_name_of_another_step_is_not_believed(
    take, step, two, capsys
):
    take(two / "20", two / f"{step}")
    restored = restore(two)
    assert restored.step == 40
    assert_same_bits(restored.state, state_after(40))
    message = capsys.readouterr().err
    assert f"{two / str(step)} is not of that step, but of step 20" in message


@pytest.mark.parametrize("mine", ["mine", None])
@pytest.mark.parametrize("theirs", ["theirs", None])
def test_checkpoint_of_another_run_with_the_same_flags_is_not_used(
    mine, theirs, tmp_path, capsys
):
    for name, run in (("mine", mine), ("theirs", theirs)):
        with Checkpoints(tmp_path / name, 3, RUN, run) as checkpoints:
            checkpoints.save(20, state_after(20), {})
            if name == "theirs":
                checkpoints.save(40, state_after(40), {})
    shutil.copytree(tmp_path / "theirs" / "40", tmp_path / "mine" / "40")
    with Checkpoints(tmp_path / "mine", 3, RUN, mine) as checkpoints:
        restored = checkpoints.restore(state_after(0))
    assert restored is not None
    assert restored.step == (20 if mine != theirs else 40)
    assert ("of another run, by its seal" in capsys.readouterr().err) == (
        mine != theirs
    )


@pytest.mark.parametrize(
    "name", ["1²", "00000060", "+60", "６０", "60.0", "6_0", "-60", "9" * 40, "0x60"]
)
def test_only_a_plain_number_is_the_name_of_a_step(name, two, capsys):
    shutil.copytree(two / "20", two / name)
    assert sorted(complete_steps(two)) == [20, 40]
    with open_checkpoints(two) as checkpoints:
        restored = checkpoints.restore(state_after(0))
        assert restored is not None and restored.step == 40
        checkpoints.save(60, state_after(60), {})
    assert_same_bits(restore(two).state, state_after(60))
    assert (two / name).exists()
    assert capsys.readouterr().err == ""


def test_checkpoint_sealed_by_an_earlier_version_is_still_used(two, capsys):
    for step in (20, 40):
        path = two / f"{step}" / ITEM / "seal.json"
        path.write_text(json.dumps(json.loads(path.read_text())["files"]))
    assert restore(two).step == 40
    with Checkpoints(two, 3, RUN, "a run that has a name") as checkpoints:
        assert checkpoints.restore(state_after(0)) is None
    assert capsys.readouterr().err.count("a seal that cannot be read") == 2


@pytest.mark.parametrize("content", ["{}", "[]", "", '{"step": 40}', "[" * 100_000])
def test_empty_or_broken_seal_is_none(content, two, capsys):
    (two / "40" / ITEM / "seal.json").write_text(content)
    assert restore(two).step == 20
    assert "is damaged: it has a seal that" in capsys.readouterr().err


def watched(out):
    """Makes the directory of a run; returns what fails once it is gone."""
    out.mkdir()
    (out / "config.json").write_text("{}")

    def check() -> None:
        if not (out / "config.json").exists():
            raise TrainingFailed("--out was removed")

    return check


@pytest.mark.parametrize("is_under_way", [False, True])
def test_save_into_a_directory_that_is_gone_brings_nothing_back(
    is_under_way, tmp_path, capsys
):
    out = tmp_path / "run"
    check = watched(out)
    with pytest.raises(TrainingFailed, match="--out was removed"):
        with Checkpoints(out / "checkpoints", 3, RUN, check=check) as checkpoints:
            checkpoints.save(20, state_after(20), {})
            checkpoints.wait()
            if is_under_way:
                checkpoints.save(30, state_after(30), {})
                out.rename(tmp_path / "elsewhere")
            else:
                shutil.rmtree(out)
            checkpoints.save(40, state_after(40), {})
    assert not out.exists()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("beside", ["checkpoints/20/kept", "notes.txt", None])
def test_a_checkpoint_that_a_save_brings_back_goes_unless_there_is_more(
    beside, tmp_path
):
    out = tmp_path / "run"
    check = watched(out)
    with pytest.raises(TrainingFailed, match="--out was removed"):
        with Checkpoints(out / "checkpoints", 3, RUN, check=check) as checkpoints:
            checkpoints.save(30, state_after(30), {})
            checkpoints.wait()
            shutil.copytree(out, tmp_path / "copy")
            shutil.rmtree(out)
            # As if the save had gone on in the meantime.
            shutil.copytree(tmp_path / "copy", out)
            (out / "config.json").unlink()
            if beside is not None:
                (out / beside).parent.mkdir(parents=True, exist_ok=True)
                (out / beside).write_text("")
            checkpoints.save(40, state_after(40), {})
    assert out.exists() is (beside is not None)
    assert beside is None or (out / "checkpoints" / "30").exists()


# Processes that die, disks that are full


DIES_IN_ITS_THIRD_SAVE = """
import os, pathlib, signal, sys
import jax.numpy as jnp
import train.storage.checkpoint
from train.storage.checkpoint import Checkpoints, seal

def die_or_seal(folder, content):
    if "3.orbax" in str(folder):
        os.kill(os.getpid(), signal.SIGKILL)
    seal(folder, content)

train.storage.checkpoint.seal = die_or_seal
with Checkpoints(pathlib.Path(sys.argv[1]), 2, "run") as checkpoints:
    for step in range(1, 10):
        checkpoints.save(step, {"step": jnp.asarray(step)}, {})
"""


def test_process_killed_while_it_saves_leaves_the_save_before(tmp_path):
    command = [sys.executable, "-c", DIES_IN_ITS_THIRD_SAVE, tmp_path]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    half = tmp_path / "3.orbax-checkpoint-tmp"
    assert any(half.rglob("manifest.ocdbt"))
    with open_checkpoints(tmp_path, fingerprint="run") as checkpoints:
        restored = checkpoints.restore({"step": jnp.asarray(0)})
    assert restored is not None
    assert restored.step == restored.state["step"] == 2
    assert not half.exists()


def test_full_disk_fails_the_save_and_nothing_else(two):
    with open_checkpoints(two, keep=1) as checkpoints:
        with files_of_at_most(2000), pytest.raises(TrainingFailed) as failure:
            checkpoints.save(60, state_after(60), {})
            checkpoints.wait()
    message = str(failure.value)
    assert "\n" not in message
    for word in (str(two), "File too large", "make room", str(two / "40")):
        assert word in message
    assert sorted(complete_steps(two)) == [20, 40]
    restored = restore(two)
    assert_same_bits(restored.state, state_after(40))


def test_save_that_fails_in_the_background_fails_the_next_one(two, capsys):
    with pytest.raises(TrainingFailed, match="File too large"):
        with open_checkpoints(two) as checkpoints, files_of_at_most(2000):
            checkpoints.save(60, state_after(60), {})
            checkpoints.save(80, state_after(80), {})
    assert sorted(complete_steps(two)) == [20, 40]
    assert capsys.readouterr().err == ""


def test_save_that_fails_last_fails_the_run(two):
    with files_of_at_most(2000), pytest.raises(TrainingFailed, match="File too large"):
        with open_checkpoints(two) as checkpoints:
            checkpoints.save(60, state_after(60), {})


def test_failed_save_does_not_hide_why_the_run_ends(two, capsys):
    with files_of_at_most(2000), pytest.raises(KeyboardInterrupt):
        with open_checkpoints(two) as checkpoints:
            checkpoints.save(60, state_after(60), {})
            raise KeyboardInterrupt
    assert "File too large" in capsys.readouterr().err
