"""One checkpoint on disk: what it holds, whether it can be used, and how it is read."""

import dataclasses
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from train.errors import TrainingFailed
from train.machines.devices import is_key
from train.storage.seal import Sealed, find_damage

ITEM = "state"  # the folder in a checkpoint that holds everything
# The only form that the name of a checkpoint has: of 7 neither 07 nor +7.
STEP = re.compile("0|[1-9][0-9]{0,17}")


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held.

    Attributes:
        step: The step it was saved after.
        state: The arrays, in the tree and on the devices that were asked for.
        record: What was saved beside them.
        best_step: The step of the best checkpoint so far, or None.
    """

    step: int
    state: Any
    record: dict[str, Any]
    best_step: int | None


def complete_steps(folder: Path) -> list[int]:
    """Returns the steps of the checkpoints that are complete."""
    names = (each.name for each in folder.glob("[0-9]*"))
    return [int(name) for name in names if STEP.fullmatch(name)]


def find_flaw(
    path: Path, like: Any, fingerprints: Collection[str], run: str | None = None
) -> str | None:
    """Tells why a checkpoint cannot be used.

    Args:
        path: The checkpoint.
        like: The tree of arrays that is to be restored.
        fingerprints: Of the flags of the run that it must be of; one of them.
        run: The name of that run, if it has one.

    Returns:
        The reason, in words that follow the name of the checkpoint, or None.
    """
    damage = find_damage(path / ITEM, Sealed(int(path.name), run))
    if damage is not None:
        return damage
    try:
        metadata = _metadata(path)
        content = metadata.custom_metadata
        saved = {name: _form(leaf) for name, leaf in metadata.tree.items()}
        is_of_this_program = {"fingerprint", "best_step", "record"} <= set(content)
    except Exception as error:  # orbax has no errors of its own
        return f"is none of this program ({in_one_line(error)})"
    if not is_of_this_program:
        return "is none of this program"
    if content["fingerprint"] not in fingerprints:
        return "is of a run with other flags"
    asked = {name: _form(leaf) for name, leaf in _to_abstract(like).items()}
    for name in sorted(saved.keys() | asked.keys()):
        if saved.get(name) != asked.get(name):
            return (
                f"is of another model: {name} is {saved.get(name, 'missing')} in it, "
                f"and {asked.get(name, 'missing')} here"
            )
    return None


def _metadata(path: Path) -> Any:
    return ocp.PyTreeCheckpointHandler().metadata(epath.Path(path / ITEM))


def read(path: Path, like: Any) -> Restored:
    """Reads a checkpoint that has no flaw."""
    names, structure = _named_leaves(like)
    abstract = _to_abstract(like)
    arguments = ocp.args.PyTreeRestore(
        item=abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
    )
    try:
        content = _metadata(path).custom_metadata
        # The handler, not the manager: it waits for no other process.
        arrays = ocp.PyTreeCheckpointHandler().restore(
            epath.Path(path / ITEM), args=arguments
        )
    except Exception as error:  # orbax has no errors of its own
        raise TrainingFailed(
            f"checkpoint {path} cannot be read: {in_one_line(error)}; remove it "
            "to go on from the one before"
        ) from error
    leaves = [
        jax.random.wrap_key_data(arrays[name]) if is_key(leaf) else arrays[name]
        for name, leaf in names.items()
    ]
    return Restored(
        step=int(path.name),
        state=jax.tree.unflatten(structure, leaves),
        record=content["record"],
        best_step=content["best_step"],
    )


def _named_leaves(tree: Any) -> tuple[dict[str, Any], Any]:
    """Returns the leaves by their names, and the structure of the tree."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    names = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
    }
    assert len(names) == len(leaves)
    return names, structure


def to_arrays(state: Any) -> dict[str, jax.Array]:
    """Returns plain arrays by name: orbax is given no trees and no typed keys."""
    return {
        name: jax.random.key_data(leaf) if is_key(leaf) else leaf
        for name, leaf in _named_leaves(state)[0].items()
    }


def _to_abstract(like: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the forms of what `to_arrays` returns, and where they are to lie."""
    forms = {}
    for name, leaf in _named_leaves(like)[0].items():
        form = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
        forms[name] = jax.ShapeDtypeStruct(
            form.shape, form.dtype, sharding=leaf.sharding
        )
    return forms


def _form(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def in_one_line(error: BaseException) -> str:
    """Returns what is wrong in a few words: what the system says of it, if it does."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's way
    if number:
        return os.strerror(int(number[1]))
    return (str(error).splitlines() or [type(error).__name__])[0]
