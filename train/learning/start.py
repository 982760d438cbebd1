"""Where a model starts: the weights of `--init-from`."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from dynconv_jax import init_from_static, to_torch_state_dict
from dynconv_jax.models import head_of
from dynconv_jax.weights.does_not_fit import DoesNotFit
from dynconv_jax.weights.files import read_weights
from dynconv_jax.weights.loading import Loading, prepare
from train.errors import TrainError, warn
from train.flags.config import Config


def start_from_file(
    model: nnx.Module,
    make_twin: Callable[[], nnx.Module],
    config: Config,
    what: str,
    rngs: nnx.Rngs,
) -> None:
    """Loads `--init-from`, of the same model or of its static twin.

    With `--new-head` the head stays as it was drawn, and all else must fit.

    Args:
        model: The model.
        make_twin: Builds its static twin.
        config: The flags.
        what: The model in the words of the flags.
        rngs: Where the noise on experts comes from.

    Raises:
        TrainError: If the file cannot be read, or does not fit.
    """
    where = f"--init-from (={config.init_from})"
    head = head_of(model)
    ignore = head if config.new_head else ()
    state = _read(config.init_from, where)
    try:
        source, loading = model, _try(model, state, ignore)
    except (TypeError, ValueError) as error:  # no state dict at all
        raise TrainError(f"{where} cannot be loaded: {_in_one_line(error)}") from error
    if isinstance(loading, DoesNotFit):
        own, source = loading, make_twin()
        loading = _try(source, state, ignore)
        if isinstance(loading, DoesNotFit):
            tried = (model, own), (source, loading)
            raise TrainError(f"{where} {_misfit(tried, state, config, what)}")
    else:
        rule = (
            f"be 0 with {where}, whose experts are trained; it is added to those that "
            "start as a static kernel"
        )
        config.require("init_noise", not config.init_noise, rule)
        rule = f"be left out with {where}, which has experts, and the twin has none"
        config.require("twin", not config.twin, rule)
    if config.new_head and isinstance(_try(source, state, ()), Loading):
        warn(
            f"the head ({', '.join(head)}) of {where} fits as it is, and is drawn anew "
            "all the same, by --new-head"
        )
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        loading.carry_out()
    for note in notes:
        warn(str(note.message))
    for key, value in to_torch_state_dict(source).items():
        if not np.isfinite(value).all():
            raise TrainError(
                f"{where} holds what is no finite number in {key}: its training has "
                "diverged, or the file is damaged; choose another"
            )
    if source is not model:
        try:
            init_from_static(
                model, source, noise=config.init_noise, rngs=rngs, ignore=ignore
            )
        except ValueError as error:
            raise TrainError(f"{where}: {_in_one_line(error)}") from error


def _read(path: Path | None, where: str) -> tuple[Any, bool]:
    """Returns what the file holds, and whether a JAX module wrote it."""
    assert path is not None
    try:
        return read_weights(path)
    except OSError as error:
        reason = error.strerror or _in_one_line(error)
        raise TrainError(f"{where} cannot be read: {reason}") from error
    except ValueError as error:
        reason = _in_one_line(error).removeprefix(f"`path` (={os.fspath(path)!r}): ")
        raise TrainError(f"{where} cannot be loaded: {reason}") from error


def _try(
    model: nnx.Module, state: tuple[Any, bool], ignore: tuple[str, ...]
) -> Loading | DoesNotFit:
    """Returns what is to be written where, or in what the weights do not fit."""
    values, is_of_jax = state
    try:
        return prepare(model, values, is_of_jax=is_of_jax, ignore=ignore)
    except DoesNotFit as misfit:
        return misfit


def _misfit(
    tried: Sequence[tuple[nnx.Module, DoesNotFit]],
    state: tuple[Any, bool],
    config: Config,
    what: str,
) -> str:
    """Says why weights fit neither a model nor its static twin."""
    for model, misfit in tried:
        if config.new_head or isinstance(
            _try(model, state, head_of(model)), DoesNotFit
        ):
            continue
        kind, problem = misfit.problems[0]
        return (
            f"has another head than {what} for these images ({kind}: {problem}); "
            "--new-head draws it anew"
        )
    nearest = min((misfit for _, misfit in tried), key=lambda each: len(each.problems))
    return (
        f"is neither of {what} nor of the same model with static convolutions: "
        f"{_in_one_line(nearest)}"
    )


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
