"""A network from a checkpoint alone: recognised, built, loaded, to be evaluated."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dynconv_jax.checks import check_rngs, check_state_dict
from dynconv_jax.functional.checks import check_dtypes
from dynconv_jax.models.registry import (
    CONVOLUTIONS,
    MODELS,
    OWN,
    STEERED,
    create_model,
)
from dynconv_jax.weights.files import read_weights
from dynconv_jax.weights.identify import identify, in_flax, misfits
from dynconv_jax.weights.loading import prepare
from dynconv_jax.weights.pretrained import from_pretrained, give_streams
from dynconv_jax.weights.pretrained_config import path_called, weights_in
from dynconv_jax.weights.recognize import (
    check_size,
    in_words,
    inner_state_dict,
    merged,
    shapes_of,
    without_redundant,
    without_scheduled,
)
from dynconv_jax.weights.refusals import contradiction, refusal
from dynconv_jax.weights.torch_layout import leaves_of
from dynconv_jax.weights.wrappers import in_one_line, unwrap

_ARGUMENT = "state_dict_or_path"
_WITHOUT_HEAD = (
    "build that with the `num_classes` of yours, and give it what is there: "
    "`load_torch_state_dict(net, {state_dict}, ignore=({head!r},))`"
)


def create_model_from_checkpoint(
    state_dict_or_path: Mapping[str, Any] | str | os.PathLike,
    *,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
    **options,
) -> Any:
    """Builds the network that a checkpoint is of, and loads it.

    Which network it is, its number of classes and of image channels, its convolutions,
    their experts and ratios are read off keys and shapes, by the table of published
    layouts (`weights/networks`). What the table answers is held against the
    checkpoint before anything is loaded, and `to_torch_state_dict` gives the arrays
    back bit for bit (those of Chen et al.'s port with `layout="chen"`).

    What is around the state dict is taken off, as by `load_torch_state_dict`; also one
    prefix of all keys, such as `"backbone."`, where a known network is behind it.

    Args:
        state_dict_or_path: PyTorch tensors or NumPy arrays by PyTorch key; or a file as
            of `load_weights`; or a directory of `save_pretrained`, or another one with
            `model.safetensors` or `pytorch_model.bin` in it.
        param_dtype: The dtype of the parameters, which must hold those of the
            checkpoint.
        rngs: Where dropout and noise draw from; None is `nnx.Rngs(0)`.
        **options: Options of the network or of its convolutions that no array tells,
            such as `dropout`, `temperature` or `dtype`. A `temperature` or `assignment`
            given here goes before that of the checkpoint.

    Returns:
        The network, in evaluation mode.

    Raises:
        TypeError: If the first argument is neither a state dict nor a path, or an
            option is unknown.
        OSError: If a file cannot be read.
        ValueError: If a file is damaged or of another kind; if the checkpoint is of no
            network that is known, or is only nearly of one (the error names that one
            and says what differs); or if an option contradicts the arrays.

    Warns:
        UserWarning: If something was taken off, or no array tells how the network
            computes, such as the padding of an EfficientNet.

    Example:
        >>> from dynconv_jax import to_torch_state_dict
        >>> net = create_model("dynamic_net", 7, width_mult=0.25, rngs=nnx.Rngs(0))
        >>> again = create_model_from_checkpoint(to_torch_state_dict(net))
        >>> bool((again.fc.kernel[...] == net.fc.kernel[...]).all())
        True
    """
    check_dtypes(param_dtype=param_dtype)
    # Elsewhere JAX rounds such a dtype with a warning; here arrays must fit exactly.
    if jnp.dtype(param_dtype).itemsize > 4 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"`param_dtype` (={jnp.dtype(param_dtype)}) is one that JAX has switched "
            "off; before all else, `jax.config.update('jax_enable_x64', True)`"
        )
    rngs = nnx.Rngs(0) if rngs is None else rngs
    check_rngs(rngs)
    given, where = state_dict_or_path, f"`{_ARGUMENT}`"
    if isinstance(given, (str, os.PathLike)):
        where = f"`{_ARGUMENT}` (={os.fspath(given)!r})"
        with path_called(_ARGUMENT):
            file = weights_in(Path(given))
            if file is None:  # of `save_pretrained`, which says what it is of
                model = from_pretrained(
                    given, rngs=rngs, param_dtype=param_dtype, **options
                )
                model.eval()
                return model
            given, _ = read_weights(file)
    check_state_dict(_ARGUMENT, given)
    unwrapped = unwrap(given, (), argument=_ARGUMENT)
    values, notes = inner_state_dict(unwrapped.values)
    notes = [*unwrapped.notes, *notes]
    shapes = shapes_of(values)
    try:
        check_size(shapes)
        arrays = without_scheduled(values, options)
        match = identify(arrays, prepare)
        if match is None or match.problems:
            written = in_words(unwrapped.values, values)

            def way_out(head: str) -> str:
                return _WITHOUT_HEAD.format(head=head, state_dict=written)

            raise ValueError(refusal(shapes, match, in_flax, way_out))
        read = in_flax(match.call.options)
        options = without_redundant(options, read, shapes)
        arguments = merged(
            {"name": match.call.name, **read, "param_dtype": param_dtype},
            options,
            MODELS[match.call.name],
            {**CONVOLUTIONS, **STEERED}[read["conv"]]
            if "conv" in read
            else OWN.get(match.call.name),
        )
        model, loading, problems = misfits(arguments, arrays, prepare)
        if problems:
            raise ValueError(contradiction(read, options, problems))
    except ValueError as error:
        before = "".join(f"; before, {note}" for note in notes)
        raise ValueError(in_one_line(f"{where}: {error}{before}")) from None
    for note in [*notes, *match.call.guessed(options)]:
        warnings.warn(note, stacklevel=2)
    loading.carry_out()
    _give_initial_values(model, loading.absent, arguments)
    give_streams(model, rngs)
    model.eval()
    return model


def _give_initial_values(
    model: nnx.Module, absent: Mapping[str, Any], arguments: Mapping[str, Any]
) -> None:
    """Gives values to what a schedule writes, or counts, and no checkpoint has."""
    absent = {key: leaf for key, leaf in absent.items() if leaf.variables}
    if not absent:
        return

    def initial() -> dict[str, jax.Array]:
        made = create_model(**arguments, rngs=nnx.Rngs(0))
        leaves = dict(leaves_of(made))
        return {key: leaves[key].variables[0].get_value() for key in absent}

    # Compiled, so that of all that is drawn nothing is computed but these.
    for key, value in jax.jit(initial)().items():
        absent[key].variables[0].set_value(value)
